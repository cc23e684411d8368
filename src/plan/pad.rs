//! Copies of matrices in rows that start at multiples of 16 bytes, which the copy engine
//! and cuBLASLt's fast kernels want, and the way back for results (`kernels/pad_rows.cu`).

use super::check::Matrix;
use super::div_ceil;

/// Rows start at multiples of so many bytes.
pub const ROW: u64 = 16;
/// Of a block; each writes 16 bytes.
pub const THREADS: i64 = 256;

/// A copy that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pad {
    /// `[rows, cols]`, rows contiguous.
    pub from: Matrix,
    /// Where it goes: bytes from the beginning of scratch memory.
    pub to: usize,
    /// Of the copy; what it has more than the source, of rows and of columns, is zero.
    pub rows: i64,
    /// Elements from one row of the copy to the next.
    pub ld: i64,
    /// Bytes of an element.
    pub size: u64,
    /// Of the kernel.
    pub blocks: i64,
}

/// `elements` or the next number of them that is a multiple of 16 bytes.
#[must_use]
pub fn whole(elements: i64, size: u64) -> i64 {
    let each = (ROW / size) as i64;
    div_ceil(elements, each) * each
}

/// Whether every row starts at a multiple of 16 bytes.
#[must_use]
pub fn is_aligned(data_alignment: u32, ld: i64, size: u64) -> bool {
    u64::from(data_alignment) >= ROW && ld == whole(ld, size)
}

/// Blocks that write `elements`.
fn blocks(elements: i64, size: u64) -> Result<i64, String> {
    let blocks = div_ceil(div_ceil(elements, (ROW / size) as i64), THREADS);
    let fits = blocks <= i64::from(i32::MAX);
    fits.then_some(blocks).ok_or_else(|| format!("a copy of {elements} is more than a grid has"))
}

/// Predicted µs of a copy: every byte is read and written.
fn us(elements: i64, size: u64) -> f64 {
    1.5 + 2.0 * elements as f64 * size as f64 / 2.6e6
}

impl Pad {
    /// The copy of `from`, at `to`.
    ///
    /// # Errors
    /// A phrase, if it is more than a grid has.
    pub fn new(from: Matrix, size: u64, to: usize) -> Result<Self, String> {
        Self::with_rows(from, from.rows, size, to)
    }

    /// The same with zeros behind the last row, up to `rows`.
    ///
    /// # Errors
    /// As for [`Pad::new`].
    pub fn with_rows(from: Matrix, rows: i64, size: u64, to: usize) -> Result<Self, String> {
        let ld = whole(from.cols, size);
        if rows.max(ld) > i64::from(i32::MAX) {
            return Err(format!("a copy of {rows} x {ld} is more than a grid has"));
        }
        let blocks = blocks(rows * ld, size)?;
        Ok(Self { from, to, rows, ld, size, blocks })
    }

    /// Of scratch memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.blocks * THREADS) as usize * ROW as usize
    }

    /// Predicted µs.
    #[must_use]
    pub fn us(&self) -> f64 {
        us(self.rows * self.ld, self.size)
    }

    /// The copy, its address a place in scratch memory.
    #[must_use]
    pub fn copy(&self) -> Matrix {
        Matrix { data: self.to, row_stride: self.ld, col_stride: 1, ..self.from }
    }
}

/// The way back: a result in aligned rows that is to lie without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpad {
    /// Where it is: bytes from the beginning of scratch memory.
    pub from: usize,
    /// Rows there, which may be more.
    pub rows: i64,
    /// Elements from one row there to the next.
    pub ld: i64,
    /// `[rows, cols]`, dense, at a multiple of 16 bytes.
    pub to: Matrix,
    /// Bytes of an element.
    pub size: u64,
    /// Of the kernel.
    pub blocks: i64,
}

impl Unpad {
    /// To `to`, from the first of `rows` rows at `from`, as long as whole ones are.
    ///
    /// # Errors
    /// A phrase, if it is more than a grid has.
    pub fn new(to: Matrix, rows: i64, size: u64, from: usize) -> Result<Self, String> {
        let ld = whole(to.cols, size);
        if rows.max(ld) > i64::from(i32::MAX) {
            return Err(format!("a result of {rows} x {ld} is more than a grid has"));
        }
        Ok(Self { from, rows, ld, to, size, blocks: blocks(to.rows * to.cols, size)? })
    }

    /// Of scratch memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.rows * self.ld) as usize * self.size as usize
    }

    /// Predicted µs.
    #[must_use]
    pub fn us(&self) -> f64 {
        us(self.to.rows * self.ld, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::alignment;
    use super::*;

    #[test]
    fn copies_have_aligned_rows_and_room() {
        for (size, cols) in [(2, 1), (2, 479), (2, 480), (4, 3), (4, 479)] {
            for rows in [1, 255, 4097] {
                let from = Matrix::dense(6, rows, cols);
                for pad in [Pad::new(from, size, 512), Pad::with_rows(from, rows + 7, size, 512)] {
                    let pad = pad.expect("small");
                    assert!(is_aligned(alignment(pad.to), pad.ld, size));
                    assert!(pad.ld >= cols && (pad.ld - cols) as u64 * size < ROW);
                    assert!(pad.bytes() as u64 >= pad.rows as u64 * pad.ld as u64 * size);
                    let copy = pad.copy();
                    assert_eq!((copy.rows, copy.cols, copy.data), (rows, cols, 512));
                }
                let to = Matrix::dense(1024, rows, cols);
                let unpad = Unpad::new(to, rows + 3, size, 256).expect("small");
                assert!(unpad.ld >= cols && (unpad.ld - cols) as u64 * size < ROW);
                assert!(unpad.blocks * THREADS * 16 >= rows * cols * size as i64);
                assert_eq!(unpad.bytes() as u64, (rows as u64 + 3) * unpad.ld as u64 * size);
            }
        }
        assert!(Pad::new(Matrix::dense(0, 1 << 40, 8), 2, 0).is_err());
        assert!(Unpad::new(Matrix::dense(0, 8, 1 << 40), 8, 2, 0).is_err());
        assert!(Unpad::new(Matrix::dense(0, 1 << 30, 1 << 30), 1 << 30, 2, 0).is_err());
    }
}
