//! The tile in AVX2: sixteen registers, so parts of six rows and sixteen lanes.

use std::arch::x86_64::*;

use super::{Factors, Sums, Target};

/// Most rows of a part: with two vectors of lanes that is 12 sums, three registers
/// for the operands.
const PART_ROWS: usize = 6;
/// Lanes of a part.
const PART_LANES: usize = 16;

/// Steps in which all parts take their turn, so that what they read stays in the
/// first-level cache: a part's lanes are in every other line of it.
const BLOCK: usize = 256;

/// Steps of a loop's round: with one the loop itself costs 3 to 20 % where others use
/// the same core.
const ROUND: usize = 4;

/// # Safety
/// As for `tile::run`; the CPU has AVX2 and FMA.
pub unsafe fn fma(rows: usize, lanes: usize, factors: &Factors, sums: &mut Sums) {
    // One of the two distances is known, which saves registers for addresses.
    // SAFETY: forwarded.
    unsafe {
        if factors.step == FOUR {
            parts::<true>(rows, lanes, factors, sums);
        } else {
            parts::<false>(rows, lanes, factors, sums);
        }
    }
}

/// # Safety
/// As for `fma`; `STEPS` as for `sum`.
unsafe fn parts<const STEPS: bool>(rows: usize, lanes: usize, factors: &Factors, sums: &mut Sums) {
    let to = factors.destination(sums);
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
                        p: factors.p.add(first * factors.row + step * factors.step),
                        v: factors.v.add(step * factors.v_step + lane),
                        depth,
                        ..*factors
                    };
                    let at = to.at.add(first * to.stride + lane);
                    let run = match end - first {
                        1 => sum::<1, STEPS>,
                        2 => sum::<2, STEPS>,
                        3 => sum::<3, STEPS>,
                        4 => sum::<4, STEPS>,
                        5 => sum::<5, STEPS>,
                        _ => sum::<6, STEPS>,
                    };
                    run(&factors, Target { at, ..to }, step > 0);
                }
            }
        }
    }
}

/// Bytes of a factor.
const FOUR: usize = 4;

/// Goes on from what the sums are, or from zero.
///
/// # Safety
/// As for `fma`, with `M` rows and 16 lanes; `STEPS` if a row's steps are beside each
/// other, else the rows of a step are.
#[target_feature(enable = "avx2,fma")]
unsafe fn sum<const M: usize, const STEPS: bool>(factors: &Factors, to: Target, goes_on: bool) {
    let (row, step) = if STEPS { (factors.row, FOUR) } else { (FOUR, factors.step) };
    let (mut p, mut v) = (factors.p, factors.v);
    let mut acc = [[_mm256_setzero_ps(); 2]; M];
    // SAFETY: steps, rows and lanes are in bounds, by the caller's promise.
    unsafe {
        if goes_on {
            for (m, acc) in acc.iter_mut().enumerate() {
                for (n, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_loadu_ps(to.at.add(m * to.stride + 8 * n));
                }
            }
        }
        let mut left = factors.depth;
        while left >= ROUND {
            for k in 0..ROUND {
                add(p.add(k * step), row, v.add(k * factors.v_step), &mut acc);
            }
            (p, v) = (p.add(ROUND * step), v.add(ROUND * factors.v_step));
            left -= ROUND;
        }
        for k in 0..left {
            add(p.add(k * step), row, v.add(k * factors.v_step), &mut acc);
        }
        for (m, acc) in acc.iter().enumerate() {
            for (n, acc) in acc.iter().enumerate() {
                let at = to.at.add(m * to.stride + 8 * n);
                // A product that underflows leaves -0 in an FMA, 0 in a sum.
                let as_it_is = factors.target.is_none();
                let zero = _mm256_setzero_ps();
                _mm256_storeu_ps(at, if as_it_is { *acc } else { _mm256_add_ps(zero, *acc) });
            }
        }
    }
}

/// One step.
///
/// # Safety
/// `M` factors, `row` bytes apart, and 16 lanes can be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add<const M: usize>(p: *const u8, row: usize, v: *const f32, acc: &mut [[__m256; 2]; M]) {
    // SAFETY: the caller's promise.
    unsafe {
        let b = [_mm256_loadu_ps(v), _mm256_loadu_ps(v.add(8))];
        for (m, acc) in acc.iter_mut().enumerate() {
            let a = _mm256_set1_ps(p.add(m * row).cast::<f32>().read_unaligned());
            for (acc, b) in acc.iter_mut().zip(b) {
                *acc = _mm256_fmadd_ps(a, b, *acc);
            }
        }
    }
}
