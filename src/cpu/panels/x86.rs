//! Turning and widening in AVX-512, and F16C's widening for AVX2.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::element::{f16_widened, Element};
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

/// The first `elements` (at most 16) at an address as fp32, zeros behind them.
///
/// # Safety
/// They can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn load(element: Element, at: *const u8, elements: usize) -> __m512 {
    let mask = ((1u32 << elements) - 1) as u16;
    // SAFETY: the mask keeps to the elements.
    unsafe {
        match element {
            Element::F32 => _mm512_maskz_loadu_ps(mask, at.cast()),
            Element::Bf16 => widened_bf16(_mm256_maskz_loadu_epi16(mask, at.cast())),
            Element::F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast())),
        }
    }
}

#[target_feature(enable = "avx512f")]
fn widened_bf16(halves: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// Sixteen vectors of sixteen, rows to columns.
#[target_feature(enable = "avx512f")]
pub fn turn(rows: [__m512; 16]) -> [__m512; 16] {
    let zero = _mm512_setzero_ps();
    // Pairs of rows, then fours: within each 128 bits a column of four rows.
    let mut fours = [zero; 16];
    for group in 0..4 {
        let [a, b, c, d] = std::array::from_fn(|i| rows[4 * group + i]);
        let [ab, cd] = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)];
        let [ab2, cd2] = [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)];
        let double = |v| _mm512_castps_pd(v);
        fours[4 * group] = _mm512_castpd_ps(_mm512_unpacklo_pd(double(ab), double(cd)));
        fours[4 * group + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(double(ab), double(cd)));
        fours[4 * group + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(double(ab2), double(cd2)));
        fours[4 * group + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(double(ab2), double(cd2)));
    }
    // fours[4 g + i], 128-bit lane q: rows 4 g .. of column 4 q + i.
    let mut columns = [zero; 16];
    for i in 0..4 {
        let [a, b, c, d] = std::array::from_fn(|g| fours[4 * g + i]);
        let [ab, cd] = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
        let [ab2, cd2] = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
        columns[i] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
        columns[8 + i] = _mm512_shuffle_f32x4::<0xdd>(ab, cd);
        columns[4 + i] = _mm512_shuffle_f32x4::<0x88>(ab2, cd2);
        columns[12 + i] = _mm512_shuffle_f32x4::<0xdd>(ab2, cd2);
    }
    columns
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
            _mm512_mask_storeu_ps(out.add(i), ((1u32 << take) - 1) as u16, vector);
        }
    }
}

/// The same of binary16.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn widen_f16_avx2(from: *const u8, k: usize, out: *mut f32) {
    let whole = k - k % 8;
    for i in (0..whole).step_by(8) {
        // SAFETY: eight elements from `i` on.
        unsafe {
            let halves = _mm_loadu_si128(from.add(2 * i).cast());
            _mm256_storeu_ps(out.add(i), _mm256_cvtph_ps(halves));
        }
    }
    for i in whole..k {
        // SAFETY: in bounds.
        unsafe { *out.add(i) = f16_widened(*from.cast::<u16>().add(i)) }
    }
}
