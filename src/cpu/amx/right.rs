//! The right factor in panels of 32 lanes, the last of 16 where that is enough:
//! `[depth][plane][pair][lane]`.

use std::arch::x86_64::*;
use std::ops::Range;

use super::left::store_row;
use super::planes::store;
use super::{depth_words, DEPTH, STEPS};
use crate::cpu::avx512::{first_lanes, turn};
use crate::cpu::panels::{width, Matrix, VECTOR};
use crate::cpu::tile::LANES;

/// Turns rows into lanes: `depths` of panel `panel`, whose address `out` is.
///
/// # Safety
/// The panel's rows exist; `out` has room for all depths of k and is aligned to 64
/// bytes; the CPU has AVX-512.
pub unsafe fn turned(
    planes: usize,
    source: &Matrix,
    panel: usize,
    depths: Range<usize>,
    out: *mut f32,
) {
    // SAFETY: forwarded.
    unsafe {
        match planes {
            1 => turned_planes::<1>(source, panel, depths, out),
            2 => turned_planes::<2>(source, panel, depths, out),
            _ => turned_planes::<3>(source, panel, depths, out),
        }
    }
}

/// # Safety
/// As for [`turned`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn turned_planes<const P: usize>(
    source: &Matrix,
    panel: usize,
    depths: Range<usize>,
    out: *mut f32,
) {
    let width = width(source.rows, panel);
    for place in depths.start * width / VECTOR..depths.end * width / VECTOR {
        let (depth, lane) = (place * VECTOR / width, place * VECTOR % width);
        let first = panel * LANES + lane;
        let mut rows = [[_mm512_setzero_ps(); VECTOR]; P];
        let column = depth * DEPTH;
        for i in 0..source.rows.saturating_sub(first).min(VECTOR) {
            // SAFETY: the row exists, and so many elements of it from `column` on;
            // `rows` has a place for each plane's.
            unsafe {
                let at = source.row(first + i).add(column * source.element.size());
                let to = (&raw mut rows).cast::<__m512>().add(i).cast();
                let elements = (source.k - column).min(DEPTH);
                store_row::<P>(source.element, at, elements, to, size_of_val(&rows[0]));
            }
        }
        let to = out.wrapping_add(depth * depth_words(P, width) + lane);
        for (plane, rows) in rows.into_iter().enumerate() {
            for (step, vector) in turn(rows).into_iter().enumerate() {
                // SAFETY: the panel has this depth, 16 steps of each plane.
                unsafe { _mm512_store_ps(to.add((plane * STEPS + step) * width), vector) };
            }
        }
    }
}

/// Rows as they lie are the factor's k: `columns` of them (at most 32, the lanes) of
/// fp32 `[rows, ..]`, all depths of the rows `rows`, in three planes whose pairs are 16
/// rows apart.
///
/// # Safety
/// Rows and columns exist; `out` has room and is aligned to 64 bytes; the CPU has
/// AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn from_rows(source: &Matrix, rows: Range<usize>, columns: Range<usize>, out: *mut f32) {
    const P: usize = 3;
    let width = columns.len().next_multiple_of(VECTOR);
    for (depth, first) in rows.clone().step_by(DEPTH).enumerate() {
        for step in 0..STEPS {
            for lane in (0..width).step_by(VECTOR) {
                let mask = first_lanes((columns.len() - lane).min(VECTOR));
                let read = |row: usize| {
                    if row >= rows.end {
                        return _mm512_setzero_ps();
                    }
                    // SAFETY: the row exists, the mask keeps to its columns.
                    unsafe {
                        let at = source.row(row).cast::<f32>().add(columns.start + lane);
                        _mm512_maskz_loadu_ps(mask, at)
                    }
                };
                let to = out.wrapping_add(depth * depth_words(P, width) + step * width + lane);
                let (lower, upper) = (read(first + step), read(first + STEPS + step));
                // SAFETY: the panel has this depth and step of each plane.
                unsafe { store::<P>(lower, upper, to.cast(), 4 * STEPS * width) };
            }
        }
    }
}

/// The numbers that two or three planes of a panel make up, `[k][lane]` with as many
/// lanes as the panel.
///
/// # Safety
/// The panel has `k`, `out` as many rows of its width.
#[target_feature(enable = "avx512f")]
pub unsafe fn joined(planes: usize, panel: *const f32, width: usize, k: usize, out: *mut f32) {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for i in 0..k {
        let (depth, place) = (i / DEPTH, i % DEPTH);
        let from = panel.wrapping_add(depth * depth_words(planes, width) + place % STEPS * width);
        for lane in (0..width).step_by(VECTOR) {
            let mut value = _mm512_setzero_ps();
            // The smallest first: exact, as is every sum of neighbours.
            for plane in (0..planes).rev() {
                // SAFETY: the panel has this depth and step of each plane.
                let pairs =
                    unsafe { _mm512_loadu_si512(from.add(plane * STEPS * width + lane).cast()) };
                let bits = if place < STEPS {
                    _mm512_slli_epi32::<16>(pairs)
                } else {
                    _mm512_and_si512(pairs, upper)
                };
                value = _mm512_add_ps(value, _mm512_castsi512_ps(bits));
            }
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(out.add(i * width + lane), value) };
        }
    }
}
