//! The innermost product: sums of up to 32 rows and 32 lanes, in four tiles from the
//! first step to the last, operands in the other four.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::left::copy_rows;
use super::{GROUP, ROW, ROWS, STEPS, TILE};
use crate::cpu::panels::{Matrix, VECTOR};
use crate::cpu::tile::LANES;

/// Where the factors lie.
#[derive(Debug, Clone, Copy)]
pub struct Factors {
    /// bfloat16 an element, 1 to 3.
    pub planes: usize,
    /// `left`'s blocks of the first 16 rows: `[depth][plane]`, a tile each.
    pub left: *const u8,
    /// Bytes to those of the next 16 rows.
    pub group: usize,
    /// `right`'s panel from the same depth on.
    pub right: *const f32,
    /// Its width, 16 or 32 lanes.
    pub width: usize,
    /// How many tiles of k.
    pub depths: usize,
    /// Of these, how many `left` has room for: the next one takes the first one's place.
    pub kept: usize,
}

/// Rows that are copied to `left`'s blocks while they are multiplied for the first
/// time: what the tiles leave of the core does the copying.
#[derive(Debug, Clone, Copy)]
pub struct Copied<'a> {
    /// The left factor as it lies.
    pub source: &'a Matrix,
    /// Rows of it, as many as are multiplied.
    pub first: usize,
    /// The first depth.
    pub depth: usize,
    /// Where `Factors::left` points to.
    pub to: *mut u8,
}

/// Tiles of k that are summed up from zero before they join the sum: its error grows with
/// their number and with the number of such parts, as that of a product in blocks does.
const fn summed(planes: usize) -> usize {
    match planes {
        1 => 96,
        2 => 24,
        _ => 16,
    }
}

/// One part's sums.
#[repr(align(64))]
struct Part(MaybeUninit<[f32; ROWS * LANES]>);

/// Sums of `rows` rows and the panel's lanes, added to what is there if `goes_on`. Of
/// every 16 rows all are written.
///
/// # Safety
/// Factors and sums (rows of [`LANES`]) are valid for their shapes, `copied` too;
/// `1 <= rows <= ROWS`, at least one depth; this thread has `Tiles`.
pub unsafe fn run(
    factors: &Factors,
    rows: usize,
    copied: Option<Copied>,
    sums: *mut f32,
    goes_on: bool,
) {
    debug_assert!((1..=ROWS).contains(&rows) && factors.depths > 0);
    debug_assert!(factors.width == VECTOR || factors.width == LANES);
    let mut part = Part(MaybeUninit::uninit());
    let most = summed(factors.planes);
    for first in (0..factors.depths).step_by(most) {
        let depths = first..(first + most).min(factors.depths);
        let adds = goes_on || first > 0;
        let to = if adds { part.0.as_mut_ptr().cast() } else { sums };
        // SAFETY: forwarded; `part` has room for all sums.
        unsafe {
            let product = match (rows > GROUP, factors.width == LANES, factors.planes) {
                (true, true, 1) => two_by_two::<1>,
                (true, true, 2) => two_by_two::<2>,
                (true, true, _) => two_by_two::<3>,
                (true, false, 1) => two_by_one::<1>,
                (true, false, 2) => two_by_one::<2>,
                (true, false, _) => two_by_one::<3>,
                (false, true, 1) => one_by_two::<1>,
                (false, true, 2) => one_by_two::<2>,
                (false, true, _) => one_by_two::<3>,
                (false, false, 1) => one_by_one::<1>,
                (false, false, 2) => one_by_one::<2>,
                (false, false, _) => one_by_one::<3>,
            };
            product(factors, depths, rows, copied, to);
            if adds {
                add(rows, factors.width, to, sums);
            }
        }
    }
}

/// Adds one part's sums to all.
///
/// # Safety
/// Both have the rows, and lanes in whole vectors.
#[target_feature(enable = "avx512f")]
unsafe fn add(rows: usize, width: usize, part: *const f32, sums: *mut f32) {
    for (row, lane) in (0..rows).flat_map(|row| [(row, 0), (row, VECTOR)]) {
        if lane < width {
            // SAFETY: the caller's promise.
            unsafe {
                let (part, sum) = (part.add(row * LANES + lane), sums.add(row * LANES + lane));
                _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), _mm512_loadu_ps(part)));
            }
        }
    }
}

/// Sums are tiles 0 to 3, two of left rows by two of lanes; the left factor is in 4 and
/// 5, the right one in 6 and 7. Compilers know of no tiles and leave them alone.
macro_rules! shape {
    ($name:ident, $m:literal, $n:literal, $left:expr, $right:expr, $multiply:expr,
     $store:expr) => {
        /// # Safety
        /// As for `run`, of this shape.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn $name<const P: usize>(
            factors: &Factors,
            summed: Range<usize>,
            rows: usize,
            copied: Option<Copied>,
            sums: *mut f32,
        ) {
            let pitch = 4 * LANES;
            let width = $n * VECTOR;
            let Factors { depths, kept, .. } = *factors;
            // SAFETY: reads and writes what the caller describes; tiles are nobody
            // else's.
            unsafe {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                     options(nostack, nomem));
                // The first depth is copied before, each other one meanwhile.
                let copy = |depth: usize, rows: Range<usize>| {
                    if let Some(Copied { source, first, depth: begin, to }) = copied {
                        let to = to.wrapping_add(depth % kept * P * TILE);
                        let rows = first + rows.start..first + rows.end;
                        copy_rows::<P>(source, first, rows, begin + depth, to, factors.group);
                    }
                };
                if summed.start == 0 {
                    copy(0, 0..rows);
                }
                for depth in summed {
                    let right = factors.right.wrapping_add(depth * P * STEPS * width);
                    let left = factors.left.wrapping_add(depth % kept * P * TILE);
                    let below = left.wrapping_add(factors.group);
                    // One plane by one plane, loaded where it is not there still; and
                    // a part of the rows of the next depth.
                    macro_rules! step {
                        ($i:literal of $steps:literal, $l:expr, $r:expr) => {
                            if let Some(plane) = $l {
                                let plane: usize = plane;
                                asm!($left, at = in(reg) left.wrapping_add(plane * TILE),
                                     below = in(reg) below.wrapping_add(plane * TILE),
                                     row = in(reg) ROW, options(nostack, readonly));
                            }
                            if let Some(plane) = $r {
                                let plane: usize = plane;
                                asm!($right,
                                     at = in(reg) right.wrapping_add(plane * STEPS * width),
                                     step = in(reg) 4 * width, options(nostack, readonly));
                            }
                            asm!($multiply, options(nostack, nomem));
                            if copied.is_some() && depth + 1 < depths {
                                const PART: usize = ROWS.div_ceil($steps);
                                copy(depth + 1, $i * PART..rows.min(($i + 1) * PART));
                            }
                        };
                    }
                    // The largest come last, so that one rounding is of the whole sum
                    // where there is one depth alone.
                    match P {
                        1 => {
                            step!(0 of 1, Some(0), Some(0));
                        }
                        2 => {
                            step!(0 of 4, Some(1), Some(0));
                            step!(1 of 4, None, Some(1));
                            step!(2 of 4, Some(0), None);
                            step!(3 of 4, None, Some(0));
                        }
                        _ => {
                            step!(0 of 6, Some(2), Some(0));
                            step!(1 of 6, Some(1), None);
                            step!(2 of 6, None, Some(1));
                            step!(3 of 6, Some(0), None);
                            step!(4 of 6, None, Some(2));
                            step!(5 of 6, None, Some(0));
                        }
                    }
                }
                asm!($store, at = in(reg) sums, pitch = in(reg) pitch, options(nostack));
            }
        }
    };
}

shape!(
    two_by_two,
    2,
    2,
    "tileloadd tmm4, [{at} + {row}*1]
     tileloadd tmm5, [{below} + {row}*1]",
    "tileloadd tmm6, [{at} + {step}*1]
     tileloadd tmm7, [{at} + {step}*1 + 64]",
    "tdpbf16ps tmm0, tmm4, tmm6
     tdpbf16ps tmm1, tmm4, tmm7
     tdpbf16ps tmm2, tmm5, tmm6
     tdpbf16ps tmm3, tmm5, tmm7",
    "tilestored [{at} + {pitch}*1], tmm0
     tilestored [{at} + {pitch}*1 + 64], tmm1
     tilestored [{at} + {pitch}*1 + 2048], tmm2
     tilestored [{at} + {pitch}*1 + 2112], tmm3"
);
shape!(
    two_by_one,
    2,
    1,
    "tileloadd tmm4, [{at} + {row}*1]
     tileloadd tmm5, [{below} + {row}*1]",
    "tileloadd tmm6, [{at} + {step}*1]",
    "tdpbf16ps tmm0, tmm4, tmm6
     tdpbf16ps tmm2, tmm5, tmm6",
    "tilestored [{at} + {pitch}*1], tmm0
     tilestored [{at} + {pitch}*1 + 2048], tmm2"
);
shape!(
    one_by_two,
    1,
    2,
    "tileloadd tmm4, [{at} + {row}*1] # {below}",
    "tileloadd tmm6, [{at} + {step}*1]
     tileloadd tmm7, [{at} + {step}*1 + 64]",
    "tdpbf16ps tmm0, tmm4, tmm6
     tdpbf16ps tmm1, tmm4, tmm7",
    "tilestored [{at} + {pitch}*1], tmm0
     tilestored [{at} + {pitch}*1 + 64], tmm1"
);
shape!(
    one_by_one,
    1,
    1,
    "tileloadd tmm4, [{at} + {row}*1] # {below}",
    "tileloadd tmm6, [{at} + {step}*1]",
    "tdpbf16ps tmm0, tmm4, tmm6",
    "tilestored [{at} + {pitch}*1], tmm0"
);
