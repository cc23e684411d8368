//! From the layers of a call to the kernels that do them, with places in scratch
//! memory for what passes between them.

use super::super::check::{alignment, Matrix};
use super::super::layer::{Layer, LayerBackward};
use super::super::pad::{is_aligned, Pad};
use super::super::problem::Dtype;
use super::super::relu_grid::TICKETS;
use super::jobs::{Chain, Gemm, Job, Pack, ReluBackward};
use super::tiling::{image_bytes, padded, Tiling, DEPTH};
use super::Order;

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

/// A chain that is being stated.
struct Draft {
    multiprocessors: i64,
    scratch: Scratch,
    /// In front of all others, and behind them a job that is no product: products
    /// fetch their left operand before they wait.
    pads: Vec<Job>,
    jobs: Vec<Job>,
}

impl Draft {
    fn new(multiprocessors: i64) -> Self {
        Self { multiprocessors, scratch: Scratch::default(), pads: vec![], jobs: vec![] }
    }

    /// A product whose left operand is stored in that order, copied first if the copy
    /// engine cannot read it.
    fn gemm(
        &mut self,
        left: Matrix,
        order: Order,
        n: i64,
        image: usize,
        output: usize,
    ) -> Result<Gemm, String> {
        checked(left.rows, n, left.cols)?;
        let ld = order.ld(left)?;
        let padded = !is_aligned(alignment(left.data), ld, Dtype::F32.size());
        let (left, ld) = if padded { self.pad(left, order)? } else { (left, ld) };
        let tiling = Tiling::choose(left.rows, n, left.cols, self.multiprocessors);
        let (bias, relu, image_out) = (None, false, None);
        Ok(Gemm { left, padded, order, ld, image, n, bias, relu, output, image_out, tiling })
    }

    /// The copy of `left`, and its elements from one contiguous run to the next.
    fn pad(&mut self, left: Matrix, order: Order) -> Result<(Matrix, i64), String> {
        let pad = Pad::new(order.runs(left), Dtype::F32.size(), self.scratch.0)?;
        self.scratch.take(pad.bytes());
        self.pads.push(Job::Pad(pad));
        Ok((order.runs(pad.copy()), pad.ld))
    }

    fn chain(self) -> Result<Chain, String> {
        let Self { jobs, pads, mut scratch, .. } = self;
        let jobs = [pads, jobs].concat();
        let partial_bytes = jobs.iter().map(|job| match job {
            Job::Pad(_) | Job::Pack(_) => 0,
            Job::Gemm(gemm) => gemm.tiling.partial_bytes(),
            Job::ReluBackward(relu) if relu.bias_grad == 0 => 0,
            Job::ReluBackward(relu) => (relu.grid.1 * relu.grad.cols) as usize * 4,
        });
        let partial = scratch.take(partial_bytes.max().unwrap_or(0));
        // Offsets within an image are 64-bit, the numbers of its rows are not.
        if scratch.0 > isize::MAX as usize / 2 {
            return Err("more scratch memory than there can be".to_owned());
        }
        Ok(Chain { jobs, partial, scratch_bytes: scratch.0 })
    }
}

fn checked(m: i64, n: i64, k: i64) -> Result<(), String> {
    if m.max(n).max(k) > MAX_EXTENT {
        return Err(format!("a {m} x {n} x {k} product exceeds 31-bit dimensions"));
    }
    Ok(())
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
    let mut draft = Draft::new(multiprocessors);
    // One image is read while the next is written.
    let mut turns = [0, 0];
    for (turn, place) in turns.iter_mut().enumerate() {
        let widths = layers.iter().skip(turn).step_by(2).map(|layer| layer.weight.cols);
        *place = draft.scratch.take(image_bytes(widths.max().unwrap_or(0), rows));
    }
    let right = input.transpose();
    draft.jobs.push(Job::Pack(Pack { right, image: turns[0], order: Order::Rows }));
    for (i, layer) in layers.iter().enumerate() {
        let last = i + 1 == layers.len();
        let stated = draft.gemm(layer.weight, Order::Rows, rows, turns[i % 2], layer.output)?;
        draft.jobs.push(Job::Gemm(Gemm {
            bias: layer.bias,
            relu: layer.relu,
            image_out: (!last).then_some(turns[(i + 1) % 2]),
            ..stated
        }));
    }
    draft.chain()
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
    let mut draft = Draft::new(multiprocessors);
    let over_cols = draft.scratch.take(image_bytes(widest, rows));
    let over_rows = draft.scratch.take(image_bytes(rows, widest));

    let mut grad = grad_output;
    for layer in layers {
        let (for_input, for_weight) = (layer.grad_input != 0, layer.grad_weight != 0);
        let (grid, rows_per_split) = relu_grid(rows, grad.cols, multiprocessors);
        draft.jobs.push(Job::ReluBackward(ReluBackward {
            grad,
            output: layer.output,
            over_cols: for_input.then_some(over_cols),
            over_rows: for_weight.then_some(over_rows),
            bias_grad: layer.grad_bias,
            grid,
            rows_per_split,
        }));
        let mut product = |left: Matrix, n: i64, image: usize, output: usize| {
            let stated = draft.gemm(left, Order::Columns, n, image, output)?;
            draft.jobs.push(Job::Gemm(stated));
            Ok::<(), String>(())
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
    draft.chain()
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
