//! Memory for what lies between layers, freed blocks kept for later calls.

use std::alloc::{handle_alloc_error, Layout};
use std::ptr::NonNull;

use super::pool::{Block, Pool, ALIGNMENT};

/// Bytes kept at most, over the whole process.
pub const MOST_KEPT: usize = 64 << 20;

static POOL: Pool = Pool::new(MOST_KEPT);

/// Bytes that wait for a later call.
#[must_use]
pub fn kept() -> usize {
    POOL.bytes()
}

/// A block of at least the size asked for, of any content.
#[derive(Debug)]
pub struct Scratch(Option<Block>);

impl Scratch {
    /// The smallest kept block that is large enough, or a new one. What this thread has
    /// used before is in its core's caches, and comes first.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        if bytes == 0 {
            return Self(None);
        }
        let kept = POOL.take(|kept| {
            let fits = kept.iter().enumerate().filter(|(_, block)| block.bytes() >= bytes);
            fits.min_by_key(|(_, block)| (!block.is_own(), block.bytes())).map(|(place, _)| place)
        });
        let block = kept.or_else(|| Block::new(bytes, true)).unwrap_or_else(|| {
            let layout = Layout::from_size_align(bytes, ALIGNMENT);
            handle_alloc_error(layout.expect("sizes of tensors in memory fit"))
        });
        Self(Some(block))
    }

    /// Its address, a multiple of 64; dangling for no bytes.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        let nothing = NonNull::<u64>::dangling().as_ptr().cast();
        self.0.as_ref().map_or(nothing, Block::address)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(block) = self.0.take() {
            POOL.give(block);
        }
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
