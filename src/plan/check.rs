//! From the matrices of a call to a [`Gemm`], or the reason why ATen should
//! answer instead. Shapes and dtypes were checked before, for every device
//! alike (`cpp/check.cpp`); here it is only about what our CUDA path takes.

use super::problem::{Dtype, Epilogue, Gemm, Math, Operand};

/// A strided 2-D matrix in device memory, row-major notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Address of element (0, 0).
    pub data: usize,
    /// Rows.
    pub rows: i64,
    /// Columns.
    pub cols: i64,
    /// Elements from one row to the next.
    pub row_stride: i64,
    /// Elements from one column to the next.
    pub col_stride: i64,
}

impl Matrix {
    /// A dense row-major matrix.
    #[must_use]
    pub const fn dense(data: usize, rows: i64, cols: i64) -> Self {
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The same memory, read as the transpose.
    #[must_use]
    pub const fn transpose(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Leading dimension if the matrix is stored row by row.
    pub(super) fn row_major_ld(&self) -> Option<i64> {
        let unit = self.col_stride == 1 || self.cols == 1;
        // With one row the stride is never used, but cuBLASLt wants ld >= cols.
        let ld = if self.rows == 1 { self.row_stride.max(self.cols) } else { self.row_stride };
        (unit && ld >= self.cols).then_some(ld)
    }
}

/// The settings of a call that are not shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// CUDA device index.
    pub device: i32,
    /// Element type.
    pub dtype: Dtype,
    /// Arithmetic.
    pub math: Math,
    /// See [`Gemm::split_k`].
    pub split_k: bool,
    /// See [`Gemm::deterministic`].
    pub deterministic: bool,
}

impl Settings {
    /// Of the tests: strict fp32, nothing forbidden.
    #[cfg(test)]
    pub const USUAL: Self = Self {
        device: 0,
        dtype: Dtype::F32,
        math: Math::Strict,
        split_k: true,
        deterministic: false,
    };

    /// fp32 with nothing given up.
    #[must_use]
    pub fn is_strict_fp32(&self) -> bool {
        self.dtype == Dtype::F32 && self.math == Math::Strict
    }
}

/// cuBLASLt takes its dimensions as 64-bit numbers but its kernels index with
/// 32 bits.
const MAX_EXTENT: i64 = i32::MAX as i64;

/// The largest power of two, at most 256, that divides an address.
#[must_use]
pub fn alignment(address: usize) -> u32 {
    1 << (address | 256).trailing_zeros()
}

/// States `out[rows, cols] = epilogue(left · right)` with a dense row-major
/// `out` as a column-major product: `outᵀ = rightᵀ · leftᵀ`.
///
/// # Errors
/// A phrase for [`crate::launch::Refusal`] when cuBLASLt cannot take it.
pub fn gemm(
    settings: Settings,
    left: Matrix,
    right: Matrix,
    out: usize,
    bias: Option<usize>,
    epilogue: Epilogue,
) -> Result<Gemm, String> {
    debug_assert_eq!(left.cols, right.rows, "checked by every caller");
    let (rows, cols, inner) = (left.rows, right.cols, left.cols);
    if rows.max(cols).max(inner) > MAX_EXTENT {
        return Err(format!("a {rows} x {cols} x {inner} product exceeds 32-bit dimensions"));
    }
    let a = operand(right)?;
    let b = operand(left)?;
    let largest_ld = a.ld.max(b.ld);
    if largest_ld > MAX_EXTENT {
        return Err(format!("a row stride of {largest_ld} exceeds 32 bits"));
    }
    Ok(Gemm {
        device: settings.device,
        dtype: settings.dtype,
        math: settings.math,
        split_k: settings.split_k,
        deterministic: settings.deterministic,
        m: cols,
        n: rows,
        k: inner,
        a,
        b,
        ldd: cols,
        d_alignment: alignment(out),
        bias_alignment: bias.map_or(256, alignment),
        epilogue,
    })
}

/// A row-major matrix is its transpose in column-major notation.
fn operand(matrix: Matrix) -> Result<Operand, String> {
    let alignment = alignment(matrix.data);
    if let Some(ld) = matrix.row_major_ld() {
        return Ok(Operand { transposed: false, ld, alignment });
    }
    if let Some(ld) = matrix.transpose().row_major_ld() {
        return Ok(Operand { transposed: true, ld, alignment });
    }
    Err(format!("strides ({}, {}) have no unit stride", matrix.row_stride, matrix.col_stride))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings::USUAL;

    fn stated(left: Matrix, right: Matrix) -> Result<Gemm, String> {
        gemm(SETTINGS, left, right, 256, None, Epilogue::None)
    }

    /// Reads a matrix through column-major (ld, transposed), as cuBLASLt will.
    fn column_major(memory: &[f64], o: Operand, rows: i64, cols: i64) -> Vec<Vec<f64>> {
        let at = |r: i64, c: i64| {
            let (r, c) = if o.transposed { (c, r) } else { (r, c) };
            memory[usize::try_from(r + c * o.ld).unwrap()]
        };
        (0..rows).map(|r| (0..cols).map(|c| at(r, c)).collect()).collect()
    }

    #[test]
    fn every_layout_computes_the_same_product() {
        let (m, k, n) = (3_i64, 4_i64, 5_i64);
        let value = |r: i64, c: i64| (r * 10 + c + 1) as f64;
        // Row-major, padded row-major, transposed.
        type Strides = fn(i64, i64) -> (i64, i64);
        let layouts: [Strides; 3] = [|_, c| (c, 1), |_, c| (c + 3, 1), |r, _| (1, r)];
        let fill = |rows: i64, cols: i64, (rs, cs): (i64, i64)| {
            let mut memory = vec![f64::NAN; 200];
            for r in 0..rows {
                for c in 0..cols {
                    memory[usize::try_from(r * rs + c * cs).unwrap()] = value(r, c);
                }
            }
            memory
        };
        for left_layout in layouts {
            for right_layout in layouts {
                let (ls, rs) = (left_layout(m, k), right_layout(k, n));
                let (left_memory, right_memory) = (fill(m, k, ls), fill(k, n, rs));
                let left =
                    Matrix { data: 256, rows: m, cols: k, row_stride: ls.0, col_stride: ls.1 };
                let right =
                    Matrix { data: 256, rows: k, cols: n, row_stride: rs.0, col_stride: rs.1 };
                let g = stated(left, right).unwrap();
                assert_eq!((g.m, g.n, g.k, g.ldd), (n, m, k, n));
                let a = column_major(&right_memory, g.a, g.m, g.k);
                let b = column_major(&left_memory, g.b, g.k, g.n);
                for row in 0..m {
                    for col in 0..n {
                        let sum: f64 =
                            (0..k as usize).map(|i| a[col as usize][i] * b[i][row as usize]).sum();
                        let want: f64 = (0..k).map(|i| value(row, i) * value(i, col)).sum();
                        assert_eq!(sum, want, "{g}");
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_what_cublaslt_cannot_index() {
        let wide = Matrix::dense(0, 2, 1 << 31);
        assert!(stated(wide, Matrix::dense(0, 1 << 31, 2)).unwrap_err().contains("32-bit"));
        let sparse = Matrix { data: 0, rows: 4, cols: 4, row_stride: 8, col_stride: 2 };
        assert!(stated(sparse, Matrix::dense(0, 4, 4)).unwrap_err().contains("unit stride"));
        let broadcast = Matrix { data: 0, rows: 4, cols: 4, row_stride: 0, col_stride: 1 };
        assert!(stated(broadcast, Matrix::dense(0, 4, 4)).is_err());
        let far = Matrix { data: 0, rows: 2, cols: 4, row_stride: 1 << 40, col_stride: 1 };
        assert!(stated(far, Matrix::dense(0, 4, 4)).unwrap_err().contains("row stride"));
    }

    #[test]
    fn one_row_or_column_needs_no_stride() {
        let row = Matrix { data: 0, rows: 1, cols: 4, row_stride: 0, col_stride: 1 };
        assert_eq!(stated(row, Matrix::dense(0, 4, 4)).unwrap().b.ld, 4);
        let column = Matrix { data: 0, rows: 4, cols: 1, row_stride: 7, col_stride: 0 };
        assert_eq!(stated(column, Matrix::dense(0, 1, 4)).unwrap().b.ld, 7);
    }

    #[test]
    fn alignment_is_capped() {
        assert_eq!(alignment(0), 256);
        assert_eq!(alignment(512), 256);
        assert_eq!(alignment(48), 16);
        assert_eq!(alignment(2), 2);
    }
}
