//! Timed plans that outlive the process: what a plan is (here), the line that states
//! one (`line`), the text of a whole file (`text`), and in which folder it is
//! (`place`). Reading and writing is `launch::plan_file`'s.
//!
//! A plan from a file is a hint: it names an algorithm, and is taken only if
//! cuBLASLt's heuristic (or `plan::tensor_gemm`) offers that very one for the product. So
//! whatever a file says, its bytes never reach cuBLASLt, and the worst that a wrong one
//! can do is a slower choice.

use super::problem::Gemm;
use super::tensor_gemm::Shape;

pub mod line;
pub mod place;
#[cfg(test)]
pub(super) mod samples;
pub mod text;

/// Plans in a file at most; each is a line of some 400 bytes.
pub const MOST: usize = 4096;

/// How many attributes an algorithm of cuBLASLt's has.
pub const CONFIG: usize = 9;
/// Their values.
pub type Config = [u32; CONFIG];

/// Which algorithm does a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// cuBLASLt's.
    Library {
        /// Its attributes (`cublasLtMatmulAlgoConfigAttributes_t`, in that order).
        config: Config,
        /// Scratch bytes.
        workspace: u64,
    },
    /// `kernels/tensor_gemm.cu`; the rest of its tiling follows from the product.
    Own {
        /// Of a block.
        shape: Shape,
        /// Whether it begins while the kernel in front ends.
        overlaps: bool,
    },
}

/// A product and what was found to be fastest for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// The product, on device 0 whichever it was: the file is about one kind of device.
    pub gemm: Gemm,
    /// Its algorithm.
    pub choice: Choice,
    /// µs of it when it was timed; `None` if nothing else was to be had.
    pub us: Option<f32>,
}

impl Kept {
    /// The plan for `gemm`; a time that is none is left out.
    #[must_use]
    pub fn new(gemm: &Gemm, choice: Choice, us: Option<f32>) -> Self {
        let us = us.filter(|us| us.is_finite() && *us >= 0.0);
        Self { gemm: key(gemm), choice, us }
    }
}

/// What a plan is found by.
#[must_use]
pub fn key(gemm: &Gemm) -> Gemm {
    Gemm { device: 0, ..*gemm }
}

/// FNV-1a. Against damage, not malice: see the head of this file.
#[must_use]
pub const fn hash(bytes: &[u8], from: u64) -> u64 {
    let mut state = from;
    let mut at = 0;
    while at < bytes.len() {
        state = (state ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    state
}

/// Where [`hash`] begins.
pub const SEED: u64 = 0xcbf2_9ce4_8422_2325;
