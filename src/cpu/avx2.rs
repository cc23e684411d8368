//! What the AVX2 kernels share.

use std::arch::x86_64::*;

use super::element::Element;

/// Lanes of a vector.
pub const EIGHT: usize = 8;

/// Bits set in the first `count` lanes, at most 8.
#[must_use]
#[inline]
#[target_feature(enable = "avx2")]
pub fn first_lanes(count: usize) -> __m256i {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes)
}

/// Zero where a ReLU does not pass: it passes what is above zero, and NaN, as
/// `element::relu`. `of` is the ReLU's operand or result.
#[must_use]
#[inline]
#[target_feature(enable = "avx2")]
pub fn masked_by_relu(value: __m256, of: __m256) -> __m256 {
    _mm256_and_ps(value, _mm256_cmp_ps::<_CMP_NLE_UQ>(of, _mm256_setzero_ps()))
}

/// The first `count` (at most 8) at an address, zeros behind them.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn load_first(at: *const f32, count: usize) -> __m256 {
    // SAFETY: the mask keeps to them.
    unsafe {
        if count == EIGHT {
            _mm256_loadu_ps(at)
        } else {
            _mm256_maskload_ps(at, first_lanes(count))
        }
    }
}

/// The first `elements` (at most 8) at an address as fp32, zeros behind them.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn load(element: Element, at: *const u8, elements: usize) -> __m256 {
    // SAFETY: the caller's promise; the padded copy has eight.
    unsafe {
        if element == Element::F32 {
            return load_first(at.cast(), elements);
        }
        let mut padded = [0u16; EIGHT];
        let whole = if elements == EIGHT {
            at.cast()
        } else {
            std::ptr::copy_nonoverlapping(at.cast(), padded.as_mut_ptr(), elements);
            padded.as_ptr()
        };
        match element {
            Element::F16 => load_f16(whole),
            _ => load_bf16(whole),
        }
    }
}

/// Eight bfloat16 as fp32.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn load_bf16(at: *const u16) -> __m256 {
    // SAFETY: the caller's promise.
    let halves = unsafe { _mm_loadu_si128(at.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}

/// Eight binary16 as fp32.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn load_f16(at: *const u16) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

/// Writes the first `count` lanes, at most 8. A masked store is microcode on some
/// CPUs, so it is one of four, one of two and one of one.
///
/// # Safety
/// They can be written.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn store_first(at: *mut f32, value: __m256, count: usize) {
    // SAFETY: the caller's promise; the parts add up to `count`.
    unsafe {
        if count == EIGHT {
            _mm256_storeu_ps(at, value);
            return;
        }
        let (mut at, mut left) = (at, _mm256_castps256_ps128(value));
        if count & 4 != 0 {
            _mm_storeu_ps(at, left);
            (at, left) = (at.add(4), _mm256_extractf128_ps::<1>(value));
        }
        if count & 2 != 0 {
            _mm_storel_epi64(at.cast(), _mm_castps_si128(left));
            (at, left) = (at.add(2), _mm_movehl_ps(left, left));
        }
        if count & 1 != 0 {
            _mm_store_ss(at, left);
        }
    }
}

/// The nearest numbers of the type, as fp32.
#[must_use]
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub fn rounded(element: Element, value: __m256) -> __m256 {
    match element {
        Element::F32 => value,
        Element::Bf16 => {
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let nearest = _mm256_castsi256_ps(_mm256_add_epi32(bits, up));
            let quiet = _mm256_or_ps(value, _mm256_castsi256_ps(_mm256_set1_epi32(0x40_0000)));
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value);
            let upper = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
            _mm256_and_ps(_mm256_blendv_ps(nearest, quiet, nan), upper)
        }
        Element::F16 => _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value)),
    }
}

/// Eight numbers that are of a 16-bit type already, as its bits.
#[must_use]
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub fn halves(element: Element, value: __m256) -> __m128i {
    match element {
        Element::F16 => _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value),
        _ => {
            let upper = _mm256_srli_epi32::<16>(_mm256_castps_si256(value));
            let (low, high) = (_mm256_castsi256_si128(upper), _mm256_extracti128_si256::<1>(upper));
            _mm_packus_epi32(low, high)
        }
    }
}

/// Eight vectors of eight, rows to columns.
#[must_use]
#[inline]
#[target_feature(enable = "avx2")]
pub fn turn(rows: [__m256; EIGHT]) -> [__m256; EIGHT] {
    let zero = _mm256_setzero_ps();
    // Within each 128 bits a column of four rows: of the first four, then the others.
    let mut fours = [zero; EIGHT];
    for group in 0..2 {
        let [a, b, c, d] = std::array::from_fn(|i| rows[4 * group + i]);
        let [ab, cd] = [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)];
        let [ab2, cd2] = [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)];
        fours[4 * group] = _mm256_shuffle_ps::<0x44>(ab, cd);
        fours[4 * group + 1] = _mm256_shuffle_ps::<0xee>(ab, cd);
        fours[4 * group + 2] = _mm256_shuffle_ps::<0x44>(ab2, cd2);
        fours[4 * group + 3] = _mm256_shuffle_ps::<0xee>(ab2, cd2);
    }
    // fours[4 g + i], 128-bit lane q: rows 4 g .. of column 4 q + i.
    let mut columns = [zero; EIGHT];
    for i in 0..4 {
        columns[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
        columns[4 + i] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
    }
    columns
}

/// The sum of each vector, always in the same order: lanes (0 + 4), (1 + 5) ..., of
/// these (0 + 2) + (1 + 3).
#[must_use]
#[inline]
#[target_feature(enable = "avx2")]
pub fn sums(vectors: [__m256; EIGHT]) -> [f32; EIGHT] {
    // Vectors i and 4 + i, 128 bits each.
    let fours: [__m256; 4] = std::array::from_fn(|i| {
        let (a, b) = (vectors[i], vectors[4 + i]);
        let low = _mm256_permute2f128_ps::<0x20>(a, b);
        _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b))
    });
    let pairs =
        |a, b| _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
    let (a, b) = (pairs(fours[0], fours[1]), pairs(fours[2], fours[3]));
    let all = _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b));
    let mut sums = [0.0f32; EIGHT];
    // SAFETY: room for eight.
    unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), all) };
    sums
}
