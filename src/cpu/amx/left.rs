//! The left factor in tiles, `[group of 16 rows][depth][plane][row][32 of k]`. With one
//! plane a row of a tile is 32 neighbours; with more its pairs are 16 of k apart, as
//! two vectors have them.

use std::arch::x86_64::*;
use std::ops::Range;

use super::planes::store;
use super::{group_bytes, DEPTH, GROUP, ROW, STEPS, TILE};
use crate::cpu::avx512::load;
use crate::cpu::element::{bf16_widened, Element};
use crate::cpu::panels::{Matrix, VECTOR};

/// Where the tiles of the left factor lie.
#[derive(Debug, Clone, Copy)]
pub struct Tiled {
    /// The first one of the first 16 rows; with more planes their tiles follow it.
    pub at: *const u8,
    /// Bytes from one row to the next.
    pub row: usize,
    /// Bytes to the next 16 rows.
    pub group: usize,
    /// Bytes from one depth to the next.
    pub step: usize,
    /// So many depths lie like that. Of a copy that is read once, while it is made, only
    /// these are kept: the next one takes the first one's place.
    pub whole: usize,
    /// Of bfloat16 where it lies the last depth may not reach its end: tiles of that one.
    pub rest: *const u8,
}

impl Tiled {
    /// Blocks as [`copy_rows`] writes them, of so many depths.
    #[must_use]
    pub fn blocks(at: *const u8, planes: usize, depths: usize) -> Self {
        let group = group_bytes(planes, depths);
        Self { at, row: ROW, group, step: planes * TILE, whole: depths, rest: std::ptr::null() }
    }

    /// Tiles of bfloat16 as they lie: of `rows`, whole groups, k from `depth` on; `rest` as
    /// above, for a depth behind the last whole one.
    ///
    /// # Safety
    /// The rows exist.
    #[must_use]
    pub unsafe fn in_place(
        source: &Matrix,
        rows: Range<usize>,
        depth: usize,
        rest: *const u8,
    ) -> Self {
        debug_assert!(rows.len().is_multiple_of(GROUP) && rows.end <= source.rows);
        // SAFETY: the caller's promise.
        let at = unsafe { source.row(rows.start) }.wrapping_add(depth * ROW);
        let row = source.stride * source.element.size();
        let whole = source.k / DEPTH - depth;
        Self { at, row, group: GROUP * row, step: ROW, whole, rest }
    }
}

/// One depth of the rows `rows` of a matrix, of those from `first` on, to their places in
/// the blocks at `to`, whose groups are `group` bytes apart; zeros behind the matrix's k.
///
/// # Safety
/// The rows exist, `to` has room for them and is aligned to 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn copy_rows<const P: usize>(
    source: &Matrix,
    first: usize,
    rows: Range<usize>,
    depth: usize,
    to: *mut u8,
    group: usize,
) {
    let column = depth * DEPTH;
    let elements = (source.k - column).min(DEPTH);
    for row in rows {
        let place = row - first;
        // SAFETY: the row exists, and so many elements of it from `column` on.
        unsafe {
            let at = source.row(row).add(column * source.element.size());
            let to = to.add(place / GROUP * group + place % GROUP * ROW);
            store_row::<P>(source.element, at, elements, to, TILE);
        }
    }
}

/// Pairs of `elements` elements (at most 32) at an address, zeros behind them, a plane
/// `apart` bytes from the other: with one plane bfloat16 as they lie, else 16 of k apart.
///
/// # Safety
/// They can be read; there is room for a vector at each place, aligned to 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn store_row<const P: usize>(
    element: Element,
    at: *const u8,
    elements: usize,
    to: *mut u8,
    apart: usize,
) {
    // SAFETY: masks keep to the elements; nothing is read where none is left.
    unsafe {
        if P == 1 {
            let mask = (1u64 << elements) - 1;
            _mm512_store_si512(to.cast(), _mm512_maskz_loadu_epi16(mask as u32, at.cast()));
        } else if elements == DEPTH && element == Element::F32 {
            let (first, second) = (at.cast::<f32>(), at.cast::<f32>().add(VECTOR));
            store::<P>(_mm512_loadu_ps(first), _mm512_loadu_ps(second), to, apart);
        } else {
            let first = load(element, at, elements.min(VECTOR));
            let behind = at.wrapping_add(VECTOR * element.size());
            let second = load(element, behind, elements.saturating_sub(VECTOR));
            store::<P>(first, second, to, apart);
        }
    }
}

/// The numbers that the three planes of a row of fp32 make up, whose first tile's row
/// `from` is.
///
/// # Safety
/// The row has `k`, `out` room for as many.
pub unsafe fn joined_row(from: *const u8, k: usize, out: *mut f32) {
    const PLANES: usize = 3;
    for i in 0..k {
        let (depth, place) = (i / DEPTH, i % DEPTH);
        let half = 2 * (2 * (place % STEPS) + place / STEPS);
        // SAFETY: the row has this depth, two bytes a number in each plane.
        unsafe {
            let read = |plane: usize| {
                let at = from.add((depth * PLANES + plane) * TILE + half);
                bf16_widened(*at.cast::<u16>())
            };
            *out.add(i) = read(2) + read(1) + read(0);
        }
    }
}
