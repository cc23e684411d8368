//! Finishing in AVX2, `Math::Fma` alone: it has no pairs.

use std::arch::x86_64::*;

use super::super::avx2::{halves, masked_by_relu, rounded, store_first, turn, EIGHT};
use super::super::element::Element;
use super::super::panels::width;
use super::{Finish, Place, Sums, LANES};

/// # Safety
/// As for `finish::tile`.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn tile(finish: &Finish, place: Place, sums: &mut Sums) {
    let width = width(finish.rows, place.panel);
    let element = finish.element;
    for (i, sums) in sums.0.iter_mut().enumerate().take(place.columns) {
        // SAFETY: the column exists, in the panel too; rows of sums have `LANES`.
        unsafe {
            let bias = if finish.bias.is_null() {
                None
            } else {
                let at = finish.bias.add((place.column + i) * element.size());
                Some(_mm256_set1_ps(element.read(at)))
            };
            let panel = if finish.panels.is_null() {
                finish.panels
            } else {
                let step = place.column + i;
                finish.panels.add(place.panel * LANES * finish.n + step * width)
            };
            for lane in (0..width).step_by(EIGHT) {
                let at = sums.as_mut_ptr().add(lane);
                let mut value = _mm256_loadu_ps(at);
                if let Some(bias) = bias {
                    value = _mm256_add_ps(value, bias);
                }
                if finish.relu {
                    value = masked_by_relu(value, value);
                }
                value = rounded(element, value);
                _mm256_storeu_ps(at, value);
                if !panel.is_null() {
                    _mm256_storeu_ps(panel.add(lane), value);
                }
            }
        }
    }
    if !finish.output.is_null() {
        // SAFETY: forwarded.
        unsafe { to_rows(finish, place, sums, width) }
    }
}

/// # Safety
/// As for `finish::tile`.
#[target_feature(enable = "avx2,f16c")]
unsafe fn to_rows(finish: &Finish, place: Place, sums: &Sums, width: usize) {
    let size = finish.element.size();
    for column in (0..place.columns).step_by(EIGHT) {
        let columns = (place.columns - column).min(EIGHT);
        for lane in (0..width).step_by(EIGHT) {
            let first = place.panel * LANES + lane;
            let mut vectors = [_mm256_setzero_ps(); EIGHT];
            for (i, vector) in vectors.iter_mut().enumerate().take(columns) {
                // SAFETY: rows of sums have `LANES`.
                *vector = unsafe { _mm256_loadu_ps(sums.0[column + i].as_ptr().add(lane)) };
            }
            let rows = finish.rows.saturating_sub(first);
            for (i, row) in turn(vectors).into_iter().enumerate().take(rows) {
                let at = (first + i) * finish.n + place.column + column;
                // SAFETY: the row exists, and so many columns of it.
                unsafe {
                    let at = finish.output.add(at * size);
                    if finish.element == Element::F32 {
                        store_first(at.cast(), row, columns);
                        continue;
                    }
                    let halves = halves(finish.element, row);
                    if columns == EIGHT {
                        _mm_storeu_si128(at.cast(), halves);
                    } else {
                        let mut whole = [0u16; EIGHT];
                        _mm_storeu_si128(whole.as_mut_ptr().cast(), halves);
                        std::ptr::copy_nonoverlapping(whole.as_ptr(), at.cast(), columns);
                    }
                }
            }
        }
    }
}
