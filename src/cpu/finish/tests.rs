//! Every result against the scalar formula, in panels and in rows.

use super::super::element::{bf16_rounded, f16_rounded};
use super::super::panels::{count, words};
use super::super::testing::{available, Bytes, Random};
use super::super::tile::most_rows;
use super::*;

fn bytes(element: Element, values: &[f32]) -> Bytes {
    match element {
        Element::F32 => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
        Element::Bf16 => values.iter().flat_map(|v| bf16_rounded(*v).to_ne_bytes()).collect(),
        Element::F16 => values.iter().flat_map(|v| f16_rounded(*v).to_ne_bytes()).collect(),
    }
}

/// Numbers that need rounding, and the special ones.
fn number(random: &mut Random) -> f32 {
    match random.below(30) {
        // Of which rounding as if they were numbers makes infinity or -0, too.
        0 => f32::from_bits([0x7fc0_0000, 0x7f80_0001, 0x7fff_ffff][random.below(3)]),
        1 => f32::INFINITY,
        2 => f32::NEG_INFINITY,
        3 => -0.0,
        4 => 1e-40,
        5 => 65_520.0,
        _ => random.next(),
    }
}

#[test]
fn results_are_rounded_once_and_land_where_they_belong() {
    let mut random = Random(31);
    for case in 0..300 {
        let element = [Element::F32, Element::Bf16, Element::F16][case % 3];
        let math = if element == Element::Bf16 && case % 2 == 0 { Math::Dot } else { Math::Fma };
        let (rows, n) = (1 + random.below(70), 1 + random.below(60));
        let all: Vec<f32> = (0..rows * n).map(|_| number(&mut random)).collect();
        let bias = (random.below(2) == 0).then(|| bytes(element, &random.vector(n)));
        let relu_wanted = random.below(2) == 0;
        let want = |row: usize, column: usize| {
            let mut value = all[row * n + column];
            if let Some(bias) = &bias {
                // SAFETY: in bounds, aligned.
                value += unsafe { element.read(bias[column * element.size()..].as_ptr()) };
            }
            let value = if relu_wanted { relu(value) } else { value };
            match element {
                Element::F32 => value,
                _ => element.widened(element.rounded(value)),
            }
        };
        let steps = steps(math, n);
        for isa in available() {
            let mut panels = vec![f32::NAN; words(rows, steps)];
            let mut output = Bytes::filled(0xff, rows * n * element.size());
            let finish = Finish {
                element,
                bias: bias.as_ref().map_or(std::ptr::null(), |bias| bias.as_ptr()),
                relu: relu_wanted,
                rows,
                n,
                panels: panels.as_mut_ptr(),
                math,
                output: output.as_mut_ptr(),
            };
            // Whole pairs.
            let most = most_rows(isa);
            for panel in 0..count(rows) {
                for column in (0..n).step_by(most) {
                    let columns = (n - column).min(most);
                    let mut sums = Sums::new();
                    for i in 0..columns {
                        for lane in 0..LANES.min(rows - panel * LANES) {
                            sums.0[i][lane] = all[(panel * LANES + lane) * n + column + i];
                        }
                    }
                    let place = Place { panel, column, columns };
                    // SAFETY: sizes as stated.
                    unsafe { tile(isa, &finish, place, &mut sums) };
                }
            }
            let same = |got: f32, want: f32| {
                got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan())
            };
            for row in 0..rows {
                for column in 0..n {
                    let at = (row * n + column) * element.size();
                    // SAFETY: in bounds, aligned.
                    let got = unsafe { element.read(output[at..].as_ptr()) };
                    let want = want(row, column);
                    assert!(same(got, want), "{isa:?} {element:?} {row} {column}: {got} {want}");
                    let (panel, lane) = (row / LANES, row % LANES);
                    let at = |step: usize| {
                        panels[panel * LANES * steps + step * width(rows, panel) + lane]
                    };
                    let got = match math {
                        Math::Fma => at(column),
                        Math::Dot if column % 2 == 0 => {
                            f32::from_bits(at(column / 2).to_bits() << 16)
                        }
                        Math::Dot => f32::from_bits(at(column / 2).to_bits() & 0xffff_0000),
                        Math::Amx(_) => unreachable!("tested with `amx`"),
                    };
                    assert!(same(got, want), "{isa:?} {math:?} {row} {column}: {got} {want}");
                }
                if math == Math::Dot && n % 2 == 1 {
                    let (panel, lane) = (row / LANES, row % LANES);
                    let at = panel * LANES * steps + (steps - 1) * width(rows, panel) + lane;
                    assert_eq!(panels[at].to_bits() >> 16, 0, "a pair's second half");
                }
            }
        }
    }
}

#[test]
fn panels_are_turned_to_rows_as_their_tiles_come() {
    let mut random = Random(37);
    for _ in 0..if available().contains(&Isa::Avx512) { 100 } else { 0 } {
        let (rows, n) = (1 + random.below(70), 1 + random.below(60));
        let mut panels = random.vector(words(rows, n));
        let mut output = vec![f32::NAN; rows * n];
        let finish = Finish {
            element: Element::F32,
            bias: std::ptr::null(),
            relu: false,
            rows,
            n,
            panels: panels.as_mut_ptr(),
            math: Math::Fma,
            output: output.as_mut_ptr().cast(),
        };
        let most = 1 + random.below(14);
        for panel in 0..count(rows) {
            for column in (0..n).step_by(most) {
                let place = Place { panel, column, columns: most.min(n - column) };
                // SAFETY: sizes as stated.
                unsafe { turn_complete(&finish, place) };
            }
        }
        for (place, got) in output.iter().enumerate() {
            let (row, column) = (place / n, place % n);
            let (panel, lane) = (row / LANES, row % LANES);
            let at = panel * LANES * n + column * width(rows, panel) + lane;
            assert_eq!(*got, panels[at], "{rows} {n} {most}: {row} {column}");
        }
    }
}
