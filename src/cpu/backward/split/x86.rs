//! The pass in AVX-512.

use std::arch::x86_64::*;

use super::super::super::amx::planes::store;
use super::super::super::amx::{depths, group_bytes, DEPTH, GROUP, ROW, TILE};
use super::super::super::avx512::{first_lanes, passes_relu, turn};
use super::super::super::panels::{Matrix, VECTOR};
use super::super::columns::BLOCK;
use super::{Split, PLANES};

impl Split {
    /// # Safety
    /// As for `run`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn avx512(&self, task: usize) {
        let Matrix { rows, k: n, .. } = self.grad;
        let column = task * DEPTH;
        let zero = _mm512_setzero_ps();
        let (mut sums, mut blocks) = ([zero; 2], [zero; 2]);
        for depth in 0..depths(rows) {
            // Both halves of 32 columns for 32 rows, zeros behind the last.
            let mut values = [[zero; 2]; DEPTH];
            let first = depth * DEPTH;
            for (i, halves) in values.iter_mut().enumerate().take(rows - first) {
                for (half, value) in halves.iter_mut().enumerate() {
                    // SAFETY: the row exists, masks keep to its columns.
                    *value = unsafe { self.masked(first + i, column + half * VECTOR) };
                    blocks[half] = _mm512_add_ps(blocks[half], *value);
                }
                if (first + i + 1).is_multiple_of(BLOCK) {
                    for (sum, block) in sums.iter_mut().zip(&mut blocks) {
                        *sum = _mm512_add_ps(*sum, std::mem::replace(block, zero));
                    }
                }
            }
            // SAFETY: forwarded.
            unsafe {
                if !self.by_rows.is_null() {
                    self.store_rows(first, task, &values);
                }
                if !self.by_columns.is_null() {
                    self.store_columns(depth, column, &values);
                }
            }
        }
        if !self.sums.is_null() {
            for half in 0..2 {
                let column = column + half * VECTOR;
                let mask = first_lanes(n.saturating_sub(column).min(VECTOR));
                let sum = _mm512_add_ps(sums[half], blocks[half]);
                // SAFETY: the mask keeps to the columns.
                unsafe { _mm512_mask_storeu_ps(self.sums.wrapping_add(column), mask, sum) };
            }
        }
    }

    /// Up to sixteen columns of a row, zeros behind them.
    ///
    /// # Safety
    /// The row exists.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn masked(&self, row: usize, column: usize) -> __m512 {
        let n = self.grad.k;
        let mask = first_lanes(n.saturating_sub(column).min(VECTOR));
        // SAFETY: masks keep to the columns.
        unsafe {
            let value = self.grad.row(row).cast::<f32>().wrapping_add(column);
            let value = _mm512_maskz_loadu_ps(mask, value);
            if self.output.is_null() {
                return value;
            }
            let y = _mm512_maskz_loadu_ps(mask, self.output.wrapping_add(row * n + column));
            _mm512_maskz_mov_ps(passes_relu(y), value)
        }
    }

    /// # Safety
    /// As for `run`.
    #[target_feature(enable = "avx512f")]
    unsafe fn store_rows(&self, first: usize, depth: usize, values: &[[__m512; 2]; DEPTH]) {
        let all = depths(self.grad.k);
        let rows = self.grad.rows.next_multiple_of(GROUP) - first;
        for (i, [lower, upper]) in values.iter().enumerate().take(rows) {
            let row = first + i;
            // SAFETY: a row of a whole group.
            unsafe {
                let at = self.by_rows.add(row / GROUP * group_bytes(PLANES, all));
                let at = at.add(depth * PLANES * TILE + row % GROUP * ROW);
                store::<PLANES>(*lower, *upper, at, TILE);
            }
        }
    }

    /// # Safety
    /// As for `run`.
    #[target_feature(enable = "avx512f")]
    unsafe fn store_columns(&self, depth: usize, column: usize, values: &[[__m512; 2]; DEPTH]) {
        let all = depths(self.grad.rows);
        for (half, column) in [column, column + VECTOR].into_iter().enumerate() {
            if column >= self.grad.k {
                break;
            }
            let lower = turn(std::array::from_fn(|i| values[i][half]));
            let upper = turn(std::array::from_fn(|i| values[GROUP + i][half]));
            for i in 0..GROUP {
                // SAFETY: a column of a whole group.
                unsafe {
                    let at = self.by_columns.add(column / GROUP * group_bytes(PLANES, all));
                    let at = at.add(depth * PLANES * TILE + i * ROW);
                    store::<PLANES>(lower[i], upper[i], at, TILE);
                }
            }
        }
    }
}
