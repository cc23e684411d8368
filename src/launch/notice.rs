//! Sentences for the user that belong to no failed call: they travel with the next
//! call that is done (`bridge`), which warns with them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Says without a lock that there is nothing, which is so on all calls but a few.
static PENDING: AtomicBool = AtomicBool::new(false);
static NOTICES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

// A panic while the lock was held cannot have left half a sentence.
fn notices() -> MutexGuard<'static, VecDeque<String>> {
    NOTICES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `sentence` goes to the user: `expected …, got …`.
pub fn add(sentence: String) {
    let mut notices = notices();
    notices.push_back(sentence);
    PENDING.store(true, Ordering::Relaxed);
}

/// The oldest that has not been taken.
pub fn take() -> Option<String> {
    if !PENDING.load(Ordering::Relaxed) {
        return None;
    }
    let mut notices = notices();
    let taken = notices.pop_front();
    PENDING.store(!notices.is_empty(), Ordering::Relaxed);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_taken_once_in_order() {
        assert_eq!(take(), None);
        add("expected a, got b".to_owned());
        add("expected c, got d".to_owned());
        assert_eq!(take().as_deref(), Some("expected a, got b"));
        assert_eq!(take().as_deref(), Some("expected c, got d"));
        assert_eq!(take(), None);
    }
}
