//! Copies of operands in rows that start at multiples of 16 bytes, which the copy engine
//! and cuBLASLt's fast kernels want (`kernels/pad_rows.cu`).

use super::check::Matrix;
use super::div_ceil;
use super::layer::Stated;
use super::policy::Policy;
use super::problem::{Gemm, Math};
use super::tensor_gemm;

/// Rows start at multiples of so many bytes.
const ROW: u64 = 16;
/// Of a block; each writes 16 bytes.
pub const THREADS: i64 = 256;

/// A copy that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pad {
    /// `[rows, cols]`, rows contiguous.
    pub from: Matrix,
    /// Where it goes: bytes from the beginning of scratch memory.
    pub to: usize,
    /// Elements from one row of the copy to the next.
    pub ld: i64,
    /// Bytes of an element.
    pub size: u64,
    /// Of the kernel.
    pub blocks: i64,
}

/// Whether every row starts at a multiple of 16 bytes.
#[must_use]
pub fn is_aligned(data_alignment: u32, ld: i64, size: u64) -> bool {
    u64::from(data_alignment) >= ROW && (ld as u64 * size).is_multiple_of(ROW)
}

impl Pad {
    /// The copy of `from`, at `to`.
    ///
    /// # Errors
    /// A phrase, if it is more than a grid has.
    pub fn new(from: Matrix, size: u64, to: usize) -> Result<Self, String> {
        let each = (ROW / size) as i64;
        let ld = div_ceil(from.cols, each) * each;
        let blocks = div_ceil(from.rows.saturating_mul(ld / each), THREADS);
        if blocks > i64::from(i32::MAX) || from.rows.max(ld) > i64::from(i32::MAX) {
            return Err(format!("a copy of {} x {ld} is more than a grid has", from.rows));
        }
        Ok(Self { from, to, ld, size, blocks })
    }

    /// Of scratch memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.blocks * THREADS) as usize * ROW as usize
    }

    /// Predicted µs: every byte is read and written.
    #[must_use]
    pub fn us(&self) -> f64 {
        1.5 + 2.0 * (self.from.rows * self.ld) as f64 * self.size as f64 / 2.6e6
    }

    /// The copy, its address a place in scratch memory.
    #[must_use]
    pub fn copy(&self) -> Matrix {
        Matrix { data: self.to, row_stride: self.ld, col_stride: 1, ..self.from }
    }
}

/// A product on copies of operands.
#[derive(Debug, Clone, Copy)]
pub struct Padded {
    /// As if the copies were the operands; their addresses are places in scratch memory.
    pub stated: Stated,
    /// Of the left and of the right operand.
    pub pads: [Option<Pad>; 2],
    /// Scratch memory of both.
    pub bytes: usize,
}

/// The gain is predicted to be so many times what the copies take.
const CLEARLY: f64 = 1.3;

/// µs that a product is faster by with aligned rows, in 16 bits on an H200
/// (docs/performance.md): so many a step of k for each tile that a multiprocessor does, half
/// of it where there are few tiles, and no more than all its time at the rate of few.
fn gain_us(gemm: &Gemm, multiprocessors: i64) -> f64 {
    const STEP_US: f64 = 0.026;
    const FLOP_PER_US: f64 = 80e6;
    let tiles = div_ceil(gemm.m, 128) * div_ceil(gemm.n, 128);
    let turns = tiles as f64 / multiprocessors as f64;
    let turns = if turns > 1.0 { turns } else { (2.0 * turns).clamp(0.5, 1.0) };
    let flop = 2.0 * gemm.m as f64 * gemm.n as f64 * gemm.k as f64;
    (STEP_US * gemm.k as f64 * turns).min(flop / FLOP_PER_US)
}

/// The product on copies, if rows are not aligned and copying them is faster: it is for
/// our kernel, cuBLASLt wants sizes and results aligned too.
#[must_use]
pub fn padded(stated: &Stated, policy: Policy, multiprocessors: i64) -> Option<Padded> {
    let gemm = stated.gemm;
    let size = gemm.dtype.size();
    // SGEMM reads any rows as fast.
    if gemm.math == Math::Strict && size == 4 {
        return None;
    }
    let mut result = Padded { stated: *stated, pads: [None; 2], bytes: 0 };
    let Padded { stated: Stated { gemm: on, data }, pads: [pad_a, pad_b], bytes } = &mut result;
    let [runs_a, runs_b] = runs(&gemm);
    let operands =
        [(pad_a, &mut data.a, &mut on.a, runs_a), (pad_b, &mut data.b, &mut on.b, runs_b)];
    for (pad, address, operand, (rows, cols)) in operands {
        if is_aligned(operand.alignment, operand.ld, size) {
            continue;
        }
        let from = Matrix { row_stride: operand.ld, ..Matrix::dense(*address, rows, cols) };
        let copy = Pad::new(from, size, *bytes).ok()?;
        *bytes = (*bytes + copy.bytes()).next_multiple_of(256);
        *address = copy.to;
        (operand.ld, operand.alignment) = (copy.ld, 256);
        *pad = Some(copy);
    }
    let cost: f64 = result.pads.iter().flatten().map(Pad::us).sum();
    let pays = || {
        let gemm = &result.stated.gemm;
        gain_us(gemm, multiprocessors) > CLEARLY * cost
            && !gemm.has_few_long_sums(multiprocessors)
            && !tensor_gemm::candidates(gemm, multiprocessors).is_empty()
    };
    (cost > 0.0 && (policy == Policy::Always || pays())).then_some(result)
}

/// Contiguous runs of both operands in memory, and their length.
fn runs(gemm: &Gemm) -> [(i64, i64); 2] {
    let Gemm { m, n, k, a, b, .. } = *gemm;
    [if a.transposed { (m, k) } else { (k, m) }, if b.transposed { (k, n) } else { (n, k) }]
}

#[cfg(test)]
mod tests {
    use super::super::check::{alignment, gemm, Settings};
    use super::super::layer::GemmData;
    use super::super::problem::{Dtype, Epilogue, Operand};
    use super::*;

    const SETTINGS: Settings = Settings { dtype: Dtype::Bf16, ..Settings::USUAL };

    fn stated(settings: Settings, left: Matrix, right: Matrix) -> Stated {
        let gemm = gemm(settings, left, right, 1 << 40, None, Epilogue::None).expect("a product");
        Stated { gemm, data: GemmData { a: right.data, b: left.data, d: 1 << 40, bias: 0 } }
    }

    /// `x · wᵀ`, rows without gaps.
    fn layer(rows: i64, n: i64, k: i64) -> Stated {
        let (x, w) = (Matrix::dense(1 << 20, rows, k), Matrix::dense(1 << 30, n, k));
        stated(SETTINGS, x, w.transpose())
    }

    #[test]
    fn copies_have_aligned_rows_and_room() {
        for (size, cols) in [(2, 1), (2, 479), (2, 480), (4, 3), (4, 479)] {
            for rows in [1, 255, 4097] {
                let pad = Pad::new(Matrix::dense(6, rows, cols), size, 512).expect("small");
                assert!(is_aligned(alignment(pad.to), pad.ld, size));
                assert!(pad.ld >= cols && (pad.ld - cols) as u64 * size < ROW);
                assert!(pad.bytes() as u64 >= rows as u64 * pad.ld as u64 * size);
                assert_eq!((pad.copy().rows, pad.copy().cols, pad.copy().data), (rows, cols, 512));
            }
        }
        assert!(Pad::new(Matrix::dense(0, 1 << 40, 8), 2, 0).is_err());
    }

    #[test]
    fn the_product_reads_the_copies_where_it_read_the_sources() {
        let all = |m: Matrix| [m, m.transpose()];
        // Element `(r, c)` of op(operand), row-major notation, as an address of its memory.
        let at = |o: Operand, data: usize, r: i64, c: i64, swapped: bool| {
            let by_row = o.transposed == swapped;
            data + 2 * (if by_row { r * o.ld + c } else { c * o.ld + r }) as usize
        };
        for left in all(Matrix { row_stride: 13, ..Matrix::dense(1 << 20, 5, 7) }) {
            for right in all(Matrix { row_stride: 11, ..Matrix::dense(1 << 30, left.cols, 9) })
                .into_iter()
                .chain(all(Matrix { row_stride: 8, ..Matrix::dense(1 << 30, left.cols, 8) }))
                .filter(|right| right.rows == left.cols)
            {
                let before = stated(SETTINGS, left, right);
                let after = padded(&before, Policy::Always, 132).expect("13 columns");
                let sides = [
                    (before.gemm.b, before.data.b, after.stated.gemm.b, after.stated.data.b),
                    (before.gemm.a, before.data.a, after.stated.gemm.a, after.stated.data.a),
                ];
                for (side, matrix) in [left, right].into_iter().enumerate() {
                    let (o, data, copied, place) = sides[side];
                    let pad = after.pads[1 - side];
                    assert_eq!(pad.is_none(), is_aligned(o.alignment, o.ld, 2));
                    assert!(is_aligned(copied.alignment, copied.ld, 2));
                    for r in 0..matrix.rows {
                        for c in 0..matrix.cols {
                            let want = at(o, data, r, c, false);
                            let reads = at(copied, place, r, c, false);
                            let source = pad.map_or(reads, |pad| {
                                let element = (reads - pad.to) / 2;
                                let (row, col) =
                                    (element / pad.ld as usize, element % pad.ld as usize);
                                assert!(row < pad.from.rows as usize);
                                assert!(col < pad.from.cols as usize);
                                pad.from.data + 2 * (row * pad.from.row_stride as usize + col)
                            });
                            assert_eq!(source, want, "side {side}, {r}, {c}");
                        }
                    }
                }
                if let [Some(a), Some(b)] = after.pads {
                    assert!(b.to >= a.to + a.bytes() && after.bytes >= b.to + b.bytes());
                }
            }
        }
    }

    #[test]
    fn only_where_it_pays() {
        let always = |stated: Stated| padded(&stated, Policy::Always, 132);
        let pays = |stated: Stated| padded(&stated, Policy::WhereFaster, 132).is_some();
        // Measured, docs/performance.md.
        for (rows, n, k) in [(1024, 512, 479), (2048, 1024, 479), (512, 2048, 785)] {
            assert!(pays(layer(rows, n, k)), "{rows} {n} {k}");
        }
        for (rows, n, k) in [(65_536, 256, 63), (4096, 4096, 1001)] {
            assert!(!pays(layer(rows, n, k)), "{rows} {n} {k}: not our kernel's");
        }
        for (rows, n, k) in [(64, 129, 37), (2048, 512, 13), (256, 512, 129), (8192, 128, 33)] {
            assert!(!pays(layer(rows, n, k)), "{rows} {n} {k}: small");
        }
        // The gradient of a weight that is a long sum for few tiles.
        let (dy, x) = (Matrix::dense(1 << 20, 65_536, 256), Matrix::dense(1 << 30, 65_536, 63));
        assert!(!pays(stated(SETTINGS, dy.transpose(), x)));
        assert!(!pays(layer(2048, 1024, 480)), "aligned as they are");
        assert!(always(layer(64, 129, 37)).is_some() && always(layer(64, 129, 40)).is_none());
        // Rows that are, from the middle of a storage.
        let x = Matrix::dense((1 << 20) + 2, 2048, 480);
        let moved = stated(SETTINGS, x, Matrix::dense(1 << 30, 1024, 480).transpose());
        let copies = padded(&moved, Policy::WhereFaster, 132).expect("2 bytes off").pads;
        assert!(copies[0].is_none() && copies[1].is_some());
        // SGEMM reads any rows; TF32 is read like 16 bits.
        let fp32 = Settings { dtype: Dtype::F32, ..SETTINGS };
        let (x, w) = (Matrix::dense(1 << 20, 2048, 479), Matrix::dense(1 << 30, 1024, 479));
        assert!(always(stated(fp32, x, w.transpose())).is_none());
        let tf32 = Settings { math: Math::Tf32, ..fp32 };
        assert!(pays(stated(tf32, x, w.transpose())));
    }
}
