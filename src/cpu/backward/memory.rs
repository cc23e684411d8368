//! What a product copies before it multiplies, and what becomes of its sums.

use super::super::isa::Isa;
use super::super::panels::VECTOR;
use super::super::tile::{Sums, LANES};

/// Rows that AVX-512 fetches ahead: each is in a page of its own, which the CPU does not
/// foresee (AVX2: no difference).
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 16;

/// Some columns of so many rows: panels of [`LANES`] one behind the other, the last one
/// dense but for zeros up to a whole vector. All panels row by row: neighbours in memory
/// and in a page, most of which are in no cache.
///
/// # Safety
/// They can be read, `own` has room; the CPU has `isa`.
pub unsafe fn copy(
    isa: Isa,
    from: *const f32,
    stride: usize,
    rows: usize,
    columns: usize,
    own: *mut f32,
) {
    // SAFETY: forwarded.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => copy_avx512(from, stride, rows, columns, own),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if columns.is_multiple_of(LANES) => {
                copy_avx2(from, stride, rows, columns, own);
            }
            _ => copy_portable(from, stride, rows, columns, own),
        }
    }
}

/// # Safety
/// As for `copy`.
unsafe fn copy_portable(
    from: *const f32,
    stride: usize,
    rows: usize,
    columns: usize,
    own: *mut f32,
) {
    for row in 0..rows {
        for first in (0..columns).step_by(LANES) {
            let columns = (columns - first).min(LANES);
            let width = columns.next_multiple_of(VECTOR);
            // SAFETY: the caller's promise.
            unsafe {
                let out = own.add(first * rows + row * width);
                std::ptr::copy_nonoverlapping(from.add(row * stride + first), out, columns);
                std::ptr::write_bytes(out.add(columns), 0, width - columns);
            }
        }
    }
}

/// # Safety
/// As for `copy`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn copy_avx512(from: *const f32, stride: usize, rows: usize, columns: usize, own: *mut f32) {
    use super::super::avx512::first_lanes;
    use std::arch::x86_64::*;
    for row in 0..rows {
        for first in (0..columns).step_by(LANES) {
            let columns = (columns - first).min(LANES);
            let width = columns.next_multiple_of(VECTOR);
            let ahead = from.wrapping_add((row + AHEAD) * stride + first);
            // SAFETY: the masks keep to the columns; `own` has whole vectors; a prefetch may
            // have any address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(VECTOR).cast());
                let (from, out) = (from.add(row * stride + first), own.add(first * rows));
                let out = out.add(row * width);
                let lower = first_lanes(columns.min(VECTOR));
                _mm512_storeu_ps(out, _mm512_maskz_loadu_ps(lower, from));
                if width > VECTOR {
                    let upper = first_lanes(columns - VECTOR);
                    let vector = _mm512_maskz_loadu_ps(upper, from.add(VECTOR));
                    _mm512_storeu_ps(out.add(VECTOR), vector);
                }
            }
        }
    }
}

/// The same of whole panels.
///
/// # Safety
/// As for `copy`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn copy_avx2(from: *const f32, stride: usize, rows: usize, columns: usize, own: *mut f32) {
    use std::arch::x86_64::*;
    for row in 0..rows {
        for first in (0..columns).step_by(LANES) {
            for column in (0..LANES).step_by(8) {
                // SAFETY: the row exists, `own` has room for it.
                unsafe {
                    let vector = _mm256_loadu_ps(from.add(row * stride + first + column));
                    _mm256_storeu_ps(own.add(first * rows + row * LANES + column), vector);
                }
            }
        }
    }
}

/// Where a tile's sums go.
pub struct Store {
    /// What is written.
    pub result: *mut f32,
    /// Where it is not above zero the result is zero, NaN apart. Null for no mask.
    pub output: *const f32,
    /// From one row to the next, of both.
    pub stride: usize,
    /// Rows of the tile.
    pub rows: usize,
    /// Columns of the tile.
    pub columns: usize,
    /// Whether sums are added to what is there.
    pub adds: bool,
}

impl Store {
    /// Whether nothing that is there is read.
    pub fn only_writes(&self) -> bool {
        !self.adds && self.output.is_null()
    }

    /// Brings near what `run` will write to, and reads, while sums are computed: results
    /// are in no cache yet (AVX2: 13 % of a backward pass waited for them; AMX: 2 to 6 %).
    #[cfg(target_arch = "x86_64")]
    pub fn soon(&self) {
        use std::arch::x86_64::*;
        for row in 0..self.rows {
            for column in (0..self.columns).step_by(VECTOR) {
                let place = row * self.stride + column;
                // SAFETY: a prefetch may have any address; SSE is in every x86-64 CPU.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(self.result.wrapping_add(place).cast());
                    if !self.output.is_null() {
                        _mm_prefetch::<_MM_HINT_T0>(self.output.wrapping_add(place).cast());
                    }
                }
            }
        }
    }

    /// # Safety
    /// Rows and columns exist, no other thread accesses them; the CPU has `isa`.
    pub unsafe fn run(&self, isa: Isa, sums: &Sums) {
        // SAFETY: forwarded.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => self.avx512(sums),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => self.avx2(sums),
                _ => self.portable(sums),
            }
        }
    }

    /// # Safety
    /// As for `run`.
    unsafe fn portable(&self, sums: &Sums) {
        for (row, sums) in sums.0.iter().enumerate().take(self.rows) {
            for (column, sum) in sums.iter().enumerate().take(self.columns) {
                let place = row * self.stride + column;
                // SAFETY: the caller's promise.
                unsafe {
                    let to = self.result.add(place);
                    // A product that underflows leaves -0 in an FMA, 0 in a sum.
                    let value = sum + if self.adds { *to } else { 0.0 };
                    let masked = !self.output.is_null() && *self.output.add(place) <= 0.0;
                    *to = if masked { 0.0 } else { value };
                }
            }
        }
    }

    /// # Safety
    /// As for `run`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(&self, sums: &Sums) {
        use super::super::avx2::{load_first, masked_by_relu, store_first, EIGHT};
        use std::arch::x86_64::*;
        let zero = _mm256_setzero_ps();
        for (row, sums) in sums.0.iter().enumerate().take(self.rows) {
            for column in (0..self.columns).step_by(EIGHT) {
                let lanes = (self.columns - column).min(EIGHT);
                let place = row * self.stride + column;
                // SAFETY: so many columns from this one on; a row of sums has `LANES`.
                unsafe {
                    let to = self.result.add(place);
                    // Zeros too: see `portable`. A masked load of no lanes waits for
                    // memory all the same (5 to 10 % of a backward pass).
                    let before = if self.adds { load_first(to, lanes) } else { zero };
                    let mut value = _mm256_loadu_ps(sums.as_ptr().add(column));
                    value = _mm256_add_ps(before, value);
                    if !self.output.is_null() {
                        value = masked_by_relu(value, load_first(self.output.add(place), lanes));
                    }
                    store_first(to, value, lanes);
                }
            }
        }
    }

    /// # Safety
    /// As for `run`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512(&self, sums: &Sums) {
        use super::super::avx512::{first_lanes, passes_relu};
        use std::arch::x86_64::*;
        for (row, sums) in sums.0.iter().enumerate().take(self.rows) {
            for column in (0..self.columns).step_by(VECTOR) {
                let lanes = first_lanes((self.columns - column).min(VECTOR));
                let place = row * self.stride + column;
                // SAFETY: the mask keeps to the columns; a row of sums has two vectors.
                unsafe {
                    let to = self.result.add(place);
                    // Zeros too: see `portable`. As in AVX2, a masked load of no lanes
                    // would wait for memory.
                    let before = match self.adds {
                        true => _mm512_maskz_loadu_ps(lanes, to),
                        false => _mm512_setzero_ps(),
                    };
                    let mut value = _mm512_loadu_ps(sums.as_ptr().add(column));
                    value = _mm512_add_ps(before, value);
                    if !self.output.is_null() {
                        let y = _mm512_maskz_loadu_ps(lanes, self.output.add(place));
                        value = _mm512_maskz_mov_ps(passes_relu(y), value);
                    }
                    _mm512_mask_storeu_ps(to, lanes, value);
                }
            }
        }
    }
}
