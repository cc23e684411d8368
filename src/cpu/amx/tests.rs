//! Numbers in planes, factors in tiles, and sums of them, each against its formula.

use super::again::{self, Panel};
use super::left::Tiled;
use super::product::{self, Copied, Factors};
use super::*;
use crate::cpu::element::{f16_widened, Element};
use crate::cpu::panels::{count, width, Matrix, VECTOR};
use crate::cpu::testing::Random;
use crate::cpu::tile::{Sums, LANES};

/// Memory as the packers want it.
#[derive(Clone)]
#[repr(C, align(64))]
struct Line([u8; 64]);

fn lines(bytes: usize) -> Vec<Line> {
    vec![Line([0xff; 64]); bytes.div_ceil(64)]
}

fn fp32(values: &[f32], rows: usize, k: usize) -> Matrix {
    let data = values.as_ptr().cast();
    Matrix { data, stride: k, rows, k, element: Element::F32 }
}

fn is_bf16(value: f32) -> bool {
    value.to_bits() & 0xffff == 0
}

#[test]
fn planes_make_up_the_number() {
    let mut random = Random(51);
    for _ in 0..100_000 {
        let exponent = 30 + random.below(225) as u32;
        let value = f32::from_bits(exponent << 23 | random.below(1 << 23) as u32);
        let [h, m, l] = planes::of(value);
        assert!([h, m, l].into_iter().all(is_bf16), "{value:e}");
        assert_eq!(h + (m + l), value, "{value:e}");
        assert!(m.abs() <= h.abs() / 256.0 + value * 0.004 && l.abs() <= value / 65_536.0);
    }
    for bits in 0..=u16::MAX {
        let value = f16_widened(bits);
        if value.is_finite() {
            let [h, m, l] = planes::of(value);
            assert_eq!((h + m, l), (value, 0.0), "two planes are enough for {value}");
        }
    }
    for value in [f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(planes::of(value), [value, 0.0, 0.0]);
    }
    for value in [f32::MAX, f32::MIN] {
        let [h, m, l] = planes::of(value);
        assert!(h.is_finite() && h + (m + l) == value);
    }
    assert!(planes::of(f32::from_bits(0x7fff_ffff))[0].is_nan());
}

/// Numbers of every kind.
fn number(random: &mut Random) -> f32 {
    match random.below(40) {
        0 => f32::INFINITY,
        1 => f32::from_bits(0x7fff_ffff),
        2 => f32::MAX,
        3 => 0.0,
        _ => random.next(),
    }
}

/// A plane's number at a place of pairs `[pair][lane]`.
fn half(words: *const u32, place: usize, upper: bool) -> f32 {
    // SAFETY: the callers' places are inside.
    let word = unsafe { *words.add(place) };
    f32::from_bits(if upper { word & 0xffff_0000 } else { word << 16 })
}

fn same(got: f32, want: f32) -> bool {
    got == want || (got.is_nan() && want.is_nan())
}

#[test]
fn every_element_lands_in_its_tile() {
    if !available() {
        return;
    }
    let mut random = Random(52);
    for _ in 0..60 {
        let (rows, k) = (1 + random.below(70), 1 + random.below(100));
        let values: Vec<f32> = (0..rows * k).map(|_| number(&mut random)).collect();
        let matrix = fp32(&values, rows, k);
        let (all, planes) = (depths(k), 3);
        let value = |row: usize, k: usize| {
            if row < rows && k < matrix.k {
                planes::of(values[row * matrix.k + k])
            } else {
                [0.0; 3]
            }
        };
        // Rows as lanes: `right::turned`, and back.
        let mut panels = lines(4 * planes * STEPS * all * rows.next_multiple_of(VECTOR));
        let mut joined = vec![f32::NAN; LANES * k];
        for panel in 0..count(rows) {
            let width = width(rows, panel);
            let begin = panel * LANES * planes * STEPS * all;
            let at = panels.as_mut_ptr().cast::<f32>().wrapping_add(begin);
            // SAFETY: sizes as stated.
            unsafe {
                right::turned(planes, &matrix, panel, 0..all, at);
                right::joined(planes, at, width, k, joined.as_mut_ptr());
            }
            for (k, lane) in (0..all * DEPTH).flat_map(|k| (0..width).map(move |lane| (k, lane))) {
                let want = value(panel * LANES + lane, k);
                for (plane, want) in want.into_iter().enumerate() {
                    let step = (k / DEPTH * planes + plane) * STEPS + k % STEPS;
                    let got = half(at.cast(), step * width + lane, k % DEPTH >= STEPS);
                    assert!(same(got, want), "row {lane}, k {k}, plane {plane}: {got} {want}");
                }
                if k < matrix.k {
                    let want = want[0] + (want[1] + want[2]);
                    assert!(same(joined[k * width + lane], want), "row {lane}, k {k}");
                }
            }
        }
        // Rows of `left` are rows, those of `right::from_rows` are k: the same matrix.
        let mut blocks = lines(rows.div_ceil(GROUP) * planes * all * TILE);
        let group = group_bytes(planes, all);
        let columns = k.min(LANES);
        let width = columns.next_multiple_of(VECTOR);
        let mut panel = lines(4 * depth_words(planes, width) * depths(rows));
        let (to, at) = (blocks.as_mut_ptr().cast::<u8>(), panel.as_mut_ptr().cast::<f32>());
        // SAFETY: sizes as stated.
        unsafe {
            for depth in 0..all {
                let to = to.add(depth * planes * TILE);
                left::copy_rows::<3>(&matrix, 0, 0..rows, depth, to, group);
            }
            right::from_rows(&matrix, 0..rows, 0..columns, at);
        }
        for (row, k) in (0..rows).flat_map(|row| (0..all * DEPTH).map(move |k| (row, k))) {
            for (plane, want) in value(row, k).into_iter().enumerate() {
                let tile = row / GROUP * group + (k / DEPTH * planes + plane) * TILE;
                let place = tile / 4 + row % GROUP * STEPS + k % STEPS;
                let got = half(to.cast(), place, k % DEPTH >= STEPS);
                assert!(same(got, want), "row {row}, k {k}, plane {plane}");
                if k < columns {
                    let step = (row / DEPTH * planes + plane) * STEPS + row % STEPS;
                    let got = half(at.cast(), step * width + k, row % DEPTH >= STEPS);
                    assert!(same(got, want), "column {k}, row {row}, plane {plane}");
                }
            }
        }
        let mut row = vec![f32::NAN; k];
        // SAFETY: the last row's group.
        unsafe {
            let last = rows - 1;
            let at = to.add(last / GROUP * group + last % GROUP * ROW);
            left::joined_row(at, k, row.as_mut_ptr());
            for (k, got) in row.iter().enumerate() {
                let want = value(last, k);
                assert!(same(*got, want[0] + (want[1] + want[2])), "k {k}");
            }
        }
    }
}

/// Small multiples of 1, 2^-8 and 2^-16: as many planes, and every sum is exact.
fn exact(random: &mut Random, planes: usize) -> f32 {
    (0..planes).map(|plane| (random.below(3) as f32 - 1.0) * 2f32.powi(-8 * plane as i32)).sum()
}

#[test]
fn sums_have_every_product_once() {
    if !available() {
        return;
    }
    // SAFETY: asked above.
    let _tiles = unsafe { Tiles::configured() };
    let mut random = Random(53);
    for case in 0..200 {
        let (rows, lanes, k) =
            (1 + random.below(ROWS), 1 + random.below(LANES), 1 + random.below(200));
        // Of nine products h, m, l by h, m, l the six largest.
        let deep = [(3, 1), (2, 2), (1, 3)][case % 3];
        let left_values: Vec<f32> = (0..rows * k).map(|_| exact(&mut random, deep.0)).collect();
        let right_values: Vec<f32> = (0..lanes * k).map(|_| exact(&mut random, deep.1)).collect();
        let (matrix, turned) = (fp32(&left_values, rows, k), fp32(&right_values, lanes, k));
        let (all, planes, width) = (depths(k), 3, lanes.next_multiple_of(VECTOR));
        let kept = if case % 2 == 0 { all } else { all.min(2) };
        let group = group_bytes(planes, kept);
        let mut blocks = lines(2 * group);
        let mut panel = lines(4 * depth_words(planes, width) * all);
        let mut sums = Sums::new();
        let goes_on = case % 5 == 0;
        sums.0[0][0] = 1.0;
        let to = blocks.as_mut_ptr().cast();
        // SAFETY: sizes as stated.
        unsafe {
            right::turned(planes, &turned, 0, 0..all, panel.as_mut_ptr().cast());
            let right = panel.as_ptr().cast();
            let left = Tiled::blocks(to, planes, kept);
            let factors = Factors { planes, left, right, width, depths: all };
            let copied = Some(Copied { source: &matrix, first: 0, depth: 0, to });
            product::run(&factors, rows, copied, sums.0[0].as_mut_ptr(), goes_on);
        }
        for (row, lane) in (0..rows).flat_map(|row| (0..lanes).map(move |lane| (row, lane))) {
            let products =
                (0..k).map(|i| f64::from(left_values[row * k + i] * right_values[lane * k + i]));
            let begin = if goes_on && row + lane == 0 { 1.0 } else { 0.0 };
            let want = begin + products.sum::<f64>();
            assert_eq!(
                f64::from(sums.0[row][lane]),
                want,
                "{row} {lane} of {rows} x {lanes} x {k}"
            );
        }
    }
}

#[test]
fn what_is_not_finite_is_computed_from_the_numbers() {
    if !available() {
        return;
    }
    let mut random = Random(54);
    let (rows, lanes, k) = (20, 32, 70);
    let mut left_values = random.vector(rows * k);
    let mut right_values = random.vector(lanes * k);
    left_values[3 * k + 5] = f32::INFINITY;
    left_values[4 * k + 60] = f32::NAN;
    right_values[7 * k + 69] = f32::NEG_INFINITY;
    right_values[8 * k] = f32::MAX;
    let (matrix, turned) = (fp32(&left_values, rows, k), fp32(&right_values, lanes, k));
    let (all, planes) = (depths(k), 3);
    let mut panel = lines(4 * depth_words(planes, LANES) * all);
    let mut sums = Sums::new();
    for row in &mut sums.0[..rows] {
        row.fill(1.5);
    }
    for (row, lane) in [(3, 0), (4, 1), (5, 7), (6, 8), (0, 0)] {
        sums.0[row][lane] = f32::NAN;
    }
    // SAFETY: sizes as stated.
    unsafe {
        right::turned(planes, &turned, 0, 0..all, panel.as_mut_ptr().cast());
        let panel = Panel { planes, data: panel.as_ptr().cast(), width: LANES };
        again::finite(&again::Left::Rows(&matrix, 0..rows), &panel, &mut sums);
    }
    for (row, lane) in [(3, 0), (4, 1), (5, 7), (6, 8), (0, 0)] {
        let products = (0..k).map(|i| (left_values[row * k + i], right_values[lane * k + i]));
        let want = products.fold(0.0f32, |sum, (a, b)| a.mul_add(b, sum));
        let got = sums.0[row][lane];
        assert!(same(got, want), "{row} {lane}: {got}, want {want}");
    }
    assert_eq!(sums.0[3][1], 1.5, "what is finite stays");
}
