//! Products on copies whose rows, and if need be sizes, are multiples of 16 bytes.

use super::check::Matrix;
use super::div_ceil;
use super::layer::{GemmData, Stated};
use super::pad::{is_aligned, whole, Pad, Unpad, ROW};
use super::policy::Policy;
use super::problem::{Gemm, Math, Operand};

/// A product on copies of operands.
#[derive(Debug, Clone, Copy)]
pub struct Padded {
    /// As if the copies were the operands; their addresses, and the result's if it is
    /// [`Padded::result`], are places in scratch memory.
    pub stated: Stated,
    /// Of the left and of the right operand and of the bias.
    pub pads: [Option<Pad>; 3],
    /// The result's way to where it is to lie.
    pub result: Option<Unpad>,
    /// Scratch memory of all.
    pub bytes: usize,
}

/// What a product is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Aligned rows of operands, which our kernel wants.
    Rows,
    /// Sizes and results too, which cuBLASLt's fast kernels want.
    Sizes,
}

/// The gain is predicted to be so many times what the copies take.
const CLEARLY: f64 = 1.3;
/// Scratch memory for copies; above it operands are read as they are.
const MOST_BYTES: usize = 1 << 30;
/// Of places in scratch memory; a block of copies writes a multiple of it.
const ALIGNMENT: u32 = 256;

/// The product on copies, if something is not aligned and copying it is faster. `takes`
/// tells whether our kernel, which wants aligned operands alone, may take a product.
#[must_use]
pub fn padded(
    stated: &Stated,
    policy: Policy,
    multiprocessors: i64,
    takes: impl Fn(&Gemm) -> bool,
) -> Option<Padded> {
    let gemm = &stated.gemm;
    // SGEMM reads any rows as fast.
    if gemm.math == Math::Strict && gemm.dtype.size() == 4 {
        return None;
    }
    let sizes = || Padded::new(stated, What::Sizes).ok();
    if policy == Policy::Always {
        return sizes().or_else(|| Padded::new(stated, What::Rows).ok());
    }
    let gain = gain_us(gemm, multiprocessors);
    let pays = |padded: &Padded| gain > CLEARLY * padded.us();
    let long = gemm.has_few_long_sums(multiprocessors);
    let rows = Padded::new(stated, What::Rows).ok().filter(|on| {
        let on = &on.stated.gemm;
        !long && (takes(on) || is_whole(on))
    });
    if rows.is_some() || takes(gemm) {
        return rows.filter(pays);
    }
    sizes().filter(|on| is_whole(&on.stated.gemm) && pays(on))
}

/// µs that a product is faster by when all is aligned, on an H200 (docs/performance.md):
/// so many a step of k for each tile that a multiprocessor does, half of it where there
/// are few tiles, and no more than all its time at the rate of few.
fn gain_us(gemm: &Gemm, multiprocessors: i64) -> f64 {
    const STEP_US: f64 = 0.026;
    const FLOP_PER_US: f64 = 80e6;
    const FLOP_PER_US_IF_LONG: f64 = 100e6;
    let flop = 2.0 * gemm.m as f64 * gemm.n as f64 * gemm.k as f64;
    if gemm.has_few_long_sums(multiprocessors) {
        return flop / FLOP_PER_US_IF_LONG;
    }
    let tiles = div_ceil(gemm.m, 128) * div_ceil(gemm.n, 128);
    let turns = tiles as f64 / multiprocessors as f64;
    let turns = if turns > 1.0 { turns } else { (2.0 * turns).clamp(0.5, 1.0) };
    (STEP_US * gemm.k as f64 * turns).min(flop / FLOP_PER_US)
}

/// Whether sums run along the rows of the left, of the right operand.
const fn along_k(gemm: &Gemm) -> [bool; 2] {
    [gemm.a.transposed, !gemm.b.transposed]
}

/// Whether nothing keeps cuBLASLt from its fast kernels.
fn is_whole(gemm: &Gemm) -> bool {
    let size = gemm.dtype.size();
    let k = if along_k(gemm) == [false; 2] { 0 } else { gemm.k };
    let sizes = [gemm.m, gemm.ldd, k, if gemm.b.transposed { gemm.n } else { 0 }];
    let aligned = |operand: &Operand| is_aligned(operand.alignment, operand.ld, size);
    sizes.into_iter().all(|elements| elements == whole(elements, size))
        && [gemm.a, gemm.b].iter().all(aligned)
        && u64::from(gemm.d_alignment.min(gemm.bias_alignment)) >= ROW
}

/// Contiguous runs of both operands in memory, and their length.
fn runs(gemm: &Gemm) -> [(i64, i64); 2] {
    let Gemm { m, n, k, a, b, .. } = *gemm;
    [if a.transposed { (m, k) } else { (k, m) }, if b.transposed { (k, n) } else { (n, k) }]
}

impl Padded {
    /// # Errors
    /// Why not: nothing is to be copied, or it is too large.
    fn new(stated: &Stated, what: What) -> Result<Self, String> {
        let mut on = Self { stated: *stated, pads: [None; 3], result: None, bytes: 0 };
        let Stated { gemm, data } = &mut on.stated;
        let (Gemm { m, n, k, .. }, size) = (*gemm, gemm.dtype.size());
        let aligned = [gemm.a, gemm.b].map(|o| is_aligned(o.alignment, o.ld, size));
        let before = runs(gemm);
        // Zeros behind the elements of a sum, in both operands; they cost nothing if the
        // rows of both are copied.
        let long = match what {
            What::Rows => along_k(gemm) == [true; 2] && aligned == [false; 2],
            What::Sizes => along_k(gemm) != [false; 2],
        };
        gemm.k = if long { whole(k, size) } else { k };
        if what == What::Sizes {
            gemm.m = whole(m, size);
            gemm.n = if gemm.b.transposed { whole(n, size) } else { n };
        }
        let (after, apart) = (runs(gemm), (gemm.m, gemm.n) != (m, n));
        let operands = [(&mut gemm.a, &mut data.a), (&mut gemm.b, &mut data.b)];
        for (side, (operand, address)) in operands.into_iter().enumerate() {
            let ((rows, cols), (more, _)) = (before[side], after[side]);
            if aligned[side] && before[side] == after[side] {
                continue;
            }
            let from = Matrix { row_stride: operand.ld, ..Matrix::dense(*address, rows, cols) };
            let pad = on.pads[side].insert(Pad::with_rows(from, more, size, on.bytes)?);
            on.bytes += pad.bytes();
            *address = pad.to;
            (operand.ld, operand.alignment) = (pad.ld, ALIGNMENT);
        }
        let bias_aligned = u64::from(gemm.bias_alignment) >= ROW;
        if what == What::Sizes && gemm.epilogue.has_bias() && (gemm.m > m || !bias_aligned) {
            let bias = Matrix::dense(data.bias, 1, m);
            let pad = on.pads[2].insert(Pad::new(bias, size, on.bytes)?);
            on.bytes += pad.bytes();
            (data.bias, gemm.bias_alignment) = (pad.to, ALIGNMENT);
        }
        if apart {
            if gemm.ldd != m || u64::from(gemm.d_alignment) < ROW {
                return Err("the result has gaps".to_owned());
            }
            let to = Matrix::dense(data.d, n, m);
            let unpad = on.result.insert(Unpad::new(to, gemm.n, size, on.bytes)?);
            on.bytes += unpad.bytes().next_multiple_of(ALIGNMENT as usize);
            data.d = unpad.from;
            (gemm.ldd, gemm.d_alignment) = (unpad.ld, ALIGNMENT);
        }
        match on.bytes {
            0 => Err("nothing is to be copied".to_owned()),
            bytes if bytes > MOST_BYTES => Err(format!("copies of {bytes} bytes")),
            _ => Ok(on),
        }
    }

    /// The product, with scratch memory at `scratch`.
    #[must_use]
    pub fn at(&self, scratch: usize) -> Stated {
        let mut stated = self.stated;
        let GemmData { a, b, d, bias } = &mut stated.data;
        let copied = self.pads.map(|pad| pad.is_some());
        for (address, moved) in
            [(a, copied[0]), (b, copied[1]), (bias, copied[2]), (d, self.result.is_some())]
        {
            *address += if moved { scratch } else { 0 };
        }
        stated
    }

    /// Predicted µs of all copies.
    fn us(&self) -> f64 {
        self.pads.iter().flatten().map(Pad::us).sum::<f64>()
            + self.result.as_ref().map_or(0.0, Unpad::us)
    }
}

#[cfg(test)]
mod tests {
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
        let gemm =
            gemm(settings, left, right, RESULT, Some(bias).filter(|&bias| bias != 0), epilogue)
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
                    let Ok(on) = Padded::new(&stated, what) else { continue };
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
}
