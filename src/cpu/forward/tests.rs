//! Whole chains against fp64, layer by layer, and bits against one another.

use super::super::amx;
use super::super::element::Element;
use super::super::testing::{available, has_dot, Bytes, Random};
use super::*;

const ELEMENTS: [Element; 3] = [Element::F32, Element::Bf16, Element::F16];

/// A chain and its operands, exact in the element type.
struct Case {
    element: Element,
    rows: usize,
    widths: Vec<usize>,
    input: Vec<f32>,
    weights: Vec<Vec<f32>>,
    biases: Vec<Option<Vec<f32>>>,
    pad: usize,
    relu_last: bool,
}

impl Case {
    fn new(random: &mut Random, element: Element, rows: usize, widths: &[usize]) -> Self {
        let pad = random.below(3);
        let mut vector = |length: usize, scale: f32| -> Vec<f32> {
            let exact = |v: f32| match element {
                Element::F32 => v,
                _ => element.widened(element.rounded(v)),
            };
            (0..length).map(|_| exact(random.next() * scale)).collect()
        };
        let input = vector(rows * (widths[0] + pad), 1.0);
        let layers = || widths.iter().zip(&widths[1..]);
        let weights =
            layers().map(|(k, n)| vector(n * (k + pad), (*k as f32).powf(-0.5))).collect();
        let biases: Vec<_> = layers().map(|(_, n)| vector(*n, 0.5)).collect();
        let biases = biases.into_iter().map(|b| (random.below(3) != 0).then_some(b)).collect();
        let relu_last = random.below(2) == 0;
        let widths = widths.to_vec();
        Self { element, rows, widths, input, weights, biases, pad, relu_last }
    }

    fn bytes(&self, values: &[f32]) -> Bytes {
        match self.element {
            Element::F32 => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
            e => values.iter().flat_map(|v| e.rounded(*v).to_ne_bytes()).collect(),
        }
    }

    /// The results of every layer; of hidden ones only if `keep`.
    fn run(&self, kernels: Kernels, threads: usize, keep: bool) -> Vec<Vec<f32>> {
        let size = self.element.size();
        let input = self.bytes(&self.input);
        let weights: Vec<_> = self.weights.iter().map(|w| self.bytes(w)).collect();
        let biases: Vec<_> =
            self.biases.iter().map(|b| b.as_ref().map(|b| self.bytes(b))).collect();
        let count = weights.len();
        let mut outputs: Vec<Bytes> = (0..count)
            .map(|i| {
                let kept = keep || i + 1 == count;
                Bytes::filled(0xff, if kept { self.rows * self.widths[i + 1] * size } else { 0 })
            })
            .collect();
        let matrix = |bytes: &Bytes, rows: usize, k: usize| Matrix {
            data: bytes.as_ptr(),
            stride: k + self.pad,
            rows,
            k,
            element: self.element,
        };
        let layers = (0..count).map(|i| Layer {
            weight: matrix(&weights[i], self.widths[i + 1], self.widths[i]),
            bias: biases[i].as_ref().map_or(std::ptr::null(), |b| b.as_ptr()),
            relu: i + 1 < count || self.relu_last,
            output: if outputs[i].is_empty() {
                std::ptr::null_mut()
            } else {
                outputs[i].as_mut_ptr()
            },
        });
        let layers = layers.collect();
        // SAFETY: sizes as stated, all vectors outlive the work.
        let forward = unsafe {
            Forward::new(kernels, matrix(&input, self.rows, self.widths[0]), layers, threads)
        };
        std::thread::scope(|scope| {
            for me in 0..threads {
                let forward = &forward;
                scope.spawn(move || assert!(forward.work(me)));
            }
        });
        if let Route::Tiles(chain) = &forward.route {
            let left = chain.race().map_or(0, |race| race.left());
            assert_eq!(left, 0, "shares were not timed");
        }
        let read = |bytes: &Bytes| {
            // SAFETY: whole elements, aligned as above.
            bytes.chunks_exact(size).map(|b| unsafe { self.element.read(b.as_ptr()) }).collect()
        };
        outputs.iter().map(read).collect()
    }

    /// Each layer's results against fp64 on what the layer before returned.
    fn check(&self, results: &[Vec<f32>], what: &str) {
        let (unit, least) = match self.element {
            Element::F32 => (0.0, 2f64.powi(-149)),
            Element::Bf16 => (2f64.powi(-8), 2f64.powi(-126)),
            Element::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        };
        for (i, got) in results.iter().enumerate() {
            let (k, n) = (self.widths[i], self.widths[i + 1]);
            let relu = i + 1 < self.weights.len() || self.relu_last;
            let (x, ld) = match i {
                0 => (&self.input, k + self.pad),
                _ => (&results[i - 1], k),
            };
            for (row, column) in (0..self.rows).flat_map(|r| (0..n).map(move |c| (r, c))) {
                let (x, w) = (&x[row * ld..], &self.weights[i][column * (k + self.pad)..]);
                let products = (0..k).map(|k| f64::from(x[k]) * f64::from(w[k]));
                let bias = self.biases[i].as_ref().map(|bias| f64::from(bias[column]));
                let (sum, size) =
                    products.chain(bias).fold((0.0, 0.0), |(s, a), t| (s + t, a + f64::abs(t)));
                let want = if relu && sum <= 0.0 { 0.0 } else { sum };
                let roundings = (k + 2) as f64 * 2f64.powi(-24) * size;
                let bound = roundings * (1.0 + unit) + unit * want.abs() + least;
                let error = (f64::from(got[row * n + column]) - want).abs();
                assert!(error <= bound, "{what}, layer {i} at {row}, {column}: {error} > {bound}");
            }
        }
    }
}

/// Everything that this CPU can run for an element type.
fn kernels(element: Element) -> Vec<Kernels> {
    let fma = available().into_iter().map(|isa| Kernels { isa, math: Math::Fma });
    let dot = Kernels { isa: Isa::Avx512, math: Math::Dot };
    let amx = Kernels { isa: Isa::Avx512, math: Math::Amx(planes::count(element)) };
    fma.chain((element == Element::Bf16 && has_dot()).then_some(dot))
        .chain(amx::available().then_some(amx))
        .collect()
}

#[test]
fn chains_agree_with_fp64() {
    let mut random = Random(41);
    for case in 0..120 {
        let element = ELEMENTS[case % 3];
        let rows = 1 + random.below(if case % 4 == 0 { 8 } else { 100 });
        let widths: Vec<usize> = (0..2 + random.below(4)).map(|_| 1 + random.below(90)).collect();
        let case = Case::new(&mut random, element, rows, &widths);
        for kernels in kernels(element) {
            let what = format!("{kernels:?} {element:?} {rows} rows {widths:?}");
            case.check(&case.run(kernels, 1, true), &what);
        }
    }
}

#[test]
fn neither_threads_nor_kept_results_change_a_bit() {
    let mut random = Random(42);
    for case in 0..36 {
        let element = ELEMENTS[case % 3];
        let rows = 1 + random.below(if case % 4 == 0 { 8 } else { 150 });
        let case = Case::new(&mut random, element, rows, &[130, 75, 64, 10]);
        for kernels in kernels(element) {
            let want = case.run(kernels, 1, true);
            for threads in [2, 3, 7] {
                assert_eq!(case.run(kernels, threads, true), want, "{kernels:?} {threads}");
            }
            assert_eq!(case.run(kernels, 3, false).last(), want.last(), "{kernels:?}");
        }
    }
}

/// A product that underflows is minus zero in an FMA, with and without a thread's own rows.
#[test]
fn minus_zero_is_the_same_on_any_number_of_threads() {
    let mut random = Random(44);
    let bits = |results: Vec<Vec<f32>>| results.concat().into_iter().map(f32::to_bits);
    for i in 0..4 {
        let mut case = Case::new(&mut random, Element::F32, 96, &[96, 64]);
        case.relu_last = i % 2 == 1;
        case.biases[0] = (i > 1).then(|| vec![-0.0; 64]);
        case.input.fill(1e-30);
        case.weights[0].fill(-1e-30);
        for kernels in kernels(Element::F32) {
            let want: Vec<u32> = bits(case.run(kernels, 1, true)).collect();
            // Shared layer by layer, as three panels are no even shares.
            assert!(bits(case.run(kernels, 2, true)).eq(want), "{kernels:?} {:?}", case.biases);
        }
    }
}

/// One thread copies the weight for eight panels, three read it where it lies; the last
/// depth of 130 and of 2100 does not reach its end, and 2100 is summed in two parts.
#[test]
fn weights_in_place_and_copied_give_the_same_bits() {
    let mut random = Random(47);
    for widths in [&[130, 75, 64, 10][..], &[2100, 48]] {
        let mut case = Case::new(&mut random, Element::Bf16, 230, widths);
        while case.pad == 0 {
            case = Case::new(&mut random, Element::Bf16, 230, widths);
        }
        // Behind a row is nothing that a sum may see.
        for (weight, k) in case.weights.iter_mut().zip(widths) {
            weight.chunks_mut(k + case.pad).for_each(|row| row[*k..].fill(f32::NAN));
        }
        for kernels in kernels(Element::Bf16) {
            let want = case.run(kernels, 1, true);
            case.check(&want, &format!("{kernels:?} {widths:?}"));
            assert_eq!(case.run(kernels, 3, true), want, "{kernels:?} {widths:?}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_among_others() {
    let mut random = Random(43);
    for element in ELEMENTS {
        for kernels in kernels(element) {
            let whole = Case::new(&mut random, element, 70, &[100, 37]);
            let want = whole.run(kernels, 2, true);
            for rows in [9, 16, 17, 33] {
                let part = Case { rows, ..clone(&whole) };
                let got = part.run(kernels, 1, true);
                assert_eq!(got[0], want[0][..rows * 37], "{kernels:?}");
            }
        }
    }
}

fn clone(case: &Case) -> Case {
    Case {
        input: case.input.clone(),
        weights: case.weights.clone(),
        biases: case.biases.clone(),
        widths: case.widths.clone(),
        ..*case
    }
}

#[test]
fn rows_that_conflict_in_the_cache_are_right() {
    let mut random = Random(44);
    for element in ELEMENTS {
        let mut case = Case::new(&mut random, element, 130, &[2048, 20]);
        case.pad = 0; // The vectors are long enough.
        for kernels in kernels(element).into_iter().filter(|k| k.isa != Isa::Scalar) {
            case.check(&case.run(kernels, 2, true), &format!("{kernels:?}"));
        }
    }
}

#[test]
fn many_rows_go_in_blocks() {
    let mut random = Random(45);
    for element in ELEMENTS {
        let case = Case::new(&mut random, element, 700, &[40, 9000, 3]);
        let kernels = *kernels(element).last().expect("scalar at least");
        case.check(&case.run(kernels, 2, true), "blocks");
    }
}

#[test]
fn equal_shares_are_timed() {
    // `run` asserts it.
    let case = Case::new(&mut Random(48), Element::F32, 128, &[64, 64, 32]);
    for kernels in kernels(Element::F32) {
        case.check(&case.run(kernels, 2, true), &format!("{kernels:?}"));
    }
}
