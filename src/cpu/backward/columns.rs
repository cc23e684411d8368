//! One pass over the gradient of a layer's result: the ReLU's mask, the sums of its
//! columns, and a copy in tiles of columns, `[tile][row][16]`, as the product for the
//! weight reads it.

use std::ops::Range;

use super::super::isa::Isa;
use super::super::panels::Matrix;
use super::super::tile::few_rows;
use super::tile_range;

/// Words from one row of a tile to the next: a cache line.
pub const WIDTH: usize = 16;

/// Rows summed up from zero before they join the sum: the error grows with the
/// blocks and with their length, not with all rows.
pub const BLOCK: usize = 128;

/// What is read, and what is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// The CPU has it.
    pub isa: Isa,
    /// `[rows, n]`.
    pub grad: Matrix,
    /// What the ReLU returned, dense; null for no mask.
    pub output: *const f32,
    /// The copy in tiles; null for none.
    pub tiles: *mut f32,
    /// The masked gradient, dense; null for none.
    pub masked: *mut f32,
    /// `[n]`, the sum of all rows; null for none.
    pub sums: *mut f32,
}

impl Columns {
    /// One a tile, or none where nothing is wanted.
    pub fn tasks(&self) -> usize {
        let nothing = self.tiles.is_null() && self.masked.is_null() && self.sums.is_null();
        if nothing {
            0
        } else {
            self.grad.k.div_ceil(few_rows(self.isa))
        }
    }

    /// # Safety
    /// Addresses are valid for their shapes; no other thread accesses what this tile
    /// writes.
    pub unsafe fn run(&self, tile: usize) {
        let columns = tile_range(self.grad.k, few_rows(self.isa), tile);
        let tiles = if self.tiles.is_null() {
            self.tiles
        } else {
            self.tiles.wrapping_add(tile * self.grad.rows * WIDTH)
        };
        let part = Self { tiles, ..*self };
        // SAFETY: forwarded.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => part.avx512(columns),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => part.avx2(columns),
                _ => part.portable(columns),
            }
        }
    }

    /// # Safety
    /// As for `run`, `tiles` being this tile's.
    unsafe fn portable(&self, columns: Range<usize>) {
        let Matrix { rows, k: n, .. } = self.grad;
        for (place, column) in columns.enumerate() {
            let (mut sum, mut block) = (0.0, 0.0);
            for row in 0..rows {
                // SAFETY: row and column exist in all of them.
                unsafe {
                    let mut value = *self.grad.row(row).cast::<f32>().add(column);
                    // NaN passes, as LibTorch has it.
                    if !self.output.is_null() && *self.output.add(row * n + column) <= 0.0 {
                        value = 0.0;
                    }
                    if !self.tiles.is_null() {
                        *self.tiles.add(row * WIDTH + place) = value;
                    }
                    if !self.masked.is_null() {
                        *self.masked.add(row * n + column) = value;
                    }
                    block += value;
                }
                if (row + 1) % BLOCK == 0 {
                    sum += block;
                    block = 0.0;
                }
            }
            if !self.sums.is_null() {
                // SAFETY: one a column.
                unsafe { *self.sums.add(column) = sum + block };
            }
        }
    }

    /// # Safety
    /// As for `portable`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(&self, columns: Range<usize>) {
        use super::super::avx2::{load_first, masked_by_relu, store_first, EIGHT};
        use std::arch::x86_64::*;
        let Matrix { rows, k: n, .. } = self.grad;
        // Two vectors, the second perhaps of no lanes.
        let first = columns.start;
        let lanes = [columns.len().min(EIGHT), columns.len().saturating_sub(EIGHT)];
        let zero = _mm256_setzero_ps();
        let (mut sums, mut blocks) = ([zero; 2], [zero; 2]);
        for row in 0..rows {
            for (i, (block, lanes)) in blocks.iter_mut().zip(lanes).enumerate() {
                // SAFETY: row and columns exist in all of them, `lanes` of each; a tile
                // has room for whole vectors.
                unsafe {
                    let column = first + i * EIGHT;
                    let from = self.grad.row(row).cast::<f32>().wrapping_add(column);
                    let mut value = load_first(from, lanes);
                    let place = row * n + column;
                    if !self.output.is_null() {
                        let y = load_first(self.output.wrapping_add(place), lanes);
                        value = masked_by_relu(value, y);
                    }
                    if !self.tiles.is_null() {
                        _mm256_storeu_ps(self.tiles.add(row * WIDTH + i * EIGHT), value);
                    }
                    if !self.masked.is_null() {
                        store_first(self.masked.wrapping_add(place), value, lanes);
                    }
                    *block = _mm256_add_ps(*block, value);
                }
            }
            if (row + 1) % BLOCK == 0 {
                for (sum, block) in sums.iter_mut().zip(&mut blocks) {
                    *sum = _mm256_add_ps(*sum, std::mem::replace(block, zero));
                }
            }
        }
        if !self.sums.is_null() {
            for i in 0..2 {
                let all = _mm256_add_ps(sums[i], blocks[i]);
                // SAFETY: one a column.
                unsafe { store_first(self.sums.wrapping_add(first + i * EIGHT), all, lanes[i]) };
            }
        }
    }

    /// # Safety
    /// As for `portable`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512(&self, columns: Range<usize>) {
        use super::super::avx512::{first_lanes, passes_relu};
        use std::arch::x86_64::*;
        let Matrix { rows, k: n, .. } = self.grad;
        let (first, lanes) = (columns.start, first_lanes(columns.len()));
        let zero = _mm512_setzero_ps();
        let (mut sum, mut block) = (zero, zero);
        for row in 0..rows {
            // SAFETY: row and columns exist in all of them; the mask keeps to the
            // columns; a tile has room for whole vectors.
            unsafe {
                let from = self.grad.row(row).cast::<f32>().add(first);
                let mut value = _mm512_maskz_loadu_ps(lanes, from);
                if !self.output.is_null() {
                    let y = _mm512_maskz_loadu_ps(lanes, self.output.add(row * n + first));
                    value = _mm512_maskz_mov_ps(passes_relu(y), value);
                }
                if !self.tiles.is_null() {
                    _mm512_storeu_ps(self.tiles.add(row * WIDTH), value);
                }
                if !self.masked.is_null() {
                    _mm512_mask_storeu_ps(self.masked.add(row * n + first), lanes, value);
                }
                block = _mm512_add_ps(block, value);
            }
            if (row + 1) % BLOCK == 0 {
                sum = _mm512_add_ps(sum, block);
                block = zero;
            }
        }
        if !self.sums.is_null() {
            // SAFETY: one a column.
            unsafe {
                _mm512_mask_storeu_ps(self.sums.add(first), lanes, _mm512_add_ps(sum, block));
            }
        }
    }
}
