//! Memory of tensors that calls return, kept for later calls when they are gone: malloc
//! gives much of it back to the system, at a page fault for every 4 KiB of the next call
//! (150 to 600 in a training step of a small model).

use std::alloc::{alloc, dealloc, Layout};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes kept at most.
pub const MOST_KEPT: usize = 64 << 20;

/// What LibTorch aligns memory to.
const ALIGNMENT: usize = 64;
const PAGE: usize = 4096;

/// A block that no tensor has.
struct Kept {
    address: usize,
    bytes: usize,
}

/// Oldest first.
static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

fn pool() -> MutexGuard<'static, Vec<Kept>> {
    // Nothing in here panics half-way.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that wait for a later call.
#[must_use]
pub fn kept() -> usize {
    pool().iter().map(|block| block.bytes).sum()
}

/// Of a block for so many bytes; at most one in eight is for nothing.
fn fits(block: usize, bytes: usize) -> bool {
    (bytes..=bytes + bytes / 8 + PAGE).contains(&block)
}

/// Memory for so many bytes, of any content: address and size. The newest block that
/// fits, which is the likeliest to be in caches, or a new one; none if there is none.
#[must_use]
pub fn take(bytes: usize) -> Option<(usize, usize)> {
    let mut pool = pool();
    if let Some(place) = pool.iter().rposition(|block| fits(block.bytes, bytes)) {
        let Kept { address, bytes } = pool.remove(place);
        return Some((address, bytes));
    }
    drop(pool);
    let layout = Layout::from_size_align(bytes.max(1).checked_next_multiple_of(PAGE)?, ALIGNMENT);
    let layout = layout.ok()?;
    // SAFETY: the size is not zero.
    let address = unsafe { alloc(layout) } as usize;
    (address != 0).then_some((address, layout.size()))
}

/// Keeps a block for later calls, and of those that wait the newest.
///
/// # Safety
/// `take` returned both, and nobody uses the block any more.
pub unsafe fn give(address: usize, bytes: usize) {
    let mut pool = pool();
    let mut waiting: usize = pool.iter().map(|block| block.bytes).sum();
    pool.push(Kept { address, bytes });
    waiting += bytes;
    let mut oldest = 0;
    while waiting > MOST_KEPT {
        waiting -= pool[oldest].bytes;
        oldest += 1;
    }
    for Kept { address, bytes } in pool.drain(..oldest) {
        let layout = Layout::from_size_align(bytes, ALIGNMENT).expect("as it was made");
        // SAFETY: from `take`, with this layout; it is in the pool no longer.
        unsafe { dealloc(address as *mut u8, layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_and_come_back_within_a_bound() {
        assert!(fits(4096, 4096) && fits(4096, 1) && fits(72 << 10, 64 << 10));
        assert!(!fits(4096, 4097) && !fits(80 << 10, 64 << 10));
        let write = |(address, bytes): (usize, usize)| {
            assert!(address % ALIGNMENT == 0 && bytes % PAGE == 0);
            // SAFETY: the block is ours.
            unsafe { std::ptr::write_bytes(address as *mut u8, 7, bytes) };
        };
        // SAFETY: blocks from `take`, which are not used again.
        let back = |(address, bytes): (usize, usize)| unsafe { give(address, bytes) };
        let first = take(100_000).expect("memory");
        write(first);
        back(first);
        let blocks: Vec<_> = (0..5).map(|_| take(MOST_KEPT / 3).expect("memory")).collect();
        blocks.iter().for_each(|&block| write(block));
        for block in blocks {
            back(block);
            assert!(kept() <= MOST_KEPT);
        }
        back(take(2 * MOST_KEPT).expect("memory"));
        assert!(kept() <= MOST_KEPT, "too large to keep");
        assert!(take(usize::MAX).is_none() && take(usize::MAX / 2).is_none());
    }
}
