//! Turning and widening in AVX-512 and AVX2.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::avx2::{self, EIGHT};
use super::super::avx512::{first_lanes, load, turn};
use super::super::element::Element;
use super::{Math, Matrix, VECTOR};

/// `panels::portable` for AVX-512.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn pack(
    math: Math,
    source: &Matrix,
    first: usize,
    rows: usize,
    range: Range<usize>,
    out: *mut f32,
    width: usize,
) {
    let per_step = if math == Math::Dot { 2 } else { 1 };
    let mut step = range.start;
    while step < range.end {
        let take = (range.end - step).min(VECTOR);
        let begin = step * per_step;
        let elements = (take * per_step).min(source.k - begin);
        // SAFETY: `elements` from `begin` on are in the row.
        let vectors = std::array::from_fn(|lane| unsafe {
            if lane < rows {
                let at = source.row(first + lane).add(begin * source.element.size());
                match math {
                    Math::Fma => load(source.element, at, elements),
                    Math::Dot => {
                        let mask = (1u64 << elements) - 1;
                        _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask as u32, at.cast()))
                    }
                    Math::Amx(_) => unreachable!("packed by its own"),
                }
            } else {
                _mm512_setzero_ps()
            }
        });
        let turned = turn(vectors);
        for (i, vector) in turned.iter().enumerate().take(take) {
            // SAFETY: the step is in the range, which the caller says is there.
            unsafe { _mm512_storeu_ps(out.add((step + i) * width), *vector) };
        }
        step += take;
    }
}

/// `k` 16-bit elements as fp32.
///
/// # Safety
/// They can be read, as many written.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn widen_avx512(element: Element, from: *const u8, k: usize, out: *mut f32) {
    for i in (0..k).step_by(VECTOR) {
        let take = (k - i).min(VECTOR);
        // SAFETY: the elements from `i` on, `take` of them.
        unsafe {
            let vector = load(element, from.add(2 * i), take);
            _mm512_mask_storeu_ps(out.add(i), first_lanes(take), vector);
        }
    }
}

/// The same in AVX2.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn widen_avx2(element: Element, from: *const u8, k: usize, out: *mut f32) {
    let whole = k - k % EIGHT;
    // SAFETY: eight elements from `i` on, or those behind `whole`.
    unsafe {
        match element {
            Element::F16 => {
                for i in (0..whole).step_by(EIGHT) {
                    _mm256_storeu_ps(out.add(i), avx2::load_f16(from.add(2 * i).cast()));
                }
            }
            _ => {
                for i in (0..whole).step_by(EIGHT) {
                    _mm256_storeu_ps(out.add(i), avx2::load_bf16(from.add(2 * i).cast()));
                }
            }
        }
        let rest = avx2::load(element, from.add(2 * whole), k - whole);
        avx2::store_first(out.add(whole), rest, k - whole);
    }
}

/// `panels::portable` for AVX2, `Math::Fma` alone.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn pack_avx2(
    source: &Matrix,
    first: usize,
    rows: usize,
    range: Range<usize>,
    out: *mut f32,
    width: usize,
) {
    for step in range.clone().step_by(EIGHT) {
        let take = (range.end - step).min(EIGHT);
        for lane in (0..VECTOR).step_by(EIGHT) {
            let mut vectors = [_mm256_setzero_ps(); EIGHT];
            let rows = rows.saturating_sub(lane).min(EIGHT);
            for (i, vector) in vectors.iter_mut().enumerate().take(rows) {
                // SAFETY: the row exists, `take` elements from `step` on are in it.
                unsafe {
                    let at = source.row(first + lane + i).add(step * source.element.size());
                    *vector = avx2::load(source.element, at, take);
                }
            }
            for (i, vector) in avx2::turn(vectors).into_iter().enumerate().take(take) {
                // SAFETY: the step is in the range, which the caller says is there.
                unsafe { _mm256_storeu_ps(out.add((step + i) * width + lane), vector) };
            }
        }
    }
}
