//! Every element against where it came from.

use super::super::element::{bf16_rounded, f16_rounded};
use super::super::testing::{available, Bytes, Random};
use super::*;

/// A matrix of one element type, with something else between its rows.
struct Source {
    bytes: Bytes,
    matrix: Matrix,
}

impl Source {
    fn random(random: &mut Random, element: Element) -> Self {
        let (rows, k) = (1 + random.below(70), 1 + random.below(80));
        let stride = k + random.below(3);
        let values = random.vector(rows * stride);
        let bytes: Bytes = match element {
            Element::F32 => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|v| bf16_rounded(*v).to_ne_bytes()).collect(),
            Element::F16 => values.iter().flat_map(|v| f16_rounded(*v).to_ne_bytes()).collect(),
        };
        let matrix = Matrix { data: bytes.as_ptr(), stride, rows, k, element };
        Self { bytes, matrix }
    }

    fn at(&self, row: usize, k: usize) -> f32 {
        assert!(row < self.matrix.rows && k < self.matrix.k);
        let place = (row * self.matrix.stride + k) * self.matrix.element.size();
        // SAFETY: in bounds, aligned.
        unsafe { self.matrix.element.read(self.bytes[place..].as_ptr()) }
    }
}

#[test]
fn every_element_lands_in_its_lane() {
    let mut random = Random(21);
    for case in 0..300 {
        let element = [Element::F32, Element::Bf16, Element::F16][case % 3];
        let source = Source::random(&mut random, element);
        let Matrix { rows, k, .. } = source.matrix;
        let maths: &[Math] =
            if element == Element::Bf16 { &[Math::Fma, Math::Dot] } else { &[Math::Fma] };
        for (isa, math) in available().into_iter().flat_map(|i| maths.iter().map(move |m| (i, *m)))
        {
            let steps = steps(math, k);
            let mut panels = vec![f32::NAN; words(rows, steps)];
            // In two ranges, as two tasks would.
            let middle = (steps / 2).next_multiple_of(VECTOR).min(steps);
            for panel in 0..count(rows) {
                for range in [0..middle, middle..steps] {
                    // SAFETY: sizes as stated.
                    unsafe {
                        pack(isa, math, &source.matrix, panel, range, panels.as_mut_ptr());
                    }
                }
            }
            for row in 0..rows.next_multiple_of(VECTOR) {
                let (panel, lane) = (row / LANES, row % LANES);
                let begin = panel * LANES * steps;
                for step in 0..steps {
                    let got = panels[begin + step * width(rows, panel) + lane];
                    let value = |k: usize| {
                        if row < rows && k < source.matrix.k {
                            source.at(row, k)
                        } else {
                            0.0
                        }
                    };
                    let want = match math {
                        Math::Fma => value(step),
                        Math::Dot => pair(value(2 * step), value(2 * step + 1)),
                        Math::Amx(_) => unreachable!("tested with `amx`"),
                    };
                    assert_eq!(got.to_bits(), want.to_bits(), "{isa:?} {math:?} {row} {step}");
                }
            }
        }
    }
}

#[test]
fn widened_rows_are_the_rows() {
    let mut random = Random(22);
    for case in 0..60 {
        let element = [Element::F32, Element::Bf16, Element::F16][case % 3];
        let source = Source::random(&mut random, element);
        let Matrix { rows, k, .. } = source.matrix;
        for isa in available() {
            let (first, stride) = (random.below(rows), k + 3);
            let mut out = vec![f32::NAN; (rows - first) * stride];
            // SAFETY: sizes as stated.
            unsafe { widen(isa, &source.matrix, first..rows, out.as_mut_ptr(), stride) };
            for (i, got) in out.iter().enumerate() {
                let (row, column) = (first + i / stride, i % stride);
                if column < k {
                    assert_eq!(got.to_bits(), source.at(row, column).to_bits(), "{isa:?}");
                } else {
                    assert!(got.is_nan(), "{isa:?}: written behind a row");
                }
            }
        }
    }
}
