//! `output[M, N] = input[M, K] · weight[N, K]ᵀ + bias[N]`, ReLU or not, for few rows:
//! a dot product for each element, straight from the weight as it lies in memory.
//! Sums are fp32, in an order that depends on K and the instruction set alone: a
//! row's result is the same bits whatever rows are beside it.

use std::ops::Range;

use super::element::{bf16_widened, f16_widened, relu, Element};
use super::isa::Isa;

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
    /// Type of weight, bias and output.
    pub element: Element,
    /// `[rows, n]`, dense; null for none.
    pub output: *mut u8,
    /// The same, rounded alike, but as fp32; null for none.
    pub wide: *mut f32,
    /// Columns of the result.
    pub n: usize,
    /// Whether a ReLU follows.
    pub relu: bool,
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
        // Sixteen sums at a time, or AVX2's eight, fill the registers; with more rows
        // each weight that is read serves more of them.
        let wide = match (layer.rows, isa) {
            (1, _) => 8,
            (2, Isa::Avx2) => 4,
            (2, _) => 8,
            (_, Isa::Avx2) => 2,
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
                    (1, 8) => block::<1, 8>(layer, row, column, isa),
                    (1, 4) => block::<1, 4>(layer, row, column, isa),
                    (1, 2) => block::<1, 2>(layer, row, column, isa),
                    (1, _) => block::<1, 1>(layer, row, column, isa),
                    (2, 8) => block::<2, 8>(layer, row, column, isa),
                    (2, 4) => block::<2, 4>(layer, row, column, isa),
                    (2, 2) => block::<2, 2>(layer, row, column, isa),
                    (2, _) => block::<2, 1>(layer, row, column, isa),
                    (3, 4) => block::<3, 4>(layer, row, column, isa),
                    (3, 2) => block::<3, 2>(layer, row, column, isa),
                    (3, _) => block::<3, 1>(layer, row, column, isa),
                    (_, 4) => block::<4, 4>(layer, row, column, isa),
                    (_, 2) => block::<4, 2>(layer, row, column, isa),
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
                    _ => scalar(x, ldx, w, ldw, k, bf16_widened),
                }
            }
            Element::F16 => {
                let w = layer.weight.cast::<u16>().add(column * ldw);
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => x86::f16_avx512(x, ldx, w, ldw, k),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => x86::f16_avx2(x, ldx, w, ldw, k),
                    _ => scalar(x, ldx, w, ldw, k, f16_widened),
                }
            }
        }
    };
    for (m, sums) in sums.into_iter().enumerate() {
        // SAFETY: in bounds, by the caller's promise.
        unsafe { store(layer, (row + m) * layer.n + column, column, sums) }
    }
}

/// Bias, ReLU, rounding, of `R` columns side by side, at element `at` of the result.
///
/// # Safety
/// As for [`run`], with the elements in bounds.
#[inline(always)]
unsafe fn store<const R: usize>(layer: &Layer, at: usize, column: usize, mut sums: [f32; R]) {
    let element = layer.element;
    // SAFETY: the caller's promise; the bias is not null where it is read.
    unsafe {
        if !layer.bias.is_null() {
            let bias = match element {
                Element::F32 => *layer.bias.cast::<f32>().add(column).cast::<[f32; R]>(),
                _ => (*layer.bias.cast::<u16>().add(column).cast::<[u16; R]>())
                    .map(|bits| element.widened(bits)),
            };
            sums = std::array::from_fn(|r| sums[r] + bias[r]);
        }
        if layer.relu {
            sums = sums.map(relu);
        }
        if element == Element::F32 {
            if !layer.output.is_null() {
                *layer.output.cast::<f32>().add(at).cast::<[f32; R]>() = sums;
            }
        } else {
            let bits = sums.map(|sum| element.rounded(sum));
            sums = bits.map(|bits| element.widened(bits));
            if !layer.output.is_null() {
                *layer.output.cast::<u16>().add(at).cast::<[u16; R]>() = bits;
            }
        }
        if !layer.wide.is_null() {
            *layer.wide.add(at).cast::<[f32; R]>() = sums;
        }
    }
}

/// Apart: inlined, what it prepares would be done for every instruction set.
///
/// # Safety
/// `M` rows of `x` and `R` of `w` have `k` elements.
#[inline(never)]
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
mod x86;

#[cfg(test)]
mod tests;
