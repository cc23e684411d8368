//! Products on copies whose rows, and if need be sizes, are multiples of 16 bytes.

use super::check::Matrix;
use super::div_ceil;
use super::layer::{GemmData, Stated};
use super::pad::{is_aligned, whole, Pad, Unpad, ROW};
use super::policy::Policy;
use super::problem::{Gemm, Math, Operand};

/// A product on copies of operands.
#[derive(Debug, Clone, Copy)]
pub struct Padded {
    /// As if the copies were the operands; their addresses, and the result's if it is
    /// [`Padded::result`], are places in scratch memory.
    pub stated: Stated,
    /// Of the left and of the right operand and of the bias.
    pub pads: [Option<Pad>; 3],
    /// The result's way to where it is to lie.
    pub result: Option<Unpad>,
    /// Scratch memory of all.
    pub bytes: usize,
}

/// What a product is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Aligned rows of operands, which our kernel wants.
    Rows,
    /// Sizes and results too, which cuBLASLt's fast kernels want.
    Sizes,
}

/// The gain is predicted to be so many times what the copies take.
const CLEARLY: f64 = 1.3;
/// Scratch memory for copies; above it operands are read as they are.
const MOST_BYTES: usize = 1 << 30;
/// Of places in scratch memory; a block of copies writes a multiple of it.
const ALIGNMENT: u32 = 256;

/// The product on copies, if something is not aligned and copying it is faster. `takes`
/// tells whether our kernel, which wants aligned operands alone, may take a product.
#[must_use]
pub fn padded(
    stated: &Stated,
    policy: Policy,
    multiprocessors: i64,
    takes: impl Fn(&Gemm) -> bool,
) -> Option<Padded> {
    let gemm = &stated.gemm;
    // SGEMM reads any rows as fast.
    let is_sgemm = gemm.math == Math::Strict && gemm.dtype.size() == 4;
    if is_sgemm || is_whole(gemm) {
        return None;
    }
    let sizes = || Padded::new(stated, What::Sizes);
    if policy == Policy::Always {
        return sizes().or_else(|| Padded::new(stated, What::Rows));
    }
    let gain = gain_us(gemm, multiprocessors);
    let pays = |padded: &Padded| gain > CLEARLY * padded.us();
    let long = gemm.has_few_long_sums(multiprocessors);
    let rows = Padded::new(stated, What::Rows).filter(|on| {
        let on = &on.stated.gemm;
        !long && (takes(on) || is_whole(on))
    });
    if rows.is_some() || takes(gemm) {
        return rows.filter(pays);
    }
    sizes().filter(|on| is_whole(&on.stated.gemm) && pays(on))
}

/// µs that a product is faster by when all is aligned, on an H200 (docs/performance.md):
/// so many a step of k for each tile that a multiprocessor does, half of it where there
/// are few tiles, and no more than all its time at the rate of few.
fn gain_us(gemm: &Gemm, multiprocessors: i64) -> f64 {
    const STEP_US: f64 = 0.026;
    const FLOP_PER_US: f64 = 80e6;
    const FLOP_PER_US_IF_LONG: f64 = 100e6;
    let flop = 2.0 * gemm.m as f64 * gemm.n as f64 * gemm.k as f64;
    if gemm.has_few_long_sums(multiprocessors) {
        return flop / FLOP_PER_US_IF_LONG;
    }
    let tiles = div_ceil(gemm.m, 128) * div_ceil(gemm.n, 128);
    let turns = tiles as f64 / multiprocessors as f64;
    let turns = if turns > 1.0 { turns } else { (2.0 * turns).clamp(0.5, 1.0) };
    (STEP_US * gemm.k as f64 * turns).min(flop / FLOP_PER_US)
}

/// Whether sums run along the rows of the left, of the right operand.
const fn along_k(gemm: &Gemm) -> [bool; 2] {
    [gemm.a.transposed, !gemm.b.transposed]
}

/// Whether nothing keeps cuBLASLt from its fast kernels.
fn is_whole(gemm: &Gemm) -> bool {
    let size = gemm.dtype.size();
    let k = if along_k(gemm) == [false; 2] { 0 } else { gemm.k };
    let sizes = [gemm.m, gemm.ldd, k, if gemm.b.transposed { gemm.n } else { 0 }];
    let aligned = |operand: &Operand| is_aligned(operand.alignment, operand.ld, size);
    sizes.into_iter().all(|elements| elements == whole(elements, size))
        && [gemm.a, gemm.b].iter().all(aligned)
        && u64::from(gemm.d_alignment.min(gemm.bias_alignment)) >= ROW
}

/// Contiguous runs of both operands in memory, and their length.
fn runs(gemm: &Gemm) -> [(i64, i64); 2] {
    let Gemm { m, n, k, a, b, .. } = *gemm;
    [if a.transposed { (m, k) } else { (k, m) }, if b.transposed { (k, n) } else { (n, k) }]
}

impl Padded {
    /// None if nothing is to be copied, or it is too large.
    fn new(stated: &Stated, what: What) -> Option<Self> {
        let mut on = Self { stated: *stated, pads: [None; 3], result: None, bytes: 0 };
        let Stated { gemm, data } = &mut on.stated;
        let (Gemm { m, n, k, .. }, size) = (*gemm, gemm.dtype.size());
        let aligned = [gemm.a, gemm.b].map(|o| is_aligned(o.alignment, o.ld, size));
        let before = runs(gemm);
        // Zeros behind the elements of a sum, in both operands; they cost nothing if the
        // rows of both are copied.
        let long = match what {
            What::Rows => along_k(gemm) == [true; 2] && aligned == [false; 2],
            What::Sizes => along_k(gemm) != [false; 2],
        };
        gemm.k = if long { whole(k, size) } else { k };
        if what == What::Sizes {
            gemm.m = whole(m, size);
            gemm.n = if gemm.b.transposed { whole(n, size) } else { n };
        }
        let (after, apart) = (runs(gemm), (gemm.m, gemm.n) != (m, n));
        let operands = [(&mut gemm.a, &mut data.a), (&mut gemm.b, &mut data.b)];
        for (side, (operand, address)) in operands.into_iter().enumerate() {
            let ((rows, cols), (more, _)) = (before[side], after[side]);
            if aligned[side] && before[side] == after[side] {
                continue;
            }
            let from = Matrix { row_stride: operand.ld, ..Matrix::dense(*address, rows, cols) };
            let pad = on.pads[side].insert(Pad::with_rows(from, more, size, on.bytes).ok()?);
            on.bytes += pad.bytes();
            *address = pad.to;
            (operand.ld, operand.alignment) = (pad.ld, ALIGNMENT);
        }
        let bias_aligned = u64::from(gemm.bias_alignment) >= ROW;
        if what == What::Sizes && gemm.epilogue.has_bias() && (gemm.m > m || !bias_aligned) {
            let bias = Matrix::dense(data.bias, 1, m);
            let pad = on.pads[2].insert(Pad::new(bias, size, on.bytes).ok()?);
            on.bytes += pad.bytes();
            (data.bias, gemm.bias_alignment) = (pad.to, ALIGNMENT);
        }
        if apart {
            if gemm.ldd != m || u64::from(gemm.d_alignment) < ROW {
                // It has gaps.
                return None;
            }
            let to = Matrix::dense(data.d, n, m);
            let unpad = on.result.insert(Unpad::new(to, gemm.n, size, on.bytes).ok()?);
            on.bytes += unpad.bytes().next_multiple_of(ALIGNMENT as usize);
            data.d = unpad.from;
            (gemm.ldd, gemm.d_alignment) = (unpad.ld, ALIGNMENT);
        }
        (1..=MOST_BYTES).contains(&on.bytes).then_some(on)
    }

    /// The product, with scratch memory at `scratch`.
    #[must_use]
    pub fn at(&self, scratch: usize) -> Stated {
        let mut stated = self.stated;
        let GemmData { a, b, d, bias } = &mut stated.data;
        let copied = self.pads.map(|pad| pad.is_some());
        for (address, moved) in
            [(a, copied[0]), (b, copied[1]), (bias, copied[2]), (d, self.result.is_some())]
        {
            *address += if moved { scratch } else { 0 };
        }
        stated
    }

    /// Predicted µs of all copies.
    fn us(&self) -> f64 {
        self.pads.iter().flatten().map(Pad::us).sum::<f64>()
            + self.result.as_ref().map_or(0.0, Unpad::us)
    }
}

#[cfg(test)]
mod tests;
