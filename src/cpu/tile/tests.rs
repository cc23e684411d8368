//! Against fp64, every instruction set that this CPU has, and bits against the
//! scalar tile.

use super::super::element::{bf16_rounded, bf16_widened};
use super::super::testing::{available, has_dot, Random};
use super::*;

struct Case {
    p: Vec<f32>,
    v: Vec<f32>,
    rows: usize,
    lanes: usize,
    depth: usize,
    ld: usize,
    columns: bool,
}

impl Case {
    fn random(random: &mut Random, most: usize) -> Self {
        let (rows, lanes) = (1 + random.below(most), 16 + 16 * random.below(2));
        let (depth, columns) = (random.below(600), random.below(2) == 0);
        let ld = if columns { rows } else { depth } + random.below(5);
        let (outer, step) = if columns { (depth, LANES) } else { (rows, LANES) };
        Self {
            p: random.vector(outer * ld + ROWS),
            v: random.vector(depth * step + LANES),
            rows,
            lanes,
            depth,
            ld,
            columns,
        }
    }

    fn p(&self, r: usize, k: usize) -> f32 {
        self.p[if self.columns { k * self.ld + r } else { r * self.ld + k }]
    }

    fn run(&self, isa: Isa) -> Sums {
        let mut sums = Sums([[f32::NAN; LANES]; ROWS]);
        self.run_to(isa, None, Then::NOTHING, &mut sums);
        sums
    }

    fn run_to(&self, isa: Isa, target: Option<Target>, then: Then, sums: &mut Sums) {
        let (row, step) = if self.columns { (4, 4 * self.ld) } else { (4 * self.ld, 4) };
        let factors = Factors {
            p: self.p.as_ptr().cast(),
            row,
            step,
            v: self.v.as_ptr(),
            v_step: LANES,
            depth: self.depth,
            half: false,
            soon: std::ptr::null(),
            target,
            next: None,
            then,
        };
        // SAFETY: the vectors have the sizes that the factors state, the target room.
        unsafe { run(isa, Math::Fma, self.rows, self.lanes, &factors, sums) };
    }
}

#[test]
fn agrees_with_fp64_and_in_bits_with_the_scalar_tile() {
    let mut random = Random(11);
    for i in 0..400 {
        // Small enough for AVX-512 every other time.
        let most = if i % 2 == 0 { 14 } else { ROWS };
        let case = Case::random(&mut random, most);
        let scalar = case.run(Isa::Scalar);
        for isa in available().into_iter().filter(|isa| case.rows <= most_rows(*isa)) {
            let sums = case.run(isa);
            for r in 0..case.rows {
                for lane in 0..case.lanes {
                    let terms = (0..case.depth)
                        .map(|k| f64::from(case.p(r, k)) * f64::from(case.v[k * LANES + lane]));
                    let (want, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                    let got = sums.0[r][lane];
                    let bound = (case.depth + 1) as f64 * 2f64.powi(-24) * size;
                    assert!((f64::from(got) - want).abs() <= bound, "{isa:?} {r} {lane}");
                    assert_eq!(got.to_bits(), scalar.0[r][lane].to_bits(), "{isa:?} {r} {lane}");
                }
            }
            // Rows beyond the tile's are not touched.
            for row in &sums.0[case.rows..] {
                assert!(row.iter().all(|sum| sum.is_nan()));
            }
        }
    }
}

#[test]
fn stores_to_its_target_and_nowhere_else() {
    let mut random = Random(13);
    for i in 0..200 {
        let case = Case::random(&mut random, if i % 2 == 0 { 14 } else { ROWS });
        let isas = available().into_iter().filter(|isa| *isa != Isa::Scalar);
        for isa in isas.filter(|isa| case.rows <= most_rows(*isa)) {
            let want = case.run(isa);
            let stride = case.lanes + random.below(20);
            let mut result = vec![f32::NAN; (case.rows + 1) * stride];
            let mut sums = Sums([[f32::NAN; LANES]; ROWS]);
            let target = Target { at: result.as_mut_ptr(), stride };
            case.run_to(isa, Some(target), Then::NOTHING, &mut sums);
            assert!(sums.0.iter().flatten().all(|sum| sum.is_nan()), "{isa:?}");
            for (place, got) in result.iter().enumerate() {
                let (row, lane) = (place / stride, place % stride);
                if row < case.rows && lane < case.lanes {
                    assert_eq!(*got, want.0[row][lane], "{isa:?} {row} {lane}");
                } else {
                    assert!(got.is_nan(), "{isa:?} {row} {lane}");
                }
            }
        }
    }
}

#[test]
fn bias_and_relu_in_registers_are_those_of_plain_arithmetic() {
    let mut random = Random(17);
    for isa in available().into_iter().filter(|isa| Then::is_of(*isa, Math::Fma)) {
        for i in 0..200 {
            let case = Case::random(&mut random, most_rows(isa));
            let bias = random.vector(ROWS);
            let (relu, stores) = (i % 2 == 0, i % 3 == 0);
            let then =
                Then { bias: if i % 5 == 0 { std::ptr::null() } else { bias.as_ptr() }, relu };
            let mut result = vec![f32::NAN; ROWS * LANES];
            let mut sums = Sums([[f32::NAN; LANES]; ROWS]);
            let to = Target { at: result.as_mut_ptr(), stride: LANES };
            let target = stores.then_some(to);
            let plain = case.run(isa);
            case.run_to(isa, target, then, &mut sums);
            for r in 0..case.rows {
                for lane in 0..case.lanes {
                    let mut want = plain.0[r][lane];
                    if !then.bias.is_null() {
                        want += bias[r];
                    }
                    if relu && want <= 0.0 {
                        want = 0.0;
                    }
                    let got = if stores { result[r * LANES + lane] } else { sums.0[r][lane] };
                    assert_eq!(got, want, "{isa:?} {r} {lane}");
                }
            }
            let untouched = if stores { sums.0.as_flattened() } else { &result };
            assert!(untouched.iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn a_nan_passes_the_relu_in_registers() {
    for isa in available().into_iter().filter(|isa| Then::is_of(*isa, Math::Fma)) {
        let mut case = Case::random(&mut Random(19), 14);
        (case.rows, case.lanes, case.depth) = (3, 32, 1);
        case.v[5] = f32::NAN;
        let mut sums = Sums::new();
        case.run_to(isa, None, Then { relu: true, ..Then::NOTHING }, &mut sums);
        assert!(sums.0[..3].iter().all(|row| row[5].is_nan() && row[4] >= 0.0), "{isa:?}");
    }
}

#[test]
fn pairs_of_bfloat16_agree_with_fp64() {
    if !has_dot() {
        return;
    }
    let mut random = Random(12);
    for case in 0..400 {
        let (rows, lanes) = (1 + random.below(14), 16 + 16 * random.below(2));
        let k = 1 + random.below(200);
        let columns = case % 2 == 0 && k.is_multiple_of(2);
        let pairs = k.div_ceil(2);
        // p[r][k]; in columns, pairs of one k/2 for all rows side by side.
        let ld = k + random.below(4);
        let p: Vec<u16> = random.vector(ROWS * (ld + 2)).into_iter().map(bf16_rounded).collect();
        let at = |r: usize, k: usize| {
            p[if columns { (k / 2 * rows + r) * 2 + k % 2 } else { r * ld + k }]
        };
        let mut v = vec![0u16; pairs * LANES * 2];
        for (i, value) in random.vector(k * LANES).into_iter().enumerate() {
            let (step, lane) = (i / LANES, i % LANES);
            v[(step / 2 * LANES + lane) * 2 + step % 2] = bf16_rounded(value);
        }
        let factors = Factors {
            p: p.as_ptr().cast(),
            row: if columns { 4 } else { 2 * ld },
            step: if columns { 4 * rows } else { 4 },
            v: v.as_ptr().cast(),
            v_step: LANES,
            depth: k / 2,
            half: k % 2 == 1,
            soon: std::ptr::null(),
            target: None,
            next: None,
            then: Then::NOTHING,
        };
        for isa in [Isa::Scalar, Isa::Avx512] {
            let mut sums = Sums::new();
            // SAFETY: the vectors have the sizes that the factors state; `has_dot`
            // asked the CPU.
            unsafe { run(isa, Math::Dot, rows, lanes, &factors, &mut sums) };
            for r in 0..rows {
                for lane in 0..lanes {
                    let terms = (0..k).map(|k| {
                        let v = v[(k / 2 * LANES + lane) * 2 + k % 2];
                        f64::from(bf16_widened(at(r, k))) * f64::from(bf16_widened(v))
                    });
                    let (want, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                    let error = (f64::from(sums.0[r][lane]) - want).abs();
                    let bound = (k + 1) as f64 * 2f64.powi(-24) * size;
                    assert!(error <= bound, "{isa:?} {rows}x{lanes}x{k}: {error} > {bound}");
                }
            }
        }
    }
}

#[test]
fn nan_and_infinities_pass() {
    for isa in available() {
        let mut case = Case::random(&mut Random(13), 3);
        (case.rows, case.lanes, case.depth, case.columns, case.ld) = (3, 32, 5, false, 5);
        case.p = vec![1.0; 3 * 5 + ROWS];
        case.v = vec![1.0; 6 * LANES];
        case.p[4] = f32::NAN;
        case.p[5] = f32::INFINITY;
        let sums = case.run(isa);
        assert!(sums.0[0].iter().all(|sum| sum.is_nan()), "{isa:?}");
        assert!(sums.0[1].iter().all(|sum| *sum == f32::INFINITY), "{isa:?}");
        assert!(sums.0[2].iter().all(|sum| *sum == 5.0), "{isa:?}");
    }
}
