//! Sums that are not finite, computed again by FMA from the numbers themselves: where
//! one is infinite its other planes are zero, and infinity times zero is NaN.

use std::arch::x86_64::*;
use std::ops::Range;

use super::left::joined_row;
use super::right::joined;
use super::{GROUP, ROW};
use crate::cpu::element::Element;
use crate::cpu::isa::Isa;
use crate::cpu::panels::{self, Matrix, VECTOR};
use crate::cpu::scratch::Scratch;
use crate::cpu::tile::{self, most_rows, Factors, Math, Sums, Then};

/// A panel of the right factor in two or three planes.
#[derive(Debug, Clone, Copy)]
pub struct Panel {
    /// bfloat16 an element.
    pub planes: usize,
    /// `right`'s.
    pub data: *const f32,
    /// Lanes.
    pub width: usize,
}

/// Rows of the left factor.
#[derive(Debug, Clone)]
pub enum Left<'a> {
    /// As they lie in a matrix.
    Rows(&'a Matrix, Range<usize>),
    /// `left`'s blocks of fp32.
    Blocks(Blocks),
}

/// See [`Left::Blocks`].
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    /// The first row's group.
    pub data: *const u8,
    /// Bytes from one group to the next.
    pub group: usize,
    /// Rows.
    pub rows: usize,
    /// Length of the sums.
    pub k: usize,
}

/// Computes what is not finite again.
///
/// # Safety
/// The rows exist; the panel has all depths of the rows' k; the CPU has AVX-512.
pub unsafe fn finite(left: &Left, panel: &Panel, sums: &mut Sums) {
    let rows = match left {
        Left::Rows(_, rows) => rows.len(),
        Left::Blocks(blocks) => blocks.rows,
    };
    // SAFETY: forwarded.
    unsafe {
        if !all_finite(sums, rows, panel.width) {
            again(left, rows, panel, sums);
        }
    }
}

#[target_feature(enable = "avx512f")]
fn all_finite(sums: &Sums, rows: usize, width: usize) -> bool {
    // Zero times a finite number is zero, times any other NaN.
    let zero = _mm512_setzero_ps();
    let mut zeros = [zero; 4];
    for (row, sums) in sums.0.iter().enumerate().take(rows) {
        for lane in (0..width).step_by(VECTOR) {
            // SAFETY: a row of sums has two vectors.
            let value = unsafe { _mm512_loadu_ps(sums.as_ptr().add(lane)) };
            let zeros = &mut zeros[(row % 2) * 2 + lane / VECTOR];
            *zeros = _mm512_fmadd_ps(value, zero, *zeros);
        }
    }
    let [a, b, c, d] = zeros;
    let all = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
    _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(all, all) == 0
}

/// # Safety
/// As for [`finite`].
#[cold]
unsafe fn again(left: &Left, rows: usize, panel: &Panel, sums: &mut Sums) {
    let Panel { planes, data, width } = *panel;
    let k = match left {
        Left::Rows(matrix, _) => matrix.k,
        Left::Blocks(blocks) => blocks.k,
    };
    let isa = Isa::Avx512;
    let most = most_rows(isa);
    let scratch = Scratch::new(4 * (width * k + most * k));
    let numbers = scratch.address().cast::<f32>();
    let widened = numbers.wrapping_add(width * k);
    // SAFETY: the caller's promise; the scratch memory has both.
    unsafe {
        joined(planes, data, width, k, numbers);
        for first in (0..rows).step_by(most) {
            let part = first..(first + most).min(rows);
            let (p, row) = match left {
                Left::Rows(matrix, rows) if matrix.element == Element::F32 => {
                    (matrix.row(rows.start + first), 4 * matrix.stride)
                }
                Left::Rows(matrix, rows) => {
                    let part = rows.start + part.start..rows.start + part.end;
                    panels::widen(isa, matrix, part, widened, k);
                    (widened.cast_const().cast(), 4 * k)
                }
                Left::Blocks(blocks) => {
                    for (place, row) in part.clone().enumerate() {
                        let data = blocks.data.add(row / GROUP * blocks.group);
                        joined_row(data.add(row % GROUP * ROW), k, widened.add(place * k));
                    }
                    (widened.cast_const().cast(), 4 * k)
                }
            };
            let factors = Factors {
                p,
                row,
                step: 4,
                v: numbers,
                v_step: width,
                depth: k,
                half: false,
                soon: std::ptr::null(),
                target: None,
                next: None,
                then: Then::NOTHING,
            };
            let mut exact = Sums::new();
            tile::run(isa, Math::Fma, part.len(), width, &factors, &mut exact);
            for (sums, exact) in sums.0[first..].iter_mut().zip(&exact.0).take(part.len()) {
                for (sum, exact) in sums.iter_mut().zip(exact).take(width) {
                    if !sum.is_finite() {
                        *sum = *exact;
                    }
                }
            }
        }
    }
}
