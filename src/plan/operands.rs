//! Whether the copy engine reads and stores what a chain of layers works on.

use super::check::{alignment, Matrix};
use super::layer::Layer;
use super::problem::Dtype;

/// Whether the copy engine reads every operand; then, whether it can store the last
/// result.
///
/// # Errors
/// What it cannot read, or store of the hidden results.
pub fn takes(input: Matrix, layers: &[Layer], dtype: Dtype) -> Result<bool, &'static str> {
    let whole = |columns: i64| columns % (16 / dtype.size() as i64) == 0;
    let readable = |m: Matrix| {
        // With one row the stride is never used.
        let rows_align = m.rows == 1 || whole(m.row_stride) && m.row_stride >= m.cols;
        let small = m.rows.max(m.cols).max(m.row_stride) <= i64::from(i32::MAX);
        let unit = m.col_stride == 1 || m.cols == 1;
        unit && m.cols > 0 && m.rows > 0 && m.data.is_multiple_of(16) && rows_align && small
    };
    if !readable(input) || !layers.iter().all(|layer| readable(layer.weight)) {
        return Err("an operand is not aligned or not stored by rows");
    }
    let storable = |layer: &Layer| whole(layer.weight.rows) && alignment(layer.output) >= 16;
    match layers {
        [hidden @ .., last] if hidden.iter().all(storable) => Ok(storable(last)),
        _ => Err("a hidden result is not aligned"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(k: i64, n: i64) -> Layer {
        Layer { weight: Matrix::dense(256, n, k), bias: None, output: 256, relu: true }
    }

    #[test]
    fn rows_of_16_bytes_except_where_there_is_one() {
        let input = Matrix::dense(256, 9, 24);
        let all = |input, layers: &[Layer]| takes(input, layers, Dtype::Bf16);
        assert_eq!(all(input, &[layer(24, 8), layer(8, 16)]), Ok(true));
        assert_eq!(all(input, &[layer(24, 8), layer(8, 10)]), Ok(false));
        assert!(all(input, &[layer(24, 10), layer(10, 16)]).unwrap_err().contains("operand"));
        // Rows of 12 fp32 are 48 bytes, of 12 bf16 24.
        let chain = [layer(12, 4), layer(4, 4)];
        assert_eq!(takes(Matrix::dense(256, 9, 12), &chain, Dtype::F32), Ok(true));
        assert!(all(Matrix::dense(256, 9, 12), &chain).is_err());
        let one = Matrix { row_stride: 1, ..Matrix::dense(256, 1, 24) };
        assert_eq!(all(one, &[layer(24, 8), layer(8, 1)]), Ok(false));
        let mut narrow = [layer(24, 8), layer(8, 1)];
        narrow[1].weight.row_stride = 3;
        assert_eq!(all(input, &narrow), Ok(false));
        let column = Matrix { col_stride: 7, row_stride: 8, ..Matrix::dense(256, 9, 1) };
        let mut first = [layer(1, 8), layer(8, 8)];
        first[0].weight.row_stride = 16;
        assert_eq!(all(column, &first), Ok(true));
    }

    #[test]
    fn others_are_left_alone() {
        let chain = [layer(24, 8), layer(8, 16)];
        let input = Matrix::dense(256, 9, 24);
        for other in [
            Matrix { data: 264, ..input },
            Matrix { row_stride: 28, ..input },
            Matrix { row_stride: 16, ..input },
            Matrix { col_stride: 2, row_stride: 48, ..input },
            Matrix { row_stride: 1 << 40, ..input },
            Matrix::dense(256, 0, 24),
        ] {
            assert!(takes(other, &chain, Dtype::Bf16).unwrap_err().contains("operand"));
        }
        let mut apart = chain;
        apart[0].output = 264;
        assert!(takes(input, &apart, Dtype::Bf16).unwrap_err().contains("hidden"));
        let mut last = chain;
        last[1].output = 264;
        assert_eq!(takes(input, &last, Dtype::Bf16), Ok(false));
    }
}
