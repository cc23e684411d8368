//! What the AVX-512 kernels share.

use std::arch::x86_64::*;

use super::element::Element;

/// A mask of the first `count` lanes, at most 16.
#[must_use]
#[inline]
pub fn first_lanes(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}

/// The lanes that a ReLU passes: above zero, and NaN, as `element::relu`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn passes_relu(values: __m512) -> __mmask16 {
    _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(values, _mm512_setzero_ps())
}

/// The first `elements` (at most 16) at an address as fp32, zeros behind them.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn load(element: Element, at: *const u8, elements: usize) -> __m512 {
    let mask = first_lanes(elements);
    // SAFETY: the mask keeps to the elements.
    unsafe {
        match element {
            Element::F32 => _mm512_maskz_loadu_ps(mask, at.cast()),
            Element::Bf16 => widened_bf16(_mm256_maskz_loadu_epi16(mask, at.cast())),
            Element::F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast())),
        }
    }
}

/// Sixteen bfloat16 as fp32.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn widened_bf16(halves: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// Sixteen vectors of sixteen, rows to columns.
#[inline]
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
