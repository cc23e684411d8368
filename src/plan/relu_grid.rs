//! How the `relu_backward` kernel (`kernels/relu_backward.cu`) covers an
//! `[rows, cols]` gradient: strips of columns, each split along the rows.

use super::div_ceil;
use super::problem::Dtype;

/// Threads of a block, side by side over columns and stacked over rows; the
/// kernel has the same numbers and `tests` hold them together.
pub const THREADS: i64 = 256;

/// Tickets a workspace holds (`launch::Workspace`), one a strip.
pub const TICKETS: i64 = 4096;

/// What the kernel must be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReluGrid {
    /// The kernel reads 16 bytes a thread; otherwise one element, any stride.
    pub vectorized: bool,
    /// Threads side by side.
    pub threads_x: u32,
    /// Blocks side by side, each over one strip of columns.
    pub strips: u32,
    /// Blocks stacked; each leaves one partial bias gradient per column.
    pub splits: u32,
    /// Rows a block covers.
    pub rows_per_split: i64,
}

impl ReluGrid {
    /// Bytes for the partial sums, fp32.
    #[must_use]
    pub fn scratch_bytes(&self, cols: i64) -> usize {
        if self.splits == 1 {
            0
        } else {
            self.splits as usize * usize::try_from(cols).unwrap_or(0) * size_of::<f32>()
        }
    }
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct ReluShape {
    /// Rows of the gradient.
    pub rows: i64,
    /// Columns of the gradient.
    pub cols: i64,
    /// Element type.
    pub dtype: Dtype,
    /// Every row of every matrix starts at a multiple of 16 bytes and has
    /// unit stride.
    pub aligned: bool,
    /// Multiprocessors of the device.
    pub multiprocessors: i64,
}

/// Blocks per multiprocessor that keep enough loads in flight to fill the
/// memory pipe (256 threads, four 16-byte loads each).
const BLOCKS_PER_MULTIPROCESSOR: i64 = 4;

/// Chooses the grid; `None` if the strips do not fit one.
#[must_use]
pub fn choose(shape: ReluShape) -> Option<ReluGrid> {
    let width = if shape.aligned { 16 / shape.dtype.size() as i64 } else { 1 };
    // 128 bytes of a row per step is what one memory transaction carries.
    let threads_x = if shape.aligned { 8 } else { 32 };
    let strip = threads_x * width;
    let strips = div_ceil(shape.cols, strip);
    // Without a ticket for each strip the splits cannot be added up.
    let splittable = strips <= TICKETS;
    let rows_per_step = THREADS / threads_x;
    let wanted = div_ceil(shape.multiprocessors * BLOCKS_PER_MULTIPROCESSOR, strips);
    let most = div_ceil(shape.rows, 4 * rows_per_step).clamp(1, 65_535);
    let splits = if splittable { wanted.clamp(1, most) } else { 1 };
    let rows_per_split = div_ceil(shape.rows, splits).max(1);
    Some(ReluGrid {
        vectorized: shape.aligned,
        threads_x: threads_x as u32,
        strips: u32::try_from(strips).ok().filter(|&s| i32::try_from(s).is_ok())?,
        // Rounding up the rows can leave the last splits without work.
        splits: u32::try_from(div_ceil(shape.rows, rows_per_split).max(1)).ok()?,
        rows_per_split,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_every_row_and_column_once() {
        for rows in [1, 2, 31, 64, 129, 1024, 65_536, 1_000_003] {
            for cols in [1, 8, 10, 256, 1000, 4096] {
                for aligned in [false, cols % 8 == 0] {
                    let grid = choose(ReluShape {
                        rows,
                        cols,
                        dtype: Dtype::Bf16,
                        aligned,
                        multiprocessors: 132,
                    })
                    .unwrap();
                    let splits = i64::from(grid.splits);
                    assert!(splits * grid.rows_per_split >= rows);
                    assert!((splits - 1) * grid.rows_per_split < rows, "an empty split");
                    let strip = i64::from(grid.threads_x) * if aligned { 8 } else { 1 };
                    assert!(i64::from(grid.strips) * strip >= cols);
                    assert!((i64::from(grid.strips) - 1) * strip < cols);
                    assert!(grid.splits <= 65_535);
                }
            }
        }
    }

    #[test]
    fn fills_the_device_when_there_is_work() {
        let grid = choose(ReluShape {
            rows: 1024,
            cols: 2048,
            dtype: Dtype::Bf16,
            aligned: true,
            multiprocessors: 132,
        })
        .unwrap();
        assert!(grid.strips * grid.splits >= 132, "{grid:?}");
        assert_eq!(grid.scratch_bytes(2048), grid.splits as usize * 2048 * 4);
    }
}
