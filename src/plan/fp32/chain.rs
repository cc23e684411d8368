//! From the layers of a call to the kernels that do them, with places in scratch
//! memory for what passes between them.

use std::fmt;

use super::super::check::Matrix;
use super::super::layer::{Layer, LayerBackward};
use super::super::relu_grid::TICKETS;
use super::tiling::{image_bytes, padded, Tiling, COLS, DEPTH};
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

/// Scratch memory, given out from its beginning.
#[derive(Default)]
struct Scratch(usize);

impl Scratch {
    fn take(&mut self, bytes: usize) -> usize {
        let at = self.0;
        self.0 = self.0.saturating_add(bytes).next_multiple_of(256);
        at
    }
}

const MAX_EXTENT: i64 = i32::MAX as i64 / 2;

impl Chain {
    fn new(jobs: Vec<Job>, mut scratch: Scratch) -> Result<Self, String> {
        let partial_bytes = jobs.iter().map(|job| match job {
            Job::Pack(_) => 0,
            Job::Gemm(gemm) => gemm.tiling.partial_bytes(),
            Job::ReluBackward(relu) if relu.bias_grad == 0 => 0,
            Job::ReluBackward(relu) => (relu.grid.1 * relu.grad.cols) as usize * 4,
        });
        let partial = scratch.take(partial_bytes.max().unwrap_or(0));
        // Offsets within an image are 64-bit, the numbers of its rows are not.
        if scratch.0 > isize::MAX as usize / 2 {
            return Err("more scratch memory than there can be".to_owned());
        }
        Ok(Self { jobs, partial, scratch_bytes: scratch.0 })
    }
}

fn checked(m: i64, n: i64, k: i64) -> Result<(), String> {
    if m.max(n).max(k) > MAX_EXTENT {
        return Err(format!("a {m} x {n} x {k} product exceeds 31-bit dimensions"));
    }
    Ok(())
}

fn gemm(
    left: Matrix,
    n: i64,
    image: usize,
    output: usize,
    multiprocessors: i64,
) -> Result<Gemm, String> {
    checked(left.rows, n, left.cols)?;
    let (order, ld) = Order::of(left)?;
    let tiling = Tiling::choose(left.rows, n, left.cols, multiprocessors);
    let (bias, relu, image_out) = (None, false, None);
    Ok(Gemm { left, order, ld, image, n, bias, relu, output, image_out, tiling })
}

/// `layers` in turn; hidden results pass as images, and go to memory too where
/// they have an address.
///
/// # Errors
/// A phrase.
pub fn forward(input: Matrix, layers: &[Layer], multiprocessors: i64) -> Result<Chain, String> {
    let rows = input.rows;
    checked(rows, rows, input.cols)?;
    if input.cols > DEPTH * 65_535 {
        return Err(format!("{} columns are more than a grid has blocks", input.cols));
    }
    let mut scratch = Scratch::default();
    // One image is read while the next is written.
    let mut turns = [0, 0];
    for (turn, place) in turns.iter_mut().enumerate() {
        let widths = layers.iter().skip(turn).step_by(2).map(|layer| layer.weight.cols);
        *place = scratch.take(image_bytes(widths.max().unwrap_or(0), rows));
    }
    let right = input.transpose();
    let mut jobs = vec![Job::Pack(Pack { right, image: turns[0], order: Order::Rows })];
    for (i, layer) in layers.iter().enumerate() {
        let last = i + 1 == layers.len();
        let stated = gemm(layer.weight, rows, turns[i % 2], layer.output, multiprocessors)?;
        if stated.order != Order::Rows {
            return Err("a weight is stored by columns".to_owned());
        }
        jobs.push(Job::Gemm(Gemm {
            bias: layer.bias,
            relu: layer.relu,
            image_out: (!last).then_some(turns[(i + 1) % 2]),
            ..stated
        }));
    }
    Chain::new(jobs, scratch)
}

/// The gradients of `layers`, last layer first.
///
/// # Errors
/// A phrase.
pub fn backward(
    grad_output: Matrix,
    layers: &[LayerBackward],
    multiprocessors: i64,
) -> Result<Chain, String> {
    let rows = grad_output.rows;
    let mut widths = vec![grad_output.cols];
    widths.extend(layers.iter().filter(|l| l.grad_input != 0).map(|layer| layer.weight.cols));
    let widest = widths.into_iter().max().unwrap_or(0);
    checked(rows, rows, widest)?;
    let mut scratch = Scratch::default();
    let over_cols = scratch.take(image_bytes(widest, rows));
    let over_rows = scratch.take(image_bytes(rows, widest));

    let mut jobs = vec![];
    let mut grad = grad_output;
    for layer in layers {
        let (for_input, for_weight) = (layer.grad_input != 0, layer.grad_weight != 0);
        let (grid, rows_per_split) = relu_grid(rows, grad.cols, multiprocessors);
        jobs.push(Job::ReluBackward(ReluBackward {
            grad,
            output: layer.output,
            over_cols: for_input.then_some(over_cols),
            over_rows: for_weight.then_some(over_rows),
            bias_grad: layer.grad_bias,
            grid,
            rows_per_split,
        }));
        let mut product = |left: Matrix, n: i64, image: usize, output: usize| {
            let stated = gemm(left, n, image, output, multiprocessors)?;
            if stated.order != Order::Columns {
                return Err("an operand of a gradient is stored by columns".to_owned());
            }
            jobs.push(Job::Gemm(stated));
            Ok(())
        };
        if for_input {
            // dxᵀ = wᵀ · dzᵀ
            product(layer.weight.transpose(), rows, over_cols, layer.grad_input)?;
        }
        if for_weight {
            // dwᵀ = xᵀ · dz
            product(layer.input.transpose(), grad.cols, over_rows, layer.grad_weight)?;
        }
        grad = Matrix::dense(layer.grad_input, rows, layer.weight.cols);
    }
    Chain::new(jobs, scratch)
}

/// Strips and splits of the mask kernel, and the rows of a split: eight blocks a
/// multiprocessor if there are rows enough.
fn relu_grid(rows: i64, cols: i64, multiprocessors: i64) -> ((i64, i64), i64) {
    let strips = (cols + DEPTH - 1) / DEPTH;
    let steps = padded(rows) / 128;
    let wanted = (8 * multiprocessors / strips).clamp(1, steps.min(65_535));
    let splits = if strips > TICKETS { 1 } else { wanted };
    let rows_per_split = (steps + splits - 1) / splits * 128;
    ((strips, (padded(rows) + rows_per_split - 1) / rows_per_split), rows_per_split)
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
