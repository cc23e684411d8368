//! A bounded memo: problem → plan, shared by all threads.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

/// Keeps at most `capacity` plans. When full it starts over: a program that
/// meets that many shapes does not meet the same one often, and a plan costs
/// microseconds to make again.
pub struct PlanCache<K, V> {
    plans: RwLock<HashMap<K, Arc<V>>>,
    capacity: usize,
}

impl<K: Eq + Hash + Clone, V> PlanCache<K, V> {
    /// An empty cache.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { plans: RwLock::new(HashMap::new()), capacity }
    }

    /// The plan for `key`, if there is one.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        // A panic while the lock was held cannot have left a plan half
        // written (they are inserted whole), so poisoning is ignored.
        self.plans.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Keeps `plan` for `key`, in place of any other.
    pub fn insert(&self, key: K, plan: V) -> Arc<V> {
        let plan = Arc::new(plan);
        let mut plans = self.plans.write().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= self.capacity && !plans.contains_key(&key) {
            plans.clear();
        }
        plans.insert(key, Arc::clone(&plan));
        plan
    }

    /// Plans kept now.
    pub fn len(&self) -> usize {
        self.plans.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_replaces_and_stays_bounded() {
        let cache = PlanCache::new(3);
        assert!(cache.is_empty());
        for key in 0..3 {
            cache.insert(key, key * 10);
        }
        assert_eq!(cache.get(&2).as_deref(), Some(&20));
        cache.insert(2, 21);
        assert_eq!((cache.len(), cache.get(&2).as_deref()), (3, Some(&21)));
        cache.insert(3, 30);
        assert_eq!((cache.len(), cache.get(&3).as_deref()), (1, Some(&30)));
        assert!(cache.get(&0).is_none());
    }

    #[test]
    fn a_poisoned_lock_still_serves() {
        let cache = Arc::new(PlanCache::new(2));
        cache.insert(1, 1);
        let other = Arc::clone(&cache);
        let _ = std::thread::spawn(move || {
            let _guard = other.plans.write().unwrap();
            panic!("poison");
        })
        .join();
        assert_eq!(cache.get(&1).as_deref(), Some(&1));
    }
}
