//! `output[M, N] = input[M, K] · weight[N, K]ᵀ + bias[N]`, ReLU or not, for few rows:
//! a dot product for each element, straight from the weight as it lies in memory.
//! Sums are fp32, in an order that depends on K and the instruction set alone: a
//! row's result is the same bits whatever rows are beside it.

use std::ops::Range;

/// Element types of weight and bias. Inputs are always fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE binary32.
    F32,
    /// bfloat16; results are rounded to it.
    Bf16,
}

/// One layer. Strides count elements.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// fp32 `[rows, k]`, unit stride along K.
    pub input: *const f32,
    /// From one row of the input to the next.
    pub input_stride: usize,
    /// Rows of input and output.
    pub rows: usize,
    /// Length of the sums.
    pub k: usize,
    /// `[n, k]`, unit stride along K.
    pub weight: *const u8,
    /// From one row of the weight to the next.
    pub weight_stride: usize,
    /// `[n]`, dense; null for none.
    pub bias: *const u8,
    /// Type of weight and bias.
    pub element: Element,
    /// `[rows, n]`, dense: fp32, or `element` if `narrow`.
    pub output: *mut u8,
    /// Columns of the result.
    pub n: usize,
    /// Whether `output` is of the element type; else fp32 (with rounded values).
    pub narrow: bool,
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// Instruction sets, best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW and VL.
    Avx512,
}

impl Isa {
    /// The best that this CPU has.
    #[must_use]
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
            {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }
}

/// Computes the columns `columns` of a layer.
///
/// # Safety
/// Every pointer is valid for its shape and aligned for its element; nothing else
/// writes to what is read or accesses the columns that are written; the CPU has `isa`.
pub unsafe fn run(layer: &Layer, columns: Range<usize>, isa: Isa) {
    debug_assert!(columns.end <= layer.n);
    let mut column = columns.start;
    while column < columns.end {
        // Sixteen sums at a time fill the registers; with more rows each weight
        // that is read serves more of them.
        let wide = match layer.rows {
            1 => 16,
            2 => 8,
            _ => 4,
        };
        let take = if columns.end - column >= wide { wide } else { 1 };
        let mut row = 0;
        while row < layer.rows {
            let rows = (layer.rows - row).min(4);
            // SAFETY: forwarded; `take` columns from `column` on are in the
            // range, `rows` rows from `row` on in the matrix.
            unsafe {
                match (rows, take) {
                    (1, 16) => block::<1, 16>(layer, row, column, isa),
                    (1, 4) => block::<1, 4>(layer, row, column, isa),
                    (1, _) => block::<1, 1>(layer, row, column, isa),
                    (2, 8) => block::<2, 8>(layer, row, column, isa),
                    (2, 4) => block::<2, 4>(layer, row, column, isa),
                    (2, _) => block::<2, 1>(layer, row, column, isa),
                    (3, 4) => block::<3, 4>(layer, row, column, isa),
                    (3, _) => block::<3, 1>(layer, row, column, isa),
                    (_, 4) => block::<4, 4>(layer, row, column, isa),
                    (_, _) => block::<4, 1>(layer, row, column, isa),
                }
            }
            row += rows;
        }
        column += take;
    }
}

/// `M` rows from `row` on times `R` columns from `column` on.
///
/// # Safety
/// As for [`run`].
unsafe fn block<const M: usize, const R: usize>(
    layer: &Layer,
    row: usize,
    column: usize,
    isa: Isa,
) {
    let (ldx, ldw, k) = (layer.input_stride, layer.weight_stride, layer.k);
    // SAFETY: in bounds by the caller's promise; kernels read `R` rows of the
    // weight and `M` of the input, `k` elements each.
    let sums: [[f32; R]; M] = unsafe {
        let x = layer.input.add(row * ldx);
        match layer.element {
            Element::F32 => {
                let w = layer.weight.cast::<f32>().add(column * ldw);
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => x86::f32_avx512(x, ldx, w, ldw, k),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => x86::f32_avx2(x, ldx, w, ldw, k),
                    _ => scalar(x, ldx, w, ldw, k, |value| value),
                }
            }
            Element::Bf16 => {
                let w = layer.weight.cast::<u16>().add(column * ldw);
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => x86::bf16_avx512(x, ldx, w, ldw, k),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => x86::bf16_avx2(x, ldx, w, ldw, k),
                    _ => scalar(x, ldx, w, ldw, k, widened),
                }
            }
        }
    };
    for (m, sums) in sums.iter().enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            // SAFETY: in bounds, by the caller's promise.
            unsafe { store(layer, row + m, column + r, *sum) }
        }
    }
}

/// Bias, rounding, ReLU.
///
/// # Safety
/// As for [`run`], with the element in bounds.
unsafe fn store(layer: &Layer, row: usize, column: usize, sum: f32) {
    let at = row * layer.n + column;
    // SAFETY: forwarded; the bias is not null where it is read.
    unsafe {
        match layer.element {
            Element::F32 => {
                let bias = layer.bias.cast::<f32>();
                let value = if bias.is_null() { sum } else { sum + *bias.add(column) };
                *layer.output.cast::<f32>().add(at) = relu(value, layer.relu);
            }
            Element::Bf16 => {
                let address = layer.bias.cast::<u16>();
                let bias = if address.is_null() { 0.0 } else { widened(*address.add(column)) };
                let value = rounded(relu(sum + bias, layer.relu));
                if layer.narrow {
                    *layer.output.cast::<u16>().add(at) = value;
                } else {
                    *layer.output.cast::<f32>().add(at) = widened(value);
                }
            }
        }
    }
}

/// ReLU that keeps NaN, as LibTorch's does.
fn relu(value: f32, wanted: bool) -> f32 {
    if wanted && value <= 0.0 {
        0.0
    } else {
        value
    }
}

/// A bfloat16 as fp32.
#[must_use]
pub fn widened(value: u16) -> f32 {
    f32::from_bits(u32::from(value) << 16)
}

/// The nearest bfloat16, ties to even; NaN stays NaN.
#[must_use]
pub fn rounded(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// # Safety
/// `M` rows of `x` and `R` of `w` have `k` elements.
unsafe fn scalar<T: Copy, const M: usize, const R: usize>(
    x: *const f32,
    ldx: usize,
    w: *const T,
    ldw: usize,
    k: usize,
    widen: impl Fn(T) -> f32,
) -> [[f32; R]; M] {
    // Eight sums side by side: what a compiler can make of it, and as exact.
    const LANES: usize = 8;
    let mut sums = [[0.0; R]; M];
    for (m, row) in sums.iter_mut().enumerate() {
        for (r, sum) in row.iter_mut().enumerate() {
            let mut lanes = [0.0f32; LANES];
            for i in 0..k {
                // SAFETY: forwarded.
                lanes[i % LANES] += unsafe { *x.add(m * ldx + i) * widen(*w.add(r * ldw + i)) };
            }
            *sum = lanes.iter().sum();
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

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
                        let b: [_; R] =
                            std::array::from_fn(|r| $tail(w.add(r * ldw + whole), left));
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
        vectors.map(|row| row.map(|v| sum_256(v)))
    }

    #[target_feature(enable = "avx512f")]
    fn mask16(left: usize) -> u16 {
        ((1u32 << left) - 1) as u16
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tail_f32_512(at: *const f32, left: usize) -> __m512 {
        // SAFETY: the mask lets `left` elements be read, the caller's.
        unsafe { _mm512_maskz_loadu_ps(mask16(left), at) }
    }

    #[target_feature(enable = "avx512f")]
    fn widen_512(halves: __m256i) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_bf16_512(at: *const u16) -> __m512 {
        // SAFETY: sixteen elements, the caller's.
        widen_512(unsafe { _mm256_loadu_si256(at.cast()) })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn tail_bf16_512(at: *const u16, left: usize) -> __m512 {
        // SAFETY: the mask lets `left` elements be read, the caller's.
        widen_512(unsafe { _mm256_maskz_loadu_epi16(mask16(left), at.cast()) })
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tail_f32_256(at: *const f32, left: usize) -> __m256 {
        let mut padded = [0.0f32; 8];
        // SAFETY: `left < 8` elements, the caller's; `padded` has eight.
        unsafe {
            std::ptr::copy_nonoverlapping(at, padded.as_mut_ptr(), left);
            _mm256_loadu_ps(padded.as_ptr())
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn load_bf16_256(at: *const u16) -> __m256 {
        // SAFETY: eight elements, the caller's.
        let halves = unsafe { _mm_loadu_si128(at.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tail_bf16_256(at: *const u16, left: usize) -> __m256 {
        let mut padded = [0u16; 8];
        // SAFETY: `left < 8` elements, the caller's; `padded` has eight.
        unsafe {
            std::ptr::copy_nonoverlapping(at, padded.as_mut_ptr(), left);
            load_bf16_256(padded.as_ptr())
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn sum_256(v: __m256) -> f32 {
        let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
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
        "avx2,fma",
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
}

#[cfg(test)]
mod tests;
