//! Against fp64, every instruction set that this CPU has.

use super::*;

/// Every remainder of a block of four, and two blocks.
const MOST_ROWS: usize = 9;

/// Numbers that no two tests share; spread over a few powers of two.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 2.0
    }

    fn below(&mut self, n: usize) -> usize {
        self.next();
        (self.0 >> 33) as usize % n
    }
}

fn available() -> Vec<Isa> {
    [Isa::Scalar, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| *isa <= Isa::best()).collect()
}

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
        let bf16 = element == Element::Bf16;
        let mut vector = |length: usize| -> Vec<f32> {
            let exact = |value| if bf16 { widened(rounded(value)) } else { value };
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
    fn run(&self, isa: Isa, parts: usize, narrow: bool) -> Vec<f32> {
        let half =
            |v: &[f32]| -> Vec<u8> { v.iter().flat_map(|v| rounded(*v).to_ne_bytes()).collect() };
        let full = |v: &[f32]| -> Vec<u8> { v.iter().flat_map(|v| v.to_ne_bytes()).collect() };
        let bytes = |v: &[f32]| if self.element == Element::Bf16 { half(v) } else { full(v) };
        let (weight, bias) = (bytes(&self.w), self.bias.as_deref().map(bytes));
        let narrow = narrow && self.element == Element::Bf16;
        let size = if narrow { 2 } else { 4 };
        let mut output = vec![0xffu8; self.rows * self.n * size];
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
            n: self.n,
            narrow,
            relu: self.relu,
        };
        let each = self.n.div_ceil(parts);
        for begin in (0..self.n).step_by(each) {
            // SAFETY: the vectors have the sizes that the layer states (a Vec<u8>
            // of this allocator is aligned for 4 bytes); `available` asked the CPU.
            unsafe { run(&layer, begin..(begin + each).min(self.n), isa) }
        }
        output
            .chunks_exact(size)
            .map(|b| match b {
                [a, b] => widened(u16::from_ne_bytes([*a, *b])),
                _ => f32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            })
            .collect()
    }
}

#[test]
fn agrees_with_fp64_on_every_shape() {
    let mut random = Random(1);
    for element in [Element::F32, Element::Bf16] {
        for case in 0..400 {
            let rows = 1 + random.below(MOST_ROWS);
            let n = 1 + random.below(40);
            let k = if case % 5 == 0 { 1 + random.below(700) } else { random.below(70) };
            let case = Case::new(&mut random, element, rows, n, k);
            for isa in available() {
                let got = case.run(isa, 1, true);
                for row in 0..rows {
                    for column in 0..n {
                        let (want, size) = case.wanted(row, column);
                        // k + 1 roundings of fp32 sums, one of the result.
                        let unit = if element == Element::Bf16 { 2f64.powi(-8) } else { 0.0 };
                        let bound = (k + 1) as f64 * 2f64.powi(-24) * size + unit * want.abs();
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
fn threads_and_the_output_type_change_no_bit() {
    let mut random = Random(2);
    for element in [Element::F32, Element::Bf16] {
        for rows in 1..=MOST_ROWS {
            let case = Case::new(&mut random, element, rows, 83, 131);
            for isa in available() {
                let want = case.run(isa, 1, true);
                for parts in [2, 3, 7, 83] {
                    assert_eq!(case.run(isa, parts, true), want);
                }
                assert_eq!(case.run(isa, 1, false), want);
            }
        }
    }
}

#[test]
fn nan_and_infinities_pass() {
    let mut random = Random(3);
    for element in [Element::F32, Element::Bf16] {
        let mut case = Case::new(&mut random, element, 2, 9, 33);
        let ld = case.k + case.pad;
        case.relu = true;
        case.x[32] = f32::NAN;
        case.x[ld + 1] = f32::INFINITY;
        for isa in available() {
            let got = case.run(isa, 1, true);
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
    for element in [Element::F32, Element::Bf16] {
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
            assert!(case.run(isa, 1, true).iter().all(|v| *v == 21.0), "{isa:?}");
        }
    }
}

#[test]
fn rounds_to_the_nearest_bfloat16() {
    // Halfway goes to even; above it goes up; NaN stays NaN; overflow is infinite.
    for (bits, want) in [
        (0x3f80_8000, 0x3f80),
        (0x3f81_8000, 0x3f82),
        (0x3f80_8001, 0x3f81),
        (0xbf80_7fff, 0xbf80),
        (0x7f7f_ffff, 0x7f80),
        (0x7f80_0000, 0x7f80),
        (0x0000_0001, 0x0000),
    ] {
        assert_eq!(rounded(f32::from_bits(bits)), want, "{bits:#x}");
    }
    assert!(widened(rounded(f32::from_bits(0x7f80_0001))).is_nan());
}
