//! The innermost product: sums of up to 32 rows and 32 lanes, in four tiles from the
//! first step to the last, operands in the other four.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::left::{copy_rows, Tiled};
use super::{depth_words, GROUP, ROW, ROWS, TILE};
use crate::cpu::panels::{Matrix, VECTOR};
use crate::cpu::tile::LANES;

/// Where the factors lie.
#[derive(Debug, Clone, Copy)]
pub struct Factors {
    /// bfloat16 an element, 1 to 3.
    pub planes: usize,
    /// The left factor.
    pub left: Tiled,
    /// `right`'s panel from the same depth on.
    pub right: *const f32,
    /// Its width, 16 or 32 lanes.
    pub width: usize,
    /// How many tiles of k.
    pub depths: usize,
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
    /// Where `Factors::left` begins, its blocks.
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

/// What a depth of both factors is multiplied by: the largest products come last, so that
/// one rounding is of the whole sum where there is one depth alone.
macro_rules! depth {
    (1, $l:ident, $r:ident, $m:ident) => {
        concat!($l!(0), $r!(0), $m!())
    };
    (2, $l:ident, $r:ident, $m:ident) => {
        concat!($l!(1), $r!(0), $m!(), $r!(1), $m!(), $l!(0), $m!(), $r!(0), $m!())
    };
    (3, $l:ident, $r:ident, $m:ident) => {
        concat!(
            $l!(2),
            $r!(0),
            $m!(),
            $l!(1),
            $m!(),
            $r!(1),
            $m!(),
            $l!(0),
            $m!(),
            $r!(2),
            $m!(),
            $r!(0),
            $m!()
        )
    };
}

macro_rules! left_one {
    ($plane:literal) => {
        concat!("tileloadd tmm4, [{left} + {row}*1 + ", $plane, "*1024]\n")
    };
}
macro_rules! left_two {
    ($plane:literal) => {
        concat!(left_one!($plane), "tileloadd tmm5, [{below} + {row}*1 + ", $plane, "*1024]\n")
    };
}
macro_rules! right_one {
    ($plane:literal) => {
        concat!("tileloadd tmm6, [{right} + {pair}*1 + ", $plane, "*1024]\n")
    };
}
macro_rules! right_two {
    ($plane:literal) => {
        concat!(
            "tileloadd tmm6, [{right} + {pair}*1 + ",
            $plane,
            "*2048]\n",
            "tileloadd tmm7, [{right} + {pair}*1 + ",
            $plane,
            "*2048 + 64]\n"
        )
    };
}
macro_rules! one_by_one {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\n"
    };
}
macro_rules! one_by_two {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\n"
    };
}
macro_rules! two_by_one {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm2, tmm5, tmm6\n"
    };
}
macro_rules! two_by_two {
    () => {
        concat!(one_by_two!(), "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7\n")
    };
}

/// Sums are tiles 0 to 3, two of left rows by two of lanes; the left factor is in 4 and
/// 5, the right one in 6 and 7. Compilers know of no tiles and leave them alone.
macro_rules! shape {
    ($name:ident, $n:literal, $left:ident, $right:ident, $multiply:ident, $store:expr) => {
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
            const WIDTH: usize = $n * VECTOR;
            let tiled = factors.left;
            // So many depths of the left factor from an address on.
            let multiply = |left: *const u8, row: usize, group: usize, depths: Range<usize>| {
                macro_rules! multiply {
                    ($planes:tt) => {
                        // SAFETY: reads what the caller describes; tiles are nobody else's.
                        asm!(
                            "2:",
                            depth!($planes, $left, $right, $multiply),
                            "add {left}, {step}",
                            "add {below}, {step}",
                            "add {right}, {depth}",
                            "dec {count}",
                            "jnz 2b",
                            left = inout(reg) left => _,
                            below = inout(reg) left.wrapping_add(group) => _,
                            row = in(reg) row,
                            step = in(reg) tiled.step,
                            right = inout(reg)
                                factors.right.wrapping_add(depths.start * depth_words(P, WIDTH)) => _,
                            pair = in(reg) 4 * WIDTH,
                            depth = const 4 * depth_words($planes, WIDTH),
                            count = inout(reg) depths.len() => _,
                            options(nostack, readonly)
                        )
                    };
                }
                if depths.is_empty() {
                    return;
                }
                // SAFETY: as above.
                unsafe {
                    match P {
                        1 => multiply!(1),
                        2 => multiply!(2),
                        _ => multiply!(3),
                    }
                }
            };
            // SAFETY: reads and writes what the caller describes.
            unsafe {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                     options(nostack, nomem));
                if let Some(Copied { source, first, depth: begin, to }) = copied {
                    let place = |depth: usize| to.wrapping_add(depth % tiled.whole * P * TILE);
                    let copy = |depth: usize| {
                        let rows = first..first + rows;
                        copy_rows::<P>(source, first, rows, begin + depth, place(depth), tiled.group);
                    };
                    // One ahead: tiles wait for what was stored just now.
                    if summed.start == 0 {
                        copy(0);
                    }
                    for depth in summed {
                        if depth + 1 < factors.depths {
                            copy(depth + 1);
                        }
                        multiply(place(depth), ROW, tiled.group, depth..depth + 1);
                    }
                } else {
                    let whole = summed.start..summed.end.min(tiled.whole);
                    let at = tiled.at.wrapping_add(summed.start * tiled.step);
                    multiply(at, tiled.row, tiled.group, whole);
                    if summed.end > tiled.whole {
                        multiply(tiled.rest, ROW, TILE, tiled.whole..summed.end);
                    }
                }
                asm!($store, at = in(reg) sums, pitch = in(reg) 4 * LANES, options(nostack));
            }
        }
    };
}

shape!(
    two_by_two,
    2,
    left_two,
    right_two,
    two_by_two,
    "tilestored [{at} + {pitch}*1], tmm0
     tilestored [{at} + {pitch}*1 + 64], tmm1
     tilestored [{at} + {pitch}*1 + 2048], tmm2
     tilestored [{at} + {pitch}*1 + 2112], tmm3"
);
shape!(
    two_by_one,
    1,
    left_two,
    right_one,
    two_by_one,
    "tilestored [{at} + {pitch}*1], tmm0
     tilestored [{at} + {pitch}*1 + 2048], tmm2"
);
shape!(
    one_by_two,
    2,
    left_one,
    right_two,
    one_by_two,
    "tilestored [{at} + {pitch}*1], tmm0
     tilestored [{at} + {pitch}*1 + 64], tmm1"
);
shape!(one_by_one, 1, left_one, right_one, one_by_one, "tilestored [{at} + {pitch}*1], tmm0");
