//! `columns` for AMX: one pass over the gradient of a layer's result masks it, sums its
//! columns and splits it into the left factors of both products, three bfloat16 an
//! element: by columns for the weight's gradient, by rows for the input's.

use super::super::amx::{depths, group_bytes, planes, GROUP};
use super::super::element::Element;
use super::super::panels::Matrix;

const PLANES: usize = planes::count(Element::F32);

/// What is read, and what is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Split {
    /// `[rows, n]`.
    pub grad: Matrix,
    /// What the ReLU returned, dense; null for no mask.
    pub output: *const f32,
    /// `amx::left`'s blocks with columns as rows; null for none.
    pub by_columns: *mut u8,
    /// The same of the rows; null for none.
    pub by_rows: *mut u8,
    /// `[n]`, the sum of all rows; null for none.
    pub sums: *mut f32,
}

/// Bytes of the blocks of so many rows of so many elements.
pub fn bytes(rows: usize, k: usize) -> usize {
    rows.div_ceil(GROUP) * group_bytes(PLANES, depths(k))
}

impl Split {
    /// One for every 32 columns, or none where nothing is wanted.
    pub fn tasks(&self) -> usize {
        let nothing = self.by_columns.is_null() && self.by_rows.is_null() && self.sums.is_null();
        if nothing {
            0
        } else {
            depths(self.grad.k)
        }
    }

    /// # Safety
    /// Addresses are valid for their shapes; no other thread accesses what this task
    /// writes; the CPU has AMX.
    pub unsafe fn run(&self, task: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: forwarded; who has AMX has AVX-512.
        unsafe {
            self.avx512(task);
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("AMX is x86-64's: {task}");
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;
