use super::super::check::{gemm, Settings};
use super::super::problem::{Dtype, Epilogue};
use super::super::tensor_gemm;
use super::*;

const SETTINGS: Settings = Settings { dtype: Dtype::Bf16, ..Settings::USUAL };
/// Addresses.
const LEFT: usize = 1 << 10;
const RIGHT: usize = 1 << 12;
const BIAS: usize = 1 << 13;
const RESULT: usize = 1 << 14;
const SCRATCH: usize = 1 << 15;

fn stated(settings: Settings, left: Matrix, right: Matrix, bias: usize) -> Stated {
    let epilogue = if bias == 0 { Epilogue::None } else { Epilogue::Bias };
    let gemm = gemm(settings, left, right, RESULT, Some(bias).filter(|&bias| bias != 0), epilogue)
        .expect("a product");
    let data = GemmData { a: right.data, b: left.data, d: RESULT, bias };
    Stated { gemm, data }
}

/// `x · wᵀ`, rows without gaps.
fn layer(settings: Settings, rows: i64, n: i64, k: i64) -> Stated {
    let (x, w) = (Matrix::dense(LEFT, rows, k), Matrix::dense(1 << 40, n, k));
    stated(settings, x, w.transpose(), BIAS)
}

fn ours(gemm: &Gemm) -> bool {
    !tensor_gemm::candidates(gemm, 132).is_empty()
}

/// Elements of two bytes; NaN where nothing was written.
struct Memory(Vec<f64>);

impl Memory {
    fn at(&mut self, address: usize, element: i64) -> &mut f64 {
        &mut self.0[address / 2 + element as usize]
    }

    /// As `kernels/pad_rows.cu` does.
    fn pad(&mut self, pad: &Pad) {
        for (row, col) in cells(pad.rows, pad.ld) {
            let inside = row < pad.from.rows && col < pad.from.cols;
            let from = row * pad.from.row_stride + col;
            let value = if inside { *self.at(pad.from.data, from) } else { 0.0 };
            *self.at(SCRATCH + pad.to, row * pad.ld + col) = value;
        }
    }

    fn product(&mut self, Stated { gemm, data }: Stated) {
        for (col, row) in cells(gemm.n, gemm.m) {
            let bias = gemm.epilogue.has_bias().then(|| *self.at(data.bias, row));
            let mut sum = bias.unwrap_or(0.0);
            for k in 0..gemm.k {
                let (a, b) = (gemm.a, gemm.b);
                let a_at = if a.transposed { row * a.ld + k } else { k * a.ld + row };
                let b_at = if b.transposed { k * b.ld + col } else { col * b.ld + k };
                sum += *self.at(data.a, a_at) * *self.at(data.b, b_at);
            }
            *self.at(data.d, col * gemm.ldd + row) = sum;
        }
    }

    fn unpad(&mut self, unpad: &Unpad) {
        for (row, col) in cells(unpad.to.rows, unpad.to.cols) {
            let value = *self.at(SCRATCH + unpad.from, row * unpad.ld + col);
            *self.at(unpad.to.data, row * unpad.to.cols + col) = value;
        }
    }
}

fn cells(rows: i64, cols: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..rows).flat_map(move |row| (0..cols).map(move |col| (row, col)))
}

fn filled(stated: &Stated, matrices: [Matrix; 2]) -> Memory {
    let mut memory = Memory(vec![f64::NAN; SCRATCH]);
    for matrix in matrices {
        for (row, col) in cells(matrix.rows, matrix.cols) {
            let at = row * matrix.row_stride + col * matrix.col_stride;
            *memory.at(matrix.data, at) = ((row * 7 + col * 3) % 11 - 5) as f64;
        }
    }
    for i in 0..stated.gemm.m {
        *memory.at(BIAS + 2, i) = i as f64;
    }
    memory
}

#[test]
fn copies_give_the_same_result() {
    let mut seen = [0; 3];
    // Rows apart by odd numbers, by whole rows of 16 bytes with a gap or without.
    for (rows, k, cols, apart) in cells(2, 2)
        .flat_map(|(r, c)| {
            [0, 1, 2].map(move |apart| ([5, 8][r as usize], [7, 16][c as usize], apart))
        })
        .flat_map(|(rows, k, apart)| [9, 8].map(move |cols| (rows, k, cols, apart)))
    {
        let spaced = |data, rows, cols| Matrix {
            row_stride: [cols, cols + 3, whole(cols, 2) + 8][apart],
            ..Matrix::dense(data, rows, cols)
        };
        for (left, right, bias) in [
            (spaced(LEFT, rows, k), spaced(RIGHT, cols, k).transpose(), BIAS + 2),
            (spaced(LEFT, rows, k), spaced(RIGHT, k, cols), 0),
            (spaced(LEFT, k, rows).transpose(), spaced(RIGHT, k, cols), 0),
            (spaced(LEFT, k, rows).transpose(), spaced(RIGHT, cols, k).transpose(), BIAS + 2),
        ] {
            let stated = stated(SETTINGS, left, right, bias);
            let mut memory = filled(&stated, [left, right]);
            memory.product(stated);
            let want = memory.0[RESULT / 2..][..(rows * cols) as usize].to_vec();
            assert!(want.iter().all(|x| x.is_finite()));
            for (i, what) in [What::Rows, What::Sizes].into_iter().enumerate() {
                let on = Padded::new(&stated, what);
                assert!(
                    on.is_none() || !is_whole(&stated.gemm),
                    "{what:?}: nothing is to be copied"
                );
                let Some(on) = on else { continue };
                seen[i] += 1;
                let mut memory = filled(&stated, [left, right]);
                memory.0.resize((SCRATCH + on.bytes) / 2, f64::NAN);
                on.pads.iter().flatten().for_each(|pad| memory.pad(pad));
                memory.product(on.at(SCRATCH));
                on.result.iter().for_each(|unpad| memory.unpad(unpad));
                let label = format!("{what:?} {left:?} {right:?}");
                let (got, behind) = memory.0[RESULT / 2..SCRATCH / 2].split_at(want.len());
                assert_eq!(got, want, "{label}");
                assert!(behind.iter().all(|x| x.is_nan()), "{label}: behind the result");
                let gemm = on.stated.gemm;
                let aligned = |o: &Operand| is_aligned(o.alignment, o.ld, 2);
                assert!(aligned(&gemm.a) && aligned(&gemm.b), "{label}");
                assert!(what == What::Rows || is_whole(&gemm), "{label}: {gemm}");
                seen[2] += usize::from(on.result.is_some());
            }
        }
    }
    assert!(seen[0] > 30 && seen[1] > 40 && seen[2] > 20, "{seen:?}");
}

#[test]
fn only_where_it_pays() {
    let with = |policy, stated: &Stated| padded(stated, policy, 132, ours);
    let always = |stated: Stated| with(Policy::Always, &stated);
    let pays = |stated: Stated| with(Policy::WhereFaster, &stated);
    let bf16 = |rows, n, k| layer(SETTINGS, rows, n, k);
    // Measured, docs/performance.md: our kernel's, then cuBLASLt's.
    for (rows, n, k) in [(1024, 512, 479), (2048, 1024, 479), (512, 2047, 785)] {
        let on = pays(bf16(rows, n, k)).unwrap_or_else(|| panic!("{rows} {n} {k}"));
        assert!(on.result.is_none() && ours(&on.stated.gemm), "{rows} {n} {k}");
        assert_eq!(on.stated.gemm.k, whole(k, 2), "{rows} {n} {k}");
    }
    for (rows, n, k) in [(65_536, 256, 63), (4096, 4096, 1001), (4096, 1001, 1024)] {
        let on = pays(bf16(rows, n, k)).unwrap_or_else(|| panic!("{rows} {n} {k}"));
        assert!(is_whole(&on.stated.gemm) && !ours(&on.stated.gemm), "{rows} {n} {k}");
        assert_eq!(on.result.is_some(), n == 1001);
    }
    for (rows, n, k) in [(64, 129, 37), (2048, 512, 13), (256, 512, 129), (8192, 128, 33)] {
        assert!(pays(bf16(rows, n, k)).is_none(), "{rows} {n} {k}: small");
    }
    assert!(pays(bf16(2048, 1023, 1024)).is_none(), "our kernel stores any rows");
    let others = |stated: &Stated| padded(stated, Policy::WhereFaster, 132, |_| false);
    assert!(others(&bf16(2048, 1023, 1024)).expect("cuBLASLt does not").result.is_some());
    assert!(pays(bf16(2048, 1024, 480)).is_none(), "aligned as they are");
    assert!(always(bf16(64, 129, 37)).is_some() && always(bf16(64, 136, 40)).is_none());
    // Gradients of a weight: a long sum for few tiles, and rows of the gradient.
    let weight = |rows, n, k| {
        let (dy, x) = (Matrix::dense(1 << 40, rows, n), Matrix::dense(1 << 50, rows, k));
        stated(SETTINGS, dy.transpose(), x, 0)
    };
    assert!(pays(weight(65_536, 256, 63)).expect("it pays").result.is_some());
    assert!(pays(weight(65_536, 4, 255)).is_none(), "little work for the copies");
    assert!(pays(weight(8192, 4095, 1024)).expect("it pays").result.is_some());
    // Rows that are aligned, from the middle of a storage.
    let x = Matrix::dense(LEFT + 2, 2048, 480);
    let moved = stated(SETTINGS, x, Matrix::dense(1 << 30, 1024, 480).transpose(), BIAS);
    let copies = pays(moved).expect("2 bytes off").pads;
    assert!(copies[0].is_none() && copies[1].is_some());
    // SGEMM reads any rows; TF32 is read like 16 bits.
    let fp32 = Settings { dtype: Dtype::F32, ..SETTINGS };
    assert!(always(layer(fp32, 2048, 1024, 479)).is_none());
    assert!(pays(layer(Settings { math: Math::Tf32, ..fp32 }, 2048, 1024, 479)).is_some());
    // More scratch memory than it is worth.
    assert!(always(bf16(1 << 20, 1001, 1024)).is_none());
}
