//! Dot products in AVX-512 and AVX2.

use std::arch::x86_64::*;

use super::super::avx2::{self, EIGHT};
use super::super::avx512::{first_lanes, load, widened_bf16};
use super::super::element::Element;

/// Kernels of one shape: `$load` and `$tail` give a vector of weights at an
/// address, `$tail` the last `left` of a row and zeros behind them.
macro_rules! kernel {
    ($name:ident, $features:literal, $element:ty, $lanes:literal, $zero:ident, $fma:ident,
     $load_x:ident, $tail_x:ident, $load:ident, $tail:ident, $sum:ident) => {
        /// # Safety
        /// The CPU has the features; `M` rows of `x` and `R` of `w` have `k`
        /// elements.
        #[target_feature(enable = $features)]
        pub unsafe fn $name<const M: usize, const R: usize>(
            x: *const f32,
            ldx: usize,
            w: *const $element,
            ldw: usize,
            k: usize,
        ) -> [[f32; R]; M] {
            let mut sums = [[$zero(); R]; M];
            let whole = k - k % $lanes;
            // SAFETY: `i + $lanes <= k`, or the last `k - whole` elements.
            unsafe {
                let mut i = 0;
                while i < whole {
                    let b: [_; R] = std::array::from_fn(|r| $load(w.add(r * ldw + i)));
                    for (m, row) in sums.iter_mut().enumerate() {
                        let a = $load_x(x.add(m * ldx + i));
                        for (sum, b) in row.iter_mut().zip(b) {
                            *sum = $fma(a, b, *sum);
                        }
                    }
                    i += $lanes;
                }
                if whole < k {
                    let left = k - whole;
                    let b: [_; R] = std::array::from_fn(|r| $tail(w.add(r * ldw + whole), left));
                    for (m, row) in sums.iter_mut().enumerate() {
                        let a = $tail_x(x.add(m * ldx + whole), left);
                        for (sum, b) in row.iter_mut().zip(b) {
                            *sum = $fma(a, b, *sum);
                        }
                    }
                }
            }
            $sum(sums)
        }
    };
}

/// The sum of each vector, always in the same order: within four lanes
/// (0 + 2) + (1 + 3), then the four fours (0 + 1) + (2 + 3).
#[target_feature(enable = "avx512f")]
fn sums_512<const M: usize, const R: usize>(vectors: [[__m512; R]; M]) -> [[f32; R]; M] {
    let flat: [__m512; 16] = std::array::from_fn(|i| {
        let (m, r) = (i / R, i % R);
        if m < M {
            vectors[m][r]
        } else {
            _mm512_setzero_ps()
        }
    });
    let fours: [__m512; 4] = std::array::from_fn(|i| {
        let [a, b, c, d] = [flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3]];
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
        )
    });
    let pair = |a, b| {
        let even = _mm512_shuffle_f32x4::<0x88>(a, b);
        let odd = _mm512_shuffle_f32x4::<0xdd>(a, b);
        _mm512_add_ps(even, odd)
    };
    let all = pair(pair(fours[0], fours[1]), pair(fours[2], fours[3]));
    let mut sums = [0.0f32; 16];
    // SAFETY: room for sixteen.
    unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), all) };
    std::array::from_fn(|m| std::array::from_fn(|r| sums[m * R + r]))
}

#[target_feature(enable = "avx2,fma")]
fn sums_256<const M: usize, const R: usize>(vectors: [[__m256; R]; M]) -> [[f32; R]; M] {
    let mut results = [[0.0; R]; M];
    for first in (0..M * R).step_by(EIGHT) {
        let take = (M * R - first).min(EIGHT);
        let mut eight = [_mm256_setzero_ps(); EIGHT];
        for (i, vector) in eight.iter_mut().enumerate().take(take) {
            *vector = vectors[(first + i) / R][(first + i) % R];
        }
        for (i, sum) in avx2::sums(eight).into_iter().enumerate().take(take) {
            results[(first + i) / R][(first + i) % R] = sum;
        }
    }
    results
}

#[target_feature(enable = "avx512f")]
unsafe fn tail_f32_512(at: *const f32, left: usize) -> __m512 {
    // SAFETY: the mask lets `left` elements be read, the caller's.
    unsafe { _mm512_maskz_loadu_ps(first_lanes(left), at) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_bf16_512(at: *const u16) -> __m512 {
    // SAFETY: sixteen elements, the caller's.
    widened_bf16(unsafe { _mm256_loadu_si256(at.cast()) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn tail_bf16_512(at: *const u16, left: usize) -> __m512 {
    // SAFETY: `left` elements, the caller's.
    unsafe { load(Element::Bf16, at.cast(), left) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_f16_512(at: *const u16) -> __m512 {
    // SAFETY: sixteen elements, the caller's.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn tail_f16_512(at: *const u16, left: usize) -> __m512 {
    // SAFETY: `left` elements, the caller's.
    unsafe { load(Element::F16, at.cast(), left) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tail_f32_256(at: *const f32, left: usize) -> __m256 {
    // SAFETY: `left` elements, the caller's.
    unsafe { avx2::load_first(at, left) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn load_bf16_256(at: *const u16) -> __m256 {
    // SAFETY: eight elements, the caller's.
    unsafe { avx2::load_bf16(at) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tail_bf16_256(at: *const u16, left: usize) -> __m256 {
    // SAFETY: `left` elements, the caller's.
    unsafe { avx2::load(Element::Bf16, at.cast(), left) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_f16_256(at: *const u16) -> __m256 {
    // SAFETY: eight elements, the caller's.
    unsafe { avx2::load_f16(at) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tail_f16_256(at: *const u16, left: usize) -> __m256 {
    // SAFETY: `left` elements, the caller's.
    unsafe { avx2::load(Element::F16, at.cast(), left) }
}

kernel!(
    f32_avx512,
    "avx512f,avx512bw,avx512vl",
    f32,
    16,
    _mm512_setzero_ps,
    _mm512_fmadd_ps,
    _mm512_loadu_ps,
    tail_f32_512,
    _mm512_loadu_ps,
    tail_f32_512,
    sums_512
);
kernel!(
    bf16_avx512,
    "avx512f,avx512bw,avx512vl",
    u16,
    16,
    _mm512_setzero_ps,
    _mm512_fmadd_ps,
    _mm512_loadu_ps,
    tail_f32_512,
    load_bf16_512,
    tail_bf16_512,
    sums_512
);
kernel!(
    f32_avx2,
    "avx2,fma",
    f32,
    8,
    _mm256_setzero_ps,
    _mm256_fmadd_ps,
    _mm256_loadu_ps,
    tail_f32_256,
    _mm256_loadu_ps,
    tail_f32_256,
    sums_256
);
kernel!(
    bf16_avx2,
    "avx2,fma,f16c",
    u16,
    8,
    _mm256_setzero_ps,
    _mm256_fmadd_ps,
    _mm256_loadu_ps,
    tail_f32_256,
    load_bf16_256,
    tail_bf16_256,
    sums_256
);
kernel!(
    f16_avx512,
    "avx512f,avx512bw,avx512vl",
    u16,
    16,
    _mm512_setzero_ps,
    _mm512_fmadd_ps,
    _mm512_loadu_ps,
    tail_f32_512,
    load_f16_512,
    tail_f16_512,
    sums_512
);
kernel!(
    f16_avx2,
    "avx2,fma,f16c",
    u16,
    8,
    _mm256_setzero_ps,
    _mm256_fmadd_ps,
    _mm256_loadu_ps,
    tail_f32_256,
    load_f16_256,
    tail_f16_256,
    sums_256
);
