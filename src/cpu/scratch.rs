//! Memory for what lies between layers. Freed blocks are kept for later calls, up
//! to a fixed sum over the whole process: fresh memory costs a page fault every
//! 4 KiB, more than a small layer.

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes kept at most.
pub const MOST_KEPT: usize = 64 << 20;

/// A cache line, and a whole AVX-512 vector.
const ALIGNMENT: usize = 64;

static KEPT: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

/// Bytes that wait for a later call.
#[must_use]
pub fn kept() -> usize {
    pool().iter().map(|memory| memory.bytes).sum()
}

fn pool() -> MutexGuard<'static, Vec<Memory>> {
    // Nothing in here panics half-way.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block of at least the size asked for, of any content.
#[derive(Debug)]
pub struct Scratch(Option<Memory>);

impl Scratch {
    /// The smallest kept block that is large enough, or a new one. What this thread has
    /// used before is in its core's caches, and comes first.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        if bytes == 0 {
            return Self(None);
        }
        let mut pool = pool();
        let fits = pool.iter().enumerate().filter(|(_, memory)| memory.bytes >= bytes);
        let best = fits.min_by_key(|(_, memory)| (memory.user != this_thread(), memory.bytes));
        if let Some((place, _)) = best {
            return Self(Some(pool.remove(place)));
        }
        drop(pool);
        Self(Some(Memory::new(bytes)))
    }

    /// Its address, a multiple of 64; dangling for no bytes.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.0.as_ref().map_or(NonNull::<u64>::dangling().as_ptr().cast(), |m| m.at.as_ptr())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Some(mut memory) = self.0.take() else { return };
        memory.user = this_thread();
        let mut pool = pool();
        // The newest stays: sizes go with the model that runs now.
        while !pool.is_empty()
            && pool.iter().map(|kept| kept.bytes).sum::<usize>() + memory.bytes > MOST_KEPT
        {
            pool.remove(0);
        }
        if memory.bytes <= MOST_KEPT {
            pool.push(memory);
        }
    }
}

#[derive(Debug)]
struct Memory {
    at: NonNull<u8>,
    bytes: usize,
    /// Who had it last.
    user: usize,
}

/// A number that no other living thread has.
fn this_thread() -> usize {
    thread_local!(static PLACE: u8 = const { 0 });
    PLACE.with(|place| std::ptr::from_ref(place) as usize)
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Memory {}

impl Memory {
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, ALIGNMENT).expect("sizes of tensors in memory fit")
    }

    fn new(bytes: usize) -> Self {
        let layout = Self::layout(bytes.next_multiple_of(4096));
        // SAFETY: the size is not zero (`Scratch::new` returned).
        let at = unsafe { alloc_zeroed(layout) };
        let Some(at) = NonNull::new(at) else { handle_alloc_error(layout) };
        Self { at, bytes: layout.size(), user: this_thread() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: from `new`, with this layout.
        unsafe { dealloc(self.at.as_ptr(), Self::layout(self.bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_within_a_bound() {
        let first = Scratch::new(100_000);
        assert_eq!(first.address() as usize % 64, 0);
        drop(first);
        assert!(kept() <= MOST_KEPT);
        let blocks: Vec<_> = (0..5).map(|_| Scratch::new(MOST_KEPT / 3)).collect();
        drop(blocks);
        assert!(kept() <= MOST_KEPT);
        drop(Scratch::new(2 * MOST_KEPT));
        assert!(kept() <= MOST_KEPT, "too large to keep");
        drop(Scratch::new(0));
    }
}
