//! Blocks of memory kept for later calls, up to a fixed sum: fresh memory costs a page
//! fault every 4 KiB, more than a small layer.

use std::alloc::{alloc, alloc_zeroed, dealloc, Layout};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A cache line, a whole AVX-512 vector, and what LibTorch aligns memory to.
pub const ALIGNMENT: usize = 64;
/// Blocks are whole pages.
pub const PAGE: usize = 4096;

/// Memory with one owner.
#[derive(Debug)]
pub struct Block {
    at: NonNull<u8>,
    bytes: usize,
    /// The thread that had it last.
    user: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Block {}

impl Block {
    /// New, for so many bytes or a few more; none if there is no memory.
    pub fn new(bytes: usize, zeroed: bool) -> Option<Self> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE)?;
        let layout = Layout::from_size_align(bytes, ALIGNMENT).ok()?;
        // SAFETY: the size is not zero.
        let at = unsafe {
            if zeroed {
                alloc_zeroed(layout)
            } else {
                alloc(layout)
            }
        };
        NonNull::new(at).map(|at| Self { at, bytes, user: this_thread() })
    }

    /// What [`Self::into_raw`] told.
    ///
    /// # Safety
    /// It is given back once, and nobody else uses the memory.
    pub unsafe fn from_raw(address: NonNull<u8>, bytes: usize) -> Self {
        Self { at: address, bytes, user: this_thread() }
    }

    /// Address and size; the memory stays.
    pub fn into_raw(self) -> (NonNull<u8>, usize) {
        let block = std::mem::ManuallyDrop::new(self);
        (block.at, block.bytes)
    }

    /// Its address, a multiple of [`ALIGNMENT`].
    pub fn address(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether this thread had it last: it is in its core's caches then.
    pub fn is_own(&self) -> bool {
        self.user == this_thread()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.bytes, ALIGNMENT).expect("as it was made");
        // SAFETY: from `new`, with this layout.
        unsafe { dealloc(self.at.as_ptr(), layout) }
    }
}

/// A number that no other living thread has.
fn this_thread() -> usize {
    thread_local!(static PLACE: u8 = const { 0 });
    PLACE.with(|place| std::ptr::from_ref(place) as usize)
}

/// Blocks that wait, oldest first.
pub struct Pool {
    kept: Mutex<Vec<Block>>,
    most: usize,
}

impl Pool {
    /// Of so many bytes at most.
    pub const fn new(most: usize) -> Self {
        Self { kept: Mutex::new(Vec::new()), most }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Block>> {
        // Nothing in here panics half-way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that wait for a later call.
    pub fn bytes(&self) -> usize {
        self.lock().iter().map(Block::bytes).sum()
    }

    /// The block that `choose` points to.
    pub fn take(&self, choose: impl FnOnce(&[Block]) -> Option<usize>) -> Option<Block> {
        let mut kept = self.lock();
        choose(&kept).map(|place| kept.remove(place))
    }

    /// Keeps a block. The newest stay: sizes go with the model that runs now.
    pub fn give(&self, mut block: Block) {
        block.user = this_thread();
        let mut kept = self.lock();
        kept.push(block);
        let mut waiting: usize = kept.iter().map(Block::bytes).sum();
        let mut oldest = 0;
        while waiting > self.most {
            waiting -= kept[oldest].bytes;
            oldest += 1;
        }
        let gone: Vec<Block> = kept.drain(..oldest).collect();
        drop(kept);
        drop(gone);
    }
}
