//! Against fp64, every instruction set that this CPU has.

use super::super::testing::{available, Bytes, Random};
use super::*;

const ELEMENTS: [Element; 3] = [Element::F32, Element::Bf16, Element::F16];

/// Every remainder of a block of four, and two blocks.
const MOST_ROWS: usize = 9;

struct Case {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    rows: usize,
    n: usize,
    k: usize,
    pad: usize,
    relu: bool,
    element: Element,
}

impl Case {
    fn new(random: &mut Random, element: Element, rows: usize, n: usize, k: usize) -> Self {
        let pad = random.below(3);
        let mut vector = |length: usize| -> Vec<f32> {
            let exact = |value| match element {
                Element::F32 => value,
                _ => element.widened(element.rounded(value)),
            };
            (0..length).map(|_| exact(random.next())).collect()
        };
        let (x, w, b) = (vector(rows * (k + pad)), vector(n * (k + pad)), vector(n));
        let bias = (random.below(2) == 0).then_some(b);
        Self { x, w, bias, rows, n, k, pad, relu: random.below(2) == 0, element }
    }

    /// In fp64, and the sum of the terms' sizes.
    fn wanted(&self, row: usize, column: usize) -> (f64, f64) {
        let ld = self.k + self.pad;
        let terms = (0..self.k)
            .map(|i| f64::from(self.x[row * ld + i]) * f64::from(self.w[column * ld + i]))
            .chain(self.bias.as_ref().map(|bias| f64::from(bias[column])));
        let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + f64::abs(t)));
        (if self.relu && sum <= 0.0 { 0.0 } else { sum }, size)
    }

    /// The columns in `parts` ranges, as threads would do them.
    fn run(&self, isa: Isa, parts: usize) -> Vec<f32> {
        let bytes = |v: &[f32]| -> Bytes {
            match self.element {
                Element::F32 => v.iter().flat_map(|v| v.to_ne_bytes()).collect(),
                e => v.iter().flat_map(|v| e.rounded(*v).to_ne_bytes()).collect(),
            }
        };
        let (weight, bias) = (bytes(&self.w), self.bias.as_deref().map(bytes));
        let size = self.element.size();
        let mut wide = vec![f32::NAN; self.rows * self.n];
        let mut output = Bytes::filled(0xff, self.rows * self.n * size);
        let layer = Layer {
            input: self.x.as_ptr(),
            input_stride: self.k + self.pad,
            rows: self.rows,
            k: self.k,
            weight: weight.as_ptr(),
            weight_stride: self.k + self.pad,
            bias: bias.as_ref().map_or(std::ptr::null(), |bias| bias.as_ptr()),
            element: self.element,
            output: output.as_mut_ptr(),
            wide: wide.as_mut_ptr(),
            n: self.n,
            relu: self.relu,
        };
        let each = self.n.div_ceil(parts);
        for begin in (0..self.n).step_by(each) {
            // SAFETY: the vectors have the sizes that the layer states; `available` asked the CPU.
            unsafe { run(&layer, begin..(begin + each).min(self.n), isa) }
        }
        for (output, wide) in output.chunks_exact(size).zip(&wide) {
            // SAFETY: a whole element, aligned as above.
            let output = unsafe { self.element.read(output.as_ptr()) };
            assert!(output.to_bits() == wide.to_bits() || output.is_nan() && wide.is_nan());
        }
        wide
    }
}

#[test]
fn agrees_with_fp64_on_every_shape() {
    let mut random = Random(1);
    for element in ELEMENTS {
        for case in 0..400 {
            let rows = 1 + random.below(MOST_ROWS);
            let n = 1 + random.below(40);
            let k = if case % 5 == 0 { 1 + random.below(700) } else { random.below(70) };
            let case = Case::new(&mut random, element, rows, n, k);
            for isa in available() {
                let got = case.run(isa, 1);
                for row in 0..rows {
                    for column in 0..n {
                        let (want, size) = case.wanted(row, column);
                        // k + 1 roundings of fp32 sums, one of the result.
                        let unit = match element {
                            Element::F32 => 0.0,
                            Element::Bf16 => 2f64.powi(-8),
                            Element::F16 => 2f64.powi(-11),
                        };
                        // Half a smallest binary16.
                        let tiny = if element == Element::F16 { 2f64.powi(-25) } else { 0.0 };
                        let bound =
                            (k + 1) as f64 * 2f64.powi(-24) * size + unit * want.abs() + tiny;
                        let error = (f64::from(got[row * n + column]) - want).abs();
                        assert!(
                            error <= bound,
                            "{isa:?} {element:?} {rows}x{n}x{k}: {error} > {bound}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let mut random = Random(2);
    for element in ELEMENTS {
        for rows in 1..=MOST_ROWS {
            let case = Case::new(&mut random, element, rows, 83, 131);
            for isa in available() {
                let want = case.run(isa, 1);
                for parts in [2, 3, 7, 83] {
                    assert_eq!(case.run(isa, parts), want);
                }
            }
        }
    }
}

#[test]
fn nan_and_infinities_pass() {
    let mut random = Random(3);
    for element in ELEMENTS {
        let mut case = Case::new(&mut random, element, 2, 9, 33);
        let ld = case.k + case.pad;
        case.relu = true;
        case.x[32] = f32::NAN;
        case.x[ld + 1] = f32::INFINITY;
        for isa in available() {
            let got = case.run(isa, 1);
            assert!(got[..9].iter().all(|v| v.is_nan()), "{isa:?}: ReLU keeps NaN");
            for column in 0..9 {
                let want = if case.w[column * ld + 1] > 0.0 { f32::INFINITY } else { 0.0 };
                assert_eq!(got[9 + column], want, "{isa:?}");
            }
        }
    }
}

#[test]
fn nothing_behind_a_row_is_read_into_a_sum() {
    let mut random = Random(4);
    for element in ELEMENTS {
        let mut case = Case::new(&mut random, element, 3, 5, 21);
        case.pad = 2;
        let ld = case.k + case.pad;
        (case.x, case.w) = (vec![1.0; 3 * ld], vec![1.0; 5 * ld]);
        for (row, value) in case.x.chunks_mut(ld).chain(case.w.chunks_mut(ld)).zip(1..) {
            row[case.k] = f32::NAN;
            row[case.k + 1] = value as f32;
        }
        case.bias = None;
        for isa in available() {
            assert!(case.run(isa, 1).iter().all(|v| *v == 21.0), "{isa:?}");
        }
    }
}
