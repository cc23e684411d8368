//! The work of linear layers as plain data: which products run and where
//! their matrices are, forward and backward, for one layer or a chain.

use super::check::{gemm, Matrix, Settings};
use super::problem::{Dtype, Epilogue, Gemm};

/// Addresses of one product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmData {
    /// Left operand (column-major notation).
    pub a: usize,
    /// Right operand.
    pub b: usize,
    /// Result.
    pub d: usize,
    /// Bias, or 0.
    pub bias: usize,
}

/// A product and where its matrices are.
#[derive(Debug, Clone, Copy)]
pub struct Stated {
    /// What to compute.
    pub gemm: Gemm,
    /// On what.
    pub data: GemmData,
}

/// `output[M, N] = input[M, K] · weight[N, K]ᵀ + bias[N]`, through a ReLU or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    /// `[N, K]`.
    pub weight: Matrix,
    /// `[N]`, if any.
    pub bias: Option<usize>,
    /// `[M, N]`, dense; 0 for a hidden result that nobody wants.
    pub output: usize,
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// Matrices of one layer's backward; 0 for a result that nobody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerBackward {
    /// `[M, K]`; counts only for `grad_weight`.
    pub input: Matrix,
    /// `[N, K]`; counts only for `grad_input`.
    pub weight: Matrix,
    /// `[M, N]`, dense: what the ReLU returned; 0 without a ReLU.
    pub output: usize,
    /// `[M, N]`, dense: scratch for the masked gradient, needed with a ReLU for
    /// either of the next two.
    pub masked: usize,
    /// `[M, K]`, dense.
    pub grad_input: usize,
    /// `[N, K]`, dense.
    pub grad_weight: usize,
    /// `[N]`.
    pub grad_bias: usize,
}

/// One masked gradient and its column sums, or the sums alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReluBackward {
    /// Incoming gradient, any strides.
    pub grad: Matrix,
    /// What ReLU returned, dense; 0 for no mask.
    pub output: usize,
    /// Where the masked gradient goes, dense; 0 for nowhere.
    pub masked: usize,
    /// Where its column sums go; 0 for nowhere.
    pub bias_grad: usize,
    /// Element type of all four.
    pub dtype: Dtype,
}

/// What an operator call asks for. The same with equal fields, addresses
/// included, is the same work on the same memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Work {
    /// Layers in turn, each on the result of the one before.
    Forward(Matrix, Vec<Layer>),
    /// Their gradients from `grad_output`, last layer first.
    Backward(Matrix, Vec<LayerBackward>),
}

impl Work {
    /// Whether there is no memory for hidden results: for one launch, which
    /// needs none.
    #[must_use]
    pub fn lacks_hidden(&self) -> bool {
        match self {
            Self::Forward(_, layers) => layers.iter().rev().skip(1).any(|layer| layer.output == 0),
            _ => false,
        }
    }

    /// The steps that do it, in their order; not for work that
    /// [`Self::lacks_hidden`].
    ///
    /// # Errors
    /// A phrase for [`crate::launch::Refusal`] when cuBLASLt cannot take one.
    pub fn steps(&self, settings: Settings) -> Result<Vec<Step>, String> {
        match self {
            Self::Forward(input, layers) => {
                let products = forward(settings, *input, layers)?.into_iter();
                Ok(products.map(|p| Step { relu: None, products: [Some(p), None] }).collect())
            }
            Self::Backward(grad_output, layers) => backward(settings, *grad_output, layers),
        }
    }
}

/// The mask of a layer's backward, if any, then the products that read it; of
/// a layer's forward the product alone.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Without one nothing is masked or summed.
    pub relu: Option<ReluBackward>,
    /// In a backward the gradients of input and weight.
    pub products: [Option<Stated>; 2],
}

/// The products of `layers`, each on the result of the one before.
///
/// # Errors
/// A phrase for [`crate::launch::Refusal`] when cuBLASLt cannot take one.
pub fn forward(settings: Settings, input: Matrix, layers: &[Layer]) -> Result<Vec<Stated>, String> {
    let mut left = input;
    let mut products = Vec::with_capacity(layers.len());
    for layer in layers {
        let epilogue = match (layer.relu, layer.bias.is_some()) {
            (true, true) => Epilogue::ReluBias,
            (true, false) => Epilogue::Relu,
            (false, true) => Epilogue::Bias,
            (false, false) => Epilogue::None,
        };
        let right = layer.weight.transpose();
        products.push(product(settings, left, right, layer.output, layer.bias, epilogue)?);
        left = Matrix::dense(layer.output, left.rows, layer.weight.rows);
    }
    Ok(products)
}

/// The steps of `layers`, last layer first, each on the gradient that the one
/// before left in its `grad_input`; `grad_output` has any strides if the first
/// of them has a ReLU, else unit stride in a dimension.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    settings: Settings,
    grad_output: Matrix,
    layers: &[LayerBackward],
) -> Result<Vec<Step>, String> {
    let mut grad = grad_output;
    let mut steps = Vec::with_capacity(layers.len());
    for layer in layers {
        let masks = layer.output != 0;
        let relu = (masks || layer.grad_bias != 0).then_some(ReluBackward {
            grad,
            output: layer.output,
            masked: layer.masked,
            bias_grad: layer.grad_bias,
            dtype: settings.dtype,
        });
        let passed = if masks { Matrix::dense(layer.masked, grad.rows, grad.cols) } else { grad };
        let wanted = |left: Matrix, right: Matrix, out: usize| {
            (out != 0)
                .then(|| product(settings, left, right, out, None, Epilogue::None))
                .transpose()
        };
        steps.push(Step {
            relu,
            products: [
                wanted(passed, layer.weight, layer.grad_input)?,
                wanted(passed.transpose(), layer.input, layer.grad_weight)?,
            ],
        });
        grad = Matrix::dense(layer.grad_input, grad.rows, layer.weight.cols);
    }
    Ok(steps)
}

fn product(
    settings: Settings,
    left: Matrix,
    right: Matrix,
    out: usize,
    bias: Option<usize>,
    epilogue: Epilogue,
) -> Result<Stated, String> {
    let gemm = gemm(settings, left, right, out, bias, epilogue)?;
    let data = GemmData { a: right.data, b: left.data, d: out, bias: bias.unwrap_or_default() };
    Ok(Stated { gemm, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings::USUAL;
    /// Bytes from one element to the next, as the addresses count.
    const SIZE: usize = 4;

    /// Memory of a machine that runs what is stated, in fp64.
    struct Machine(Vec<f64>);

    impl Machine {
        /// Address of new memory with these values, 256-byte aligned.
        fn put(&mut self, values: &[f64]) -> usize {
            self.0.resize(self.0.len().next_multiple_of(64), f64::NAN);
            let address = self.0.len() * SIZE;
            self.0.extend(values);
            address
        }

        fn room(&mut self, elements: i64) -> usize {
            self.put(&vec![f64::NAN; usize::try_from(elements).unwrap()])
        }

        fn matrix(&mut self, rows: i64, cols: i64, seed: i64) -> Matrix {
            let values: Vec<f64> =
                (0..rows * cols).map(|i| f64::from(((i * 7 + seed) % 11 - 5) as i32)).collect();
            Matrix::dense(self.put(&values), rows, cols)
        }

        fn at(&mut self, address: usize, element: i64) -> &mut f64 {
            &mut self.0[address / SIZE + usize::try_from(element).unwrap()]
        }

        fn read(&mut self, m: Matrix) -> Vec<Vec<f64>> {
            (0..m.rows)
                .map(|r| {
                    (0..m.cols)
                        .map(|c| *self.at(m.data, r * m.row_stride + c * m.col_stride))
                        .collect()
                })
                .collect()
        }

        /// As cuBLASLt reads it: column-major, `d = epilogue(op(a) · op(b))`.
        fn run(&mut self, Stated { gemm: g, data }: Stated) {
            let offset = |t: bool, r: i64, c: i64, ld| if t { c + r * ld } else { r + c * ld };
            for col in 0..g.n {
                for row in 0..g.m {
                    let mut sum = 0.0;
                    for k in 0..g.k {
                        sum += *self.at(data.a, offset(g.a.transposed, row, k, g.a.ld))
                            * *self.at(data.b, offset(g.b.transposed, k, col, g.b.ld));
                    }
                    if g.epilogue.has_bias() {
                        sum += *self.at(data.bias, row);
                    }
                    if matches!(g.epilogue, Epilogue::Relu | Epilogue::ReluBias) {
                        sum = sum.max(0.0);
                    }
                    *self.at(data.d, row + col * g.ldd) = sum;
                }
            }
        }

        /// As the kernel: the mask and the column sums.
        fn mask(&mut self, relu: ReluBackward) {
            let ReluBackward { grad, output, masked, bias_grad, .. } = relu;
            for c in 0..grad.cols {
                let mut sum = 0.0;
                for r in 0..grad.rows {
                    let at = r * grad.cols + c;
                    let g = *self.at(grad.data, r * grad.row_stride + c * grad.col_stride);
                    let off = output != 0 && *self.at(output, at) <= 0.0;
                    let z = if off { 0.0 } else { g };
                    sum += z;
                    if masked != 0 {
                        *self.at(masked, at) = z;
                    }
                }
                if bias_grad != 0 {
                    *self.at(bias_grad, c) = sum;
                }
            }
        }
    }

    fn times(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let dot = |row: &[f64], c: usize| row.iter().zip(b).map(|(x, line)| x * line[c]).sum();
        a.iter().map(|row| (0..b[0].len()).map(|c| dot(row, c)).collect()).collect()
    }

    fn flipped(a: &[Vec<f64>]) -> Vec<Vec<f64>> {
        (0..a[0].len()).map(|c| a.iter().map(|row| row[c]).collect()).collect()
    }

    const ROWS: i64 = 3;
    const WIDTHS: [i64; 5] = [4, 5, 2, 6, 3];

    struct Chain {
        machine: Machine,
        input: Matrix,
        layers: Vec<Layer>,
        /// What each layer must return.
        wants: Vec<Vec<Vec<f64>>>,
    }

    /// Four layers, with a bias at every other; hidden results in two buffers
    /// in turn, or in one each where `keep` is asked for.
    fn chain(relu_last: bool, keep: bool) -> Chain {
        let mut machine = Machine(vec![f64::NAN; 64]);
        let input = machine.matrix(ROWS, WIDTHS[0], 0);
        let turns = [machine.room(ROWS * 6), machine.room(ROWS * 6)];
        let mut layers = vec![];
        let mut wants: Vec<Vec<Vec<f64>>> = vec![];
        let mut h = machine.read(input);
        for (i, pair) in WIDTHS.windows(2).enumerate() {
            let weight = machine.matrix(pair[1], pair[0], i as i64 + 1);
            let bias = (i % 2 == 1).then(|| machine.matrix(1, pair[1], 3).data);
            let last = i + 2 == WIDTHS.len();
            let own = machine.room(ROWS * pair[1]);
            let output = if last || keep { own } else { turns[i % 2] };
            let relu = !last || relu_last;
            layers.push(Layer { weight, bias, output, relu });

            h = times(&h, &flipped(&machine.read(weight)));
            for row in &mut h {
                for (c, value) in row.iter_mut().enumerate() {
                    *value += bias.map_or(0.0, |bias| *machine.at(bias, c as i64));
                    *value = if relu { value.max(0.0) } else { *value };
                }
            }
            wants.push(h.clone());
        }
        Chain { machine, input, layers, wants }
    }

    #[test]
    fn a_chain_computes_its_layers() {
        for (relu_last, keep) in [(false, false), (false, true), (true, false), (true, true)] {
            let Chain { mut machine, input, layers, wants } = chain(relu_last, keep);
            for stated in forward(SETTINGS, input, &layers).unwrap() {
                machine.run(stated);
            }
            let last = Matrix::dense(layers[3].output, ROWS, WIDTHS[4]);
            assert_eq!(machine.read(last), wants[3]);
            assert!(wants[3].iter().flatten().any(|&value| value > 0.0));
            assert_eq!(wants[3].iter().flatten().any(|&value| value < 0.0), !relu_last);
        }
    }

    #[test]
    fn a_chain_goes_back_through_its_layers() {
        for relu_last in [false, true] {
            let Chain { mut machine, input, layers, wants } = chain(relu_last, true);
            for stated in forward(SETTINGS, input, &layers).unwrap() {
                machine.run(stated);
            }
            // Transposed in memory: any strides if a ReLU comes first, and
            // cuBLASLt takes these too.
            let grad_output = machine.matrix(WIDTHS[4], ROWS, 2).transpose();
            // Two buffers for the whole way, as cpp/cuda_mlp.cpp has them.
            let (masked, on_the_way) = (machine.room(ROWS * 6), machine.room(ROWS * 6));
            let mut back: Vec<LayerBackward> = vec![];
            for i in (0..layers.len()).rev() {
                let (k, n) = (WIDTHS[i], WIDTHS[i + 1]);
                let front = i.checked_sub(1).map(|j| Matrix::dense(layers[j].output, ROWS, k));
                back.push(LayerBackward {
                    input: front.unwrap_or(input),
                    weight: layers[i].weight,
                    output: if layers[i].relu { layers[i].output } else { 0 },
                    masked: if layers[i].relu { masked } else { 0 },
                    grad_input: if i == 0 { machine.room(ROWS * k) } else { on_the_way },
                    grad_weight: machine.room(n * k),
                    grad_bias: machine.room(n),
                });
            }
            for step in backward(SETTINGS, grad_output, &back).unwrap() {
                step.relu.into_iter().for_each(|relu| machine.mask(relu));
                step.products.into_iter().flatten().for_each(|stated| machine.run(stated));
            }

            let mut grad = machine.read(grad_output);
            for (i, layer) in (0..layers.len()).rev().zip(&back) {
                if layers[i].relu {
                    for (row, outputs) in grad.iter_mut().zip(&wants[i]) {
                        for (value, &output) in row.iter_mut().zip(outputs) {
                            *value = if output <= 0.0 { 0.0 } else { *value };
                        }
                    }
                }
                let x = if i == 0 { machine.read(input) } else { wants[i - 1].clone() };
                let (k, n) = (WIDTHS[i], WIDTHS[i + 1]);
                let got = machine.read(Matrix::dense(layer.grad_weight, n, k));
                assert_eq!(got, times(&flipped(&grad), &x), "weight {i}");
                let got = machine.read(Matrix::dense(layer.grad_bias, 1, n));
                assert_eq!(got, times(&[vec![1.0; 3]], &grad), "bias {i}");
                grad = times(&grad, &machine.read(layer.weight));
            }
            let got = machine.read(Matrix::dense(back[3].grad_input, ROWS, WIDTHS[0]));
            assert_eq!(got, grad);
            assert!(grad.iter().flatten().any(|&value| value != 0.0));
        }
    }

    #[test]
    fn nothing_is_stated_for_what_nobody_wants() {
        let grad = Matrix::dense(256, 3, 4);
        let none = Matrix { data: 0, rows: 0, cols: 0, row_stride: 0, col_stride: 0 };
        let bias_alone = LayerBackward {
            input: none,
            weight: none,
            output: 512,
            masked: 0,
            grad_input: 0,
            grad_weight: 0,
            grad_bias: 1024,
        };
        let steps = backward(SETTINGS, grad, &[bias_alone]).unwrap();
        assert_eq!(steps.len(), 1);
        assert!(steps[0].products.iter().all(Option::is_none));
        assert_eq!(steps[0].relu.unwrap().masked, 0);
    }

    #[test]
    fn a_layer_that_cublaslt_cannot_take_is_named() {
        let Chain { input, mut layers, .. } = chain(false, true);
        layers[2].weight.row_stride = 1 << 40;
        assert!(forward(SETTINGS, input, &layers).unwrap_err().contains("row stride"));
    }
}
