//! Kernel parameter blocks, field for field those of `kernels/params.h`.

/// See `kernels/params.h`. Device addresses as integers: nothing on this side
/// follows them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ReluBackwardParams {
    /// `[rows, cols]`, element strides below.
    pub grad: u64,
    /// `[rows, cols]`, dense, or 0.
    pub output: u64,
    /// `[rows, cols]`, dense, or 0.
    pub masked: u64,
    /// `[cols]`, or 0.
    pub bias_grad: u64,
    /// `[splits, cols]` fp32.
    pub partial: u64,
    /// `[strips]`, zero before and after each launch.
    pub tickets: u64,
    /// Rows of the gradient.
    pub rows: i64,
    /// Columns of the gradient.
    pub cols: i64,
    /// Elements from one row of `grad` to the next.
    pub grad_row_stride: i64,
    /// Elements from one column of `grad` to the next.
    pub grad_col_stride: i64,
    /// Rows of one block.
    pub rows_per_split: i64,
}

const _: () = assert!(size_of::<ReluBackwardParams>() == 88, "params.h says 88");

#[cfg(test)]
mod tests {
    use super::ReluBackwardParams;

    /// Field order and types against the header's text: the sizes alone would
    /// not notice two swapped fields.
    #[test]
    fn fields_match_the_header() {
        let header = include_str!("../../kernels/params.h");
        let body = header.split("struct ReluBackwardParams {").nth(1).unwrap();
        let names: Vec<&str> = body
            .split("};")
            .next()
            .unwrap()
            .lines()
            .filter_map(|line| line.split(';').next().filter(|_| line.contains(';')))
            .map(|declaration| declaration.rsplit([' ', '*']).next().unwrap())
            .collect();
        let p = ReluBackwardParams {
            grad: 0,
            output: 1,
            masked: 2,
            bias_grad: 3,
            partial: 4,
            tickets: 5,
            rows: 6,
            cols: 7,
            grad_row_stride: 8,
            grad_col_stride: 9,
            rows_per_split: 10,
        };
        let printed = format!("{p:?}");
        let fields: Vec<&str> = printed
            .split(['{', ',', '}'])
            .filter_map(|part| part.split_once(':').map(|(name, _)| name.trim()))
            .collect();
        assert_eq!(names, fields);
    }
}
