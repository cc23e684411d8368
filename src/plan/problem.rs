//! `Gemm`: the canonical, hashable, printable statement of one matrix
//! product. It is the key of the plan cache and what an error report or a
//! benchmark row shows.

use std::fmt;

/// Element types the CUDA path computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE binary32, products in fp32 or, if the user allowed it, TF32.
    F32,
    /// IEEE binary16, accumulated in fp32.
    F16,
    /// bfloat16, accumulated in fp32.
    Bf16,
}

impl Dtype {
    /// Bytes per element.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// How the products are formed and summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Math {
    /// fp32 throughout.
    Strict,
    /// fp32 operands rounded to TF32 (`allow_tf32`).
    Tf32,
    /// fp16 accumulation (`allow_fp16_accumulation`).
    Fp16Accumulate,
}

/// What happens to the product before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// `· + bias`.
    Bias,
    /// `max(·, 0)`, NaN kept.
    Relu,
    /// `max(· + bias, 0)`, NaN kept.
    ReluBias,
}

impl Epilogue {
    /// Whether a bias is added.
    #[must_use]
    pub const fn has_bias(self) -> bool {
        matches!(self, Self::Bias | Self::ReluBias)
    }
}

/// A column-major operand: `ld` elements from one column to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    /// The operand enters the product transposed.
    pub transposed: bool,
    /// Leading dimension, in elements.
    pub ld: i64,
    /// Largest power of two (at most 256) that divides the address.
    pub alignment: u32,
}

/// `D[m, n] = epilogue(op(A)[m, k] · op(B)[k, n])`, column-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// CUDA device index.
    pub device: i32,
    /// Element type of every matrix.
    pub dtype: Dtype,
    /// Arithmetic.
    pub math: Math,
    /// A sum may be split along K (16-bit types; the framework can forbid it).
    pub split_k: bool,
    /// `torch.use_deterministic_algorithms(True)` is in force.
    pub deterministic: bool,
    /// Rows of D.
    pub m: i64,
    /// Columns of D.
    pub n: i64,
    /// Length of each sum.
    pub k: i64,
    /// Left operand.
    pub a: Operand,
    /// Right operand.
    pub b: Operand,
    /// Leading dimension of D.
    pub ldd: i64,
    /// Alignment of D's address.
    pub d_alignment: u32,
    /// Alignment of the bias's address (256 without one).
    pub bias_alignment: u32,
    /// What is fused behind the product.
    pub epilogue: Epilogue,
}

impl Gemm {
    /// Whether its tiles leave most of the device idle and its sums are long: split
    /// along k it is many times faster.
    #[must_use]
    pub const fn has_few_long_sums(&self, multiprocessors: i64) -> bool {
        let tiles = ((self.m + 127) / 128) * ((self.n + 127) / 128);
        self.k >= 4096 && 8 * tiles <= multiprocessors
    }
}

impl fmt::Display for Gemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = |operand: &Operand| if operand.transposed { 't' } else { 'n' };
        write!(
            f,
            "gemm_{}{} m={} n={} k={} {:?} {:?} {:?} lda={} ldb={} ldd={} align={}/{}/{}/{} cuda:{}{}",
            op(&self.a),
            op(&self.b),
            self.m,
            self.n,
            self.k,
            self.dtype,
            self.math,
            self.epilogue,
            self.a.ld,
            self.b.ld,
            self.ldd,
            self.a.alignment,
            self.b.alignment,
            self.d_alignment,
            self.bias_alignment,
            self.device,
            if self.deterministic { " deterministic" } else { "" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::kept::samples::GEMM;
    use super::*;

    #[test]
    fn long_sums_of_few_tiles() {
        let few = |m, n, k| Gemm { m, n, k, ..GEMM }.has_few_long_sums(132);
        assert!(few(63, 256, 65_536) && few(256, 4, 65_536) && few(512, 512, 4096));
        assert!(!few(63, 256, 2048), "short sums");
        assert!(!few(512, 640, 65_536), "more tiles");
    }
}
