//! Strict fp32 on the tensor cores: when, and which kernels do a call's work
//! (`kernels/fp32_*.cu`).
//!
//! Every product is stated the other way round, `yᵀ = w · xᵀ`, because the left
//! operand is read as it is in memory and only the right one needs an image (its
//! values in three bf16 parts, in scratch memory): weights, which are large, are
//! read as they are, and the image of a hidden result comes from the product that
//! makes it. A backward reads images of the masked gradient, which the kernel that
//! masks it writes.

pub mod chain;
pub mod jobs;
pub mod tiling;

pub use jobs::{Chain, Job};

use self::tiling::{gemm_us, library_us, relu_us};
use super::check::{Matrix, Settings};
use super::layer::Work;
use super::policy::Policy;

/// It must be predicted to take at most this part of SGEMM's time: the
/// predictions are off by up to a tenth.
const CLEARLY_FASTER: f64 = 0.9;

/// The chain of kernels that does `work`.
///
/// # Errors
/// Why cuBLASLt does it, a phrase.
pub fn choose(
    settings: Settings,
    work: &Work,
    multiprocessors: i64,
    policy: Policy,
) -> Result<Chain, String> {
    if !settings.is_strict_fp32() {
        return Err("not strict fp32".to_owned());
    }
    if policy == Policy::WhereFaster && values_in(work) < FEWEST {
        return Err("too small".to_owned());
    }
    let chain = match work {
        Work::Forward(input, layers) => chain::forward(*input, layers, multiprocessors)?,
        Work::Backward(grad, layers) => chain::backward(*grad, layers, multiprocessors)?,
    };
    if policy == Policy::WhereFaster {
        let (ours, library) = predicted_us(&chain);
        if ours > CLEARLY_FASTER * library {
            return Err(format!("predicted {ours:.1} us, with SGEMM {library:.1}"));
        }
    }
    Ok(chain)
}

/// Fewer products than these are not worth a prediction.
const FEWEST: i64 = 1 << 26;

/// Products of one pass through the layers.
fn values_in(work: &Work) -> i64 {
    let of = |rows: i64, n: i64, k: i64| rows.saturating_mul(n).saturating_mul(k);
    match work {
        Work::Forward(input, layers) => {
            let sizes = layers.iter().map(|l| of(input.rows, l.weight.rows, l.weight.cols));
            sizes.fold(0, i64::saturating_add)
        }
        Work::Backward(grad, layers) => {
            let sizes = layers.iter().map(|l| {
                // Only what counts is filled in.
                let (w, x) = (l.weight, l.input);
                of(grad.rows, w.rows, w.cols).max(of(x.rows, x.cols, grad.cols))
            });
            sizes.fold(0, i64::saturating_add)
        }
    }
}

/// µs of a chain, and of the same by SGEMM.
fn predicted_us(chain: &Chain) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for job in &chain.jobs {
        let (ours, library) = match job {
            Job::Pad(pad) => (pad.us(), 0.0),
            Job::Pack(pack) => (tiling::pack_us(pack.right.rows, pack.right.cols), 0.0),
            Job::Gemm(gemm) => {
                let (m, n, k) = (gemm.left.rows, gemm.n, gemm.left.cols);
                (gemm_us(&gemm.tiling, k), library_us(m, n, k))
            }
            Job::ReluBackward(relu) => relu_us(relu.grad.rows, relu.grad.cols),
        };
        sum = (sum.0 + ours, sum.1 + library);
    }
    sum
}

/// Which dimension of a left operand is contiguous; the kernels' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// k.
    Rows,
    /// The rows.
    Columns,
}

impl Order {
    /// `left` [m, k] with its contiguous runs as rows, and the other way round.
    fn runs(self, left: Matrix) -> Matrix {
        match self {
            Self::Rows => left,
            Self::Columns => left.transpose(),
        }
    }

    /// Elements from one contiguous run of `left` to the next.
    ///
    /// # Errors
    /// A phrase, if its runs are not contiguous.
    fn ld(self, left: Matrix) -> Result<i64, String> {
        self.runs(left).row_major_ld().ok_or_else(|| match self {
            Self::Rows => "a weight's rows are not contiguous".to_owned(),
            Self::Columns => "rows of a gradient's operand are not contiguous".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::layer::{Layer, LayerBackward};
    use super::super::problem::{Dtype, Math};
    use super::*;

    const SETTINGS: Settings = Settings::USUAL;

    fn forward(rows: i64, widths: &[i64]) -> Work {
        let layers = widths.windows(2).map(|pair| Layer {
            weight: Matrix::dense(1 << 20, pair[1], pair[0]),
            bias: None,
            output: 0,
            relu: true,
        });
        Work::Forward(Matrix::dense(1 << 30, rows, widths[0]), layers.collect())
    }

    fn chosen(work: &Work, policy: Policy) -> Result<Chain, String> {
        choose(SETTINGS, work, 132, policy)
    }

    #[test]
    fn large_layers_go_to_the_tensor_cores_and_small_ones_do_not() {
        let wins =
            |rows, widths: &[i64]| chosen(&forward(rows, widths), Policy::WhereFaster).is_ok();
        for (rows, k, n) in [(1024, 2048, 2048), (512, 4096, 4096), (4096, 4096, 4096)] {
            assert!(wins(rows, &[k, n]), "{rows} {k} {n}");
        }
        assert!(wins(1024, &[784, 2048, 2048, 2048, 2048, 1000]));
        assert!(wins(65_536, &[256; 9]));
        assert!(wins(2048, &[479, 1024, 1024, 512, 256, 1]), "rows that are copied");
        for (rows, widths) in [(1, vec![4096, 4096]), (64, vec![784, 256, 256, 10])] {
            assert!(!wins(rows, &widths), "{rows} {widths:?}");
            assert!(chosen(&forward(rows, &widths), Policy::Always).is_ok());
        }
    }

    #[test]
    fn says_why_not() {
        let Work::Forward(input, mut layers) = forward(512, &[2048, 2048]) else { panic!() };
        layers[0].weight = layers[0].weight.transpose();
        let by_columns = chosen(&Work::Forward(input, layers), Policy::Always);
        assert_eq!(by_columns.unwrap_err(), "a weight's rows are not contiguous");
        for settings in
            [Settings { math: Math::Tf32, ..SETTINGS }, Settings { dtype: Dtype::Bf16, ..SETTINGS }]
        {
            let work = forward(1024, &[2048, 2048]);
            let refused = choose(settings, &work, 132, Policy::Always);
            assert_eq!(refused.unwrap_err(), "not strict fp32");
        }
        let small = chosen(&forward(2, &[64, 64]), Policy::WhereFaster);
        assert_eq!(small.unwrap_err(), "too small");
        let slow = chosen(&forward(256, &[784, 256, 256, 10]), Policy::WhereFaster);
        assert!(slow.unwrap_err().starts_with("predicted "));
        let by_columns = Work::Backward(
            Matrix::dense(1 << 30, 1024, 2048),
            vec![LayerBackward {
                input: Matrix::dense(1 << 20, 2048, 1024).transpose(),
                weight: Matrix::dense(1 << 25, 2048, 2048),
                output: 1 << 21,
                masked: 1 << 22,
                grad_input: 1 << 23,
                grad_weight: 1 << 24,
                grad_bias: 0,
            }],
        );
        assert!(chosen(&by_columns, Policy::Always).unwrap_err().contains("contiguous"));
    }

    #[test]
    fn the_order_is_that_of_memory() {
        let w = Matrix::dense(256, 6, 8);
        let ld = |order: Order, m: Matrix| order.ld(m).ok();
        assert_eq!(ld(Order::Rows, w), Some(8));
        assert_eq!(ld(Order::Columns, w), None);
        assert_eq!(ld(Order::Columns, w.transpose()), Some(8));
        assert_eq!(ld(Order::Rows, Matrix { row_stride: 9, ..w }), Some(9));
        assert_eq!(ld(Order::Rows, Matrix { row_stride: 16, col_stride: 2, ..w }), None);
        // One column by itself is stored both ways.
        let column = Matrix::dense(256, 6, 1);
        assert_eq!(ld(Order::Columns, column.transpose()), Some(1));
    }
}
