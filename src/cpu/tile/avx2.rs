//! The tile in AVX2: sixteen registers, so parts of six rows and sixteen lanes.

use std::arch::x86_64::*;

use super::{Factors, Sums};

/// Most rows of a part: with two vectors of lanes that is 12 sums, three registers
/// for the operands.
const PART_ROWS: usize = 6;
/// Lanes of a part.
const PART_LANES: usize = 16;

/// Steps in which all parts take their turn, so that what they read stays in the
/// second-level cache (256 steps: 0.98 to 1 times as fast, 128: 0.95 to 1).
const BLOCK: usize = 512;

/// Steps that the lanes' factors are fetched ahead.
const AHEAD: usize = 16;
/// Bytes of what is read soon that are fetched with each step: the parts of a tile
/// together fetch a third more than its rows have.
const SOON: usize = 16;

/// # Safety
/// As for `tile::run`; the CPU has AVX2 and FMA.
pub unsafe fn fma(rows: usize, lanes: usize, factors: &Factors, sums: &mut Sums) {
    // A prefetch of an address without memory costs a walk through the page tables.
    let mut soon = if factors.soon.is_null() { factors.v.cast() } else { factors.soon };
    // Parts of about as many rows: a few alone could not hide an FMA's latency.
    let parts = rows.div_ceil(PART_ROWS);
    for step in (0..factors.depth.max(1)).step_by(BLOCK) {
        let depth = (factors.depth - step).min(BLOCK);
        for lane in (0..lanes).step_by(PART_LANES) {
            for part in 0..parts {
                let (first, end) = (part * rows / parts, (part + 1) * rows / parts);
                // SAFETY: rows, lanes and steps of the tile.
                unsafe {
                    let factors = Factors {
                        soon,
                        p: factors.p.add(first * factors.row + step * factors.step),
                        v: factors.v.add(step * factors.v_step + lane),
                        depth,
                        ..*factors
                    };
                    let sums = sums.0[first].as_mut_ptr().add(lane);
                    let run = match end - first {
                        1 => sum::<1>,
                        2 => sum::<2>,
                        3 => sum::<3>,
                        4 => sum::<4>,
                        5 => sum::<5>,
                        _ => sum::<6>,
                    };
                    run(&factors, sums, step > 0);
                }
                soon = soon.wrapping_add(SOON * depth);
            }
        }
    }
}

/// # Safety
/// As for `fma`, with `M` rows and 16 lanes, whose sums are `super::LANES` apart.
/// Goes on from what the sums are, or from zero.
#[target_feature(enable = "avx2,fma")]
unsafe fn sum<const M: usize>(factors: &Factors, sums: *mut f32, goes_on: bool) {
    let (mut p, mut v, mut soon) = (factors.p, factors.v, factors.soon);
    let mut acc = [[_mm256_setzero_ps(); 2]; M];
    // SAFETY: steps, rows and lanes are in bounds, by the caller's promise.
    unsafe {
        if goes_on {
            for (m, acc) in acc.iter_mut().enumerate() {
                for (n, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_loadu_ps(sums.add(m * super::LANES + 8 * n));
                }
            }
        }
        for _ in 0..factors.depth {
            _mm_prefetch::<_MM_HINT_T0>(soon.cast());
            soon = soon.wrapping_add(SOON);
            let b = [_mm256_loadu_ps(v), _mm256_loadu_ps(v.add(8))];
            _mm_prefetch::<_MM_HINT_T0>(v.wrapping_add(AHEAD * factors.v_step).cast());
            for (m, acc) in acc.iter_mut().enumerate() {
                let a = _mm256_set1_ps(p.add(m * factors.row).cast::<f32>().read_unaligned());
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm256_fmadd_ps(a, b, *acc);
                }
            }
            p = p.add(factors.step);
            v = v.add(factors.v_step);
        }
        for (m, acc) in acc.iter().enumerate() {
            for (n, acc) in acc.iter().enumerate() {
                _mm256_storeu_ps(sums.add(m * super::LANES + 8 * n), *acc);
            }
        }
    }
}
