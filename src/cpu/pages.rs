//! Large pages for results that are so large that every call has new memory for them: the
//! kernel fills a page in at its first access, 16,384 of them in a gradient of 64 MiB.

/// Bytes from which on memory is new each time: glibc keeps no freed block that is larger.
const NEW: usize = 32 << 20;

/// Asks for large pages under a result of so many bytes, where the kernel gives them to who
/// asks (`/sys/kernel/mm/transparent_hugepage/enabled`); what it says is of no consequence.
///
/// # Safety
/// The memory is the caller's.
pub unsafe fn large<T>(at: *mut T, bytes: usize) {
    if !at.is_null() && bytes >= NEW {
        // SAFETY: forwarded.
        unsafe { system::ask(at as usize, bytes) };
    }
}

#[cfg(all(target_os = "linux", feature = "libtorch", not(miri)))]
mod system {
    /// A large page.
    const PAGE: usize = 2 << 20;

    /// # Safety
    /// As for `large`.
    pub unsafe fn ask(at: usize, bytes: usize) {
        let (begin, end) = whole(at, bytes);
        // SAFETY: whole pages within the caller's memory; their contents stay as they are.
        unsafe { libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_HUGEPAGE) };
    }

    /// The large pages that are all within so many bytes from there.
    fn whole(at: usize, bytes: usize) -> (usize, usize) {
        let begin = at.next_multiple_of(PAGE);
        (begin, ((at + bytes) / PAGE * PAGE).max(begin))
    }

    #[test]
    fn only_pages_that_are_wholly_inside() {
        for (at, bytes) in [(0, 32 * PAGE), (64, 16 * PAGE), (PAGE - 1, PAGE + 3), (1, PAGE)] {
            let (begin, end) = whole(at, bytes);
            assert!(begin >= at && end <= at + bytes || begin == end, "{at} {bytes}");
            assert!(begin % PAGE == 0 && end % PAGE == 0 && begin - at < PAGE);
        }
    }
}

#[cfg(not(all(target_os = "linux", feature = "libtorch", not(miri))))]
mod system {
    /// # Safety
    /// None is asked.
    pub unsafe fn ask(_at: usize, _bytes: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_stay_and_nothing_is_asked_of_small_ones() {
        let mut values: Vec<u32> = (0..(NEW as u32 / 4 + 1000)).collect();
        // SAFETY: the vector's memory.
        unsafe {
            large(values.as_mut_ptr(), 4 * values.len());
            large(values.as_mut_ptr(), 8);
            large(std::ptr::null_mut::<u8>(), NEW);
        }
        assert!((0..).zip(&values).all(|(i, value)| i == *value));
    }
}
