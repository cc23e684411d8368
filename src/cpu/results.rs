//! Memory of tensors that calls return, kept for later calls when they are gone: malloc
//! gives much of it back to the system (150 to 600 page faults in a training step of a
//! small model).

use std::ptr::NonNull;

use super::pool::{Block, Pool, PAGE};

/// Bytes kept at most.
pub const MOST_KEPT: usize = 64 << 20;

static POOL: Pool = Pool::new(MOST_KEPT);

/// Bytes that wait for a later call.
#[must_use]
pub fn kept() -> usize {
    POOL.bytes()
}

/// Of a block for so many bytes; at most one in eight is for nothing.
fn fits(block: usize, bytes: usize) -> bool {
    (bytes..=bytes.saturating_add(bytes / 8 + PAGE)).contains(&block)
}

/// Memory for so many bytes, of any content: address and size. The newest block that
/// fits, which is the likeliest to be in caches, or a new one; none if there is none.
#[must_use]
pub fn take(bytes: usize) -> Option<(usize, usize)> {
    let kept = POOL.take(|kept| kept.iter().rposition(|block| fits(block.bytes(), bytes)));
    let (address, bytes) = kept.or_else(|| Block::new(bytes, false))?.into_raw();
    Some((address.as_ptr() as usize, bytes))
}

/// Keeps a block for later calls, and of those that wait the newest.
///
/// # Safety
/// `take` returned both, and nobody uses the block any more.
pub unsafe fn give(address: usize, bytes: usize) {
    if let Some(address) = NonNull::new(address as *mut u8) {
        // SAFETY: forwarded.
        POOL.give(unsafe { Block::from_raw(address, bytes) });
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::ALIGNMENT;
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
