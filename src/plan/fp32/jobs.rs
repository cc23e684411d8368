//! The kernels of a chain as plain data.

use std::fmt;

use super::super::check::Matrix;
use super::super::pad::Pad;
use super::tiling::{Tiling, COLS};
use super::Order;

/// Kernels in turn; places in scratch memory are bytes from its beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// In their order.
    pub jobs: Vec<Job>,
    /// Where every job's partial sums go.
    pub partial: usize,
    /// Scratch memory of all.
    pub scratch_bytes: usize,
}

/// One kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Job {
    /// `kernels/pad_rows.cu`.
    Pad(Pad),
    /// `kernels/fp32_pack.cu`.
    Pack(Pack),
    /// `kernels/fp32_gemm.cu`.
    Gemm(Gemm),
    /// `kernels/fp32_relu_backward.cu`.
    ReluBackward(ReluBackward),
}

/// The image of `right [k, n]`, for a product whose left operand has that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pack {
    /// Any strides.
    pub right: Matrix,
    /// Where it goes.
    pub image: usize,
    /// Of k in the image.
    pub order: Order,
}

/// `d [m, n] = left · right`, then bias and ReLU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// `[m, k]`.
    pub left: Matrix,
    /// It is a [`Pad`]'s copy: its address is a place in scratch memory.
    pub padded: bool,
    /// Of `left` in memory.
    pub order: Order,
    /// Elements from one contiguous run of `left` to the next.
    pub ld: i64,
    /// Of `right [k, n]`.
    pub image: usize,
    /// Columns.
    pub n: i64,
    /// `[m]`.
    pub bias: Option<usize>,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Address of dᵀ, dense; 0 if nobody wants it.
    pub output: usize,
    /// Where the image of d goes.
    pub image_out: Option<usize>,
    /// How it is covered.
    pub tiling: Tiling,
}

/// The mask of a gradient, its images and column sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReluBackward {
    /// `[rows, cols]`, any strides.
    pub grad: Matrix,
    /// What the ReLU returned, dense; 0 without a mask.
    pub output: usize,
    /// Image for products that sum over columns.
    pub over_cols: Option<usize>,
    /// Image for products that sum over rows.
    pub over_rows: Option<usize>,
    /// Address of the column sums; 0 if nobody wants them.
    pub bias_grad: usize,
    /// Strips of 32 columns, splits of the rows.
    pub grid: (i64, i64),
    /// Rows of a split.
    pub rows_per_split: i64,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, job) in self.jobs.iter().enumerate() {
            f.write_str(if i > 0 { ", " } else { "" })?;
            match job {
                Job::Pad(pad) => write!(f, "pad {}x{}", pad.from.rows, pad.from.cols)?,
                Job::Pack(pack) => write!(f, "pack {}x{}", pack.right.rows, pack.right.cols)?,
                Job::Gemm(gemm) => {
                    let (m, k, tiling) = (gemm.left.rows, gemm.left.cols, gemm.tiling);
                    let cols = COLS[tiling.shape];
                    write!(f, "gemm {m}x{}x{k} by 128x{cols}/{}", gemm.n, tiling.splits)?;
                    if tiling.parts > 1 {
                        write!(f, " in {} parts", tiling.parts)?;
                    }
                }
                Job::ReluBackward(relu) => {
                    write!(f, "relu_backward {}x{}", relu.grad.rows, relu.grad.cols)?;
                }
            }
        }
        write!(f, "; {} B scratch", self.scratch_bytes)
    }
}
