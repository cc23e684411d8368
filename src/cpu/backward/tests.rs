//! Gradients against fp64, every instruction set that this CPU has, any threads.

use super::super::amx;
use super::super::element::Element;
use super::super::testing::{available, Random};
use super::*;

/// Everything that this CPU can run.
fn kernels() -> Vec<Kernels> {
    let fma = available().into_iter().map(|isa| Kernels { isa, math: Math::Fma });
    let amx = Kernels { isa: Isa::Avx512, math: Math::Amx(3) };
    fma.chain(amx::available().then_some(amx)).collect()
}

/// A chain, its operands and what is wanted.
struct Case {
    rows: usize,
    widths: Vec<usize>,
    pad: usize,
    relu_last: bool,
    /// Of `widths`, first the input: what lies before each layer, the last one's too.
    values: Vec<Vec<f32>>,
    weights: Vec<Vec<f32>>,
    grad: Vec<f32>,
    /// Input, weights, biases.
    wanted: Vec<bool>,
}

impl Case {
    fn new(random: &mut Random, rows: usize, widths: &[usize]) -> Self {
        let pad = random.below(3);
        let stride = |i: usize, k: usize| if i == 0 { k + pad } else { k };
        let values = widths.iter().enumerate().map(|(i, k)| {
            let vector = random.vector(rows * stride(i, *k));
            // Of a ReLU; zeros are among them.
            vector.into_iter().map(|v| if i > 0 { v.max(0.0) } else { v }).collect()
        });
        let values = values.collect();
        let layers = widths.iter().zip(&widths[1..]);
        let weights = layers.map(|(k, n)| random.vector(n * (k + pad))).collect();
        let grad = random.vector(rows * (widths[widths.len() - 1] + pad));
        let wanted = (0..2 * widths.len() - 1).map(|_| random.below(4) != 0).collect();
        let relu_last = random.below(2) == 0;
        Self { rows, widths: widths.to_vec(), pad, relu_last, values, weights, grad, wanted }
    }

    fn layers(&self) -> usize {
        self.weights.len()
    }

    /// Input, weights, biases; those that nobody wants are empty.
    fn run(&self, kernels: Kernels, threads: usize) -> Vec<Vec<f32>> {
        let (count, rows) = (self.layers(), self.rows);
        let sizes = std::iter::once(rows * self.widths[0])
            .chain((0..count).map(|i| self.widths[i] * self.widths[i + 1]))
            .chain(self.widths[1..].iter().copied());
        let mut grads: Vec<Vec<f32>> = sizes
            .zip(&self.wanted)
            .map(|(size, wanted)| vec![f32::NAN; if *wanted { size } else { 0 }])
            .collect();
        let lowest =
            (0..count).find(|i| self.wanted[0] || self.wanted[1 + i] || self.wanted[1 + count + i]);
        let Some(lowest) = lowest else { return grads };
        let mut address = |i: usize| match grads[i].is_empty() {
            true => std::ptr::null_mut(),
            false => grads[i].as_mut_ptr(),
        };
        let matrix = |values: &Vec<f32>, rows: usize, k: usize, pad: usize| Matrix {
            data: values.as_ptr().cast(),
            stride: k + pad,
            rows,
            k,
            element: Element::F32,
        };
        let layers = (lowest..count).map(|i| {
            let (k, n) = (self.widths[i], self.widths[i + 1]);
            let has_relu = i + 1 < count || self.relu_last;
            Layer {
                weight: matrix(&self.weights[i], n, k, self.pad),
                input: matrix(&self.values[i], rows, k, if i == 0 { self.pad } else { 0 }),
                output: if has_relu { self.values[i + 1].as_ptr() } else { std::ptr::null() },
                grad_weight: address(1 + i),
                grad_bias: address(1 + count + i),
            }
        });
        let layers: Vec<_> = layers.collect();
        let grad = matrix(&self.grad, rows, self.widths[count], self.pad);
        // SAFETY: sizes as stated; the vectors outlive the work.
        let backward = unsafe { Backward::new(kernels, grad, layers, address(0), threads) };
        std::thread::scope(|scope| {
            for me in 0..threads {
                let backward = &backward;
                scope.spawn(move || assert!(backward.work(me)));
            }
        });
        drop(backward);
        grads
    }

    /// The same in fp64, each beside the sum of its terms' sizes.
    fn exact(&self) -> Vec<Vec<(f64, f64)>> {
        let (count, rows) = (self.layers(), self.rows);
        let mut result = vec![vec![]; 1 + 2 * count];
        let ld = self.widths[count] + self.pad;
        let mut grad: Vec<(f64, f64)> = (0..rows * self.widths[count])
            .map(|i| f64::from(self.grad[i / self.widths[count] * ld + i % self.widths[count]]))
            .map(|v| (v, v.abs()))
            .collect();
        for i in (0..count).rev() {
            let (k, n) = (self.widths[i], self.widths[i + 1]);
            if i + 1 < count || self.relu_last {
                for (g, y) in grad.iter_mut().zip(&self.values[i + 1]) {
                    if *y <= 0.0 {
                        *g = (0.0, 0.0);
                    }
                }
            }
            let x_ld = if i == 0 { k + self.pad } else { k };
            let sum = |terms: &mut dyn Iterator<Item = ((f64, f64), f64)>| {
                terms.fold((0.0, 0.0), |s, (g, f)| (s.0 + g.0 * f, s.1 + g.1 * f.abs()))
            };
            result[1 + i] = (0..n * k)
                .map(|e| {
                    let (column, at) = (e / k, e % k);
                    sum(&mut (0..rows)
                        .map(|r| (grad[r * n + column], f64::from(self.values[i][r * x_ld + at]))))
                })
                .collect();
            result[1 + count + i] =
                (0..n).map(|c| sum(&mut (0..rows).map(|r| (grad[r * n + c], 1.0)))).collect();
            grad = (0..rows * k)
                .map(|e| {
                    let (row, at) = (e / k, e % k);
                    let weight = |c: usize| f64::from(self.weights[i][c * (k + self.pad) + at]);
                    sum(&mut (0..n).map(|c| (grad[row * n + c], weight(c))))
                })
                .collect();
        }
        result[0] = grad;
        result
    }

    fn check(&self, got: &[Vec<f32>], what: &str) {
        // Each term goes through as many roundings as its sums have terms.
        let terms = self.rows + self.widths.iter().sum::<usize>() + 4;
        for (i, (got, want)) in got.iter().zip(self.exact()).enumerate() {
            assert_eq!(got.is_empty(), !self.wanted[i], "{what}");
            for (got, (want, size)) in got.iter().zip(want) {
                let bound = terms as f64 * 2f64.powi(-24) * size + f64::from(f32::MIN_POSITIVE);
                let error = (f64::from(*got) - want).abs();
                assert!(error <= bound, "{what}, gradient {i}: {got}, want {want}");
            }
        }
    }
}

#[test]
fn gradients_agree_with_fp64() {
    let mut random = Random(71);
    for _ in 0..60 {
        let rows = 1 + random.below(90);
        let widths: Vec<usize> = (0..2 + random.below(3)).map(|_| 1 + random.below(80)).collect();
        let case = Case::new(&mut random, rows, &widths);
        for kernels in kernels() {
            case.check(&case.run(kernels, 1), &format!("{kernels:?} {rows} rows {widths:?}"));
        }
    }
}

#[test]
fn long_sums_go_in_blocks() {
    let mut random = Random(72);
    for (rows, widths) in [(5000, vec![40, 3]), (20, vec![35, 4500, 9])] {
        let mut case = Case::new(&mut random, rows, &widths);
        case.wanted.fill(true);
        for kernels in kernels().into_iter().filter(|kernels| kernels.isa != Isa::Scalar) {
            case.check(&case.run(kernels, 2), &format!("{kernels:?} {rows} rows {widths:?}"));
        }
    }
}

#[test]
fn wide_layers_go_in_groups_of_panels() {
    let mut random = Random(76);
    for (rows, widths) in [(20, vec![1100, 9]), (33, vec![600, 1090, 40])] {
        let mut case = Case::new(&mut random, rows, &widths);
        case.wanted.fill(true);
        for kernels in kernels() {
            for threads in [1, 2] {
                let got = case.run(kernels, threads);
                case.check(&got, &format!("{kernels:?} {rows} rows {widths:?} {threads} threads"));
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let mut random = Random(73);
    for i in 0..10 {
        let rows = 1 + random.below(200);
        let first = if i == 0 { 1100 } else { 130 };
        let case = Case::new(&mut random, rows, &[first, 175, 64, 10]);
        for kernels in kernels() {
            let want = case.run(kernels, 1);
            for threads in [2, 3, 7] {
                let bits = |grads: &[Vec<f32>]| -> Vec<Vec<u32>> {
                    grads.iter().map(|g| g.iter().map(|v| v.to_bits()).collect()).collect()
                };
                assert_eq!(bits(&case.run(kernels, threads)), bits(&want), "{kernels:?} {threads}");
            }
        }
    }
}

#[test]
fn a_mask_keeps_what_is_behind_nan_and_drops_what_is_behind_zero() {
    let mut random = Random(74);
    let mut case = Case::new(&mut random, 33, &[40, 20, 15]);
    case.wanted.fill(true);
    case.relu_last = true;
    case.values[1].fill(1.0);
    case.values[2].fill(1.0);
    for kernels in kernels() {
        let want = case.run(kernels, 1);
        let mut other = Case { values: case.values.clone(), ..clone(&case) };
        other.values[2][7 * 15 + 3] = f32::NAN;
        other.values[1][7 * 20 + 5] = f32::NAN;
        assert_eq!(other.run(kernels, 1)[4], want[4], "{kernels:?}: biases do not read values");
        assert_eq!(other.run(kernels, 1)[0], want[0], "{kernels:?}: nor does the input's gradient");
        other.values[2][7 * 15 + 3] = 0.0;
        let got = other.run(kernels, 1);
        assert!(got[0][7 * 40..8 * 40] != want[0][7 * 40..8 * 40], "{kernels:?}");
        assert_eq!(got[0][..7 * 40], want[0][..7 * 40], "{kernels:?}");
    }
}

#[test]
fn what_is_not_finite_spreads_alike() {
    let mut random = Random(76);
    let mut case = Case::new(&mut random, 70, &[90, 50, 40]);
    case.wanted.fill(true);
    case.values[1].fill(1.0);
    for (place, value) in [(3, f32::INFINITY), (805, f32::NAN), (1900, f32::MAX)] {
        case.grad[place] = value;
        case.values[0][place] = value;
    }
    case.weights[1][77] = f32::NEG_INFINITY;
    let all = kernels();
    let want = case.run(all[0], 1);
    for kernels in &all[1..] {
        let got = case.run(*kernels, 2);
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            let both_nan = got.is_nan() && want.is_nan();
            let close = (got - want).abs() <= 1e-3 * want.abs().max(1.0);
            assert!(both_nan || got == want || close, "{kernels:?}: {got}, want {want}");
        }
    }
}

#[test]
fn products_that_underflow_leave_no_minus_zero() {
    let mut random = Random(75);
    let mut case = Case::new(&mut random, 20, &[40, 20]);
    case.wanted.fill(true);
    case.weights[0].fill(-1e-30);
    case.grad.fill(1e-30);
    case.values[0].fill(-1e-30);
    for kernels in kernels() {
        let got = case.run(kernels, 1);
        let zeros = got[..2].iter().flatten();
        assert!(zeros.clone().all(|v| v.to_bits() == 0), "{kernels:?}");
        assert!(zeros.count() > 0);
    }
}

#[test]
fn leaves_to_libtorch_what_tiles_do_not_fill() {
    let takes =
        |rows, weights: &[(usize, usize)]| takes(Isa::Avx512, rows, weights.iter().copied(), 2);
    assert!(takes(64, &[(256, 784), (256, 256), (10, 256)]));
    assert!(takes(4, &[(3, 2)]), "one thread");
    assert!(!takes(3, &[(2048, 2048)]));
    assert!(!takes(65_536, &[(8, 16)]));
}

fn clone(case: &Case) -> Case {
    Case {
        widths: case.widths.clone(),
        values: case.values.clone(),
        weights: case.weights.clone(),
        grad: case.grad.clone(),
        wanted: case.wanted.clone(),
        ..*case
    }
}
