//! How `kernels/fp32_gemm.cu` covers a product, and what that takes.

use super::super::div_ceil;

/// Columns of a tile; the kernels' names.
pub const COLS: [i64; 3] = [128, 64, 32];
/// Rows of a tile.
pub const ROWS: i64 = 128;
/// k of a chunk: what is fetched at a time.
pub const DEPTH: i64 = 32;
/// Threads of a block.
pub const THREADS: u32 = 384;

/// A chosen way to cover `d [m, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Index into [`COLS`].
    pub shape: usize,
    /// Blocks of a cluster: 2 where there are two tiles of rows, [`Self::parts`] where
    /// that is more than 1.
    pub blocks: i64,
    /// Parts of k that the blocks of a cluster sum, for one tile.
    pub parts: i64,
    /// Tiles of rows, rounded up to whole clusters.
    pub row_tiles: i64,
    /// Tiles of columns.
    pub col_tiles: i64,
    /// Parts of k that are summed apart.
    pub splits: i64,
    /// Clusters that are launched.
    pub clusters: i64,
}

/// µs on an H100 at 1.7 GHz, with the kernels of 2026-11-26: a chunk for each of
/// [`COLS`]; what each launch takes besides; what adding up splits takes, besides
/// the traffic of their sums, at so many bytes a µs.
const CHUNK_US: [f64; 3] = [1.08, 0.70, 0.53];
const LAUNCH_US: f64 = 3.2;
const REDUCE_US: f64 = 1.0;
/// The same where the parts are those of a cluster.
const MEET_US: f64 = 0.5;
const REDUCE_BYTES: f64 = 2.5e6;

/// Longer sums are split, into parts of half of this: the rounding of one
/// accumulator would grow past SGEMM's, which splits them too.
const LONGEST: i64 = 4096;
/// Chunks that a split has at least, where it is for speed.
const FEWEST_CHUNKS: i64 = 4;
/// Splits of one product at most; each costs memory and traffic.
const MOST_SPLITS: i64 = 64;

/// Shapes and the parts of k that there are kernels for.
const PARTS: [(usize, i64); 3] = [(1, 8), (1, 4), (2, 4)];

/// Bytes of a workspace's tickets are for so many halves of tiles.
const TICKETS: i64 = super::super::relu_grid::TICKETS;

/// Rounded up to whole tiles.
#[must_use]
pub const fn padded(n: i64) -> i64 {
    div_ceil(n, ROWS) * ROWS
}

/// Bytes of the image of `[k, n]` (`kernels/common/split.cuh`), k padded too.
#[must_use]
pub fn image_bytes(k: i64, n: i64) -> usize {
    const COLUMN_BYTES: i64 = 3 * 4 * 16;
    usize::try_from(padded(k) / DEPTH * padded(n) * COLUMN_BYTES).unwrap_or(usize::MAX)
}

impl Tiling {
    fn new(shape: usize, m: i64, n: i64, splits: i64, multiprocessors: i64) -> Self {
        let rows = div_ceil(m, ROWS);
        let blocks = if rows > 1 { 2 } else { 1 };
        let row_tiles = div_ceil(rows, blocks) * blocks;
        let col_tiles = div_ceil(n, COLS[shape]);
        let units = row_tiles / blocks * col_tiles * splits;
        let clusters = units.min((multiprocessors / blocks).max(1));
        Self { shape, blocks, parts: 1, row_tiles, col_tiles, splits, clusters }
    }

    /// With parts of k in a cluster, one tile each.
    fn in_parts(shape: usize, parts: i64, m: i64, n: i64) -> Self {
        let (row_tiles, col_tiles) = (div_ceil(m, ROWS), div_ceil(n, COLS[shape]));
        let clusters = row_tiles * col_tiles;
        Self { shape, blocks: parts, parts, row_tiles, col_tiles, splits: 1, clusters }
    }

    fn units(&self) -> i64 {
        let sharing = if self.parts > 1 { 1 } else { self.blocks };
        self.row_tiles / sharing * self.col_tiles * self.splits
    }

    /// Bytes for the sums of splits.
    #[must_use]
    pub fn partial_bytes(&self) -> usize {
        if self.splits == 1 {
            return 0;
        }
        let sums = self.row_tiles * self.col_tiles * self.splits * ROWS * COLS[self.shape];
        usize::try_from(sums).unwrap_or(usize::MAX) * size_of::<f32>()
    }

    /// The one predicted to be fastest.
    #[must_use]
    pub fn choose(m: i64, n: i64, k: i64, multiprocessors: i64) -> Self {
        let chunks = div_ceil(k, DEPTH);
        let needed = if k <= LONGEST { 1 } else { div_ceil(k, LONGEST / 2).min(MOST_SPLITS) };
        let most = (chunks / FEWEST_CHUNKS).clamp(needed, MOST_SPLITS);
        let splits = move || std::iter::successors(Some(needed), move |s| Some(s * 2));
        let candidates = (0..COLS.len()).flat_map(|shape| {
            let splits = splits().take_while(move |&splits| splits <= most);
            splits.map(move |splits| Self::new(shape, m, n, splits, multiprocessors))
        });
        let fits = |t: &Self| t.splits == 1 || 2 * t.row_tiles * t.col_tiles <= TICKETS;
        // All at once, for a cluster does one tile. Some multiprocessors are in no
        // whole cluster; a tenth is more than were seen.
        let room = multiprocessors * 9 / 10;
        let together =
            |t: &Self| t.clusters * t.blocks <= room && t.parts <= chunks && k <= LONGEST;
        let parts = PARTS.iter().map(|&(shape, parts)| Self::in_parts(shape, parts, m, n));
        candidates
            .filter(fits)
            .chain(parts.filter(together))
            .min_by(|a, b| gemm_us(a, k).total_cmp(&gemm_us(b, k)))
            .unwrap_or_else(|| Self::new(0, m, n, 1, multiprocessors))
    }
}

/// Predicted µs of a product of that tiling.
#[must_use]
pub fn gemm_us(tiling: &Tiling, k: i64) -> f64 {
    let waves = div_ceil(tiling.units(), tiling.clusters);
    let chunks = div_ceil(div_ceil(k, DEPTH), tiling.splits * tiling.parts);
    let reduce = if tiling.parts > 1 {
        MEET_US
    } else if tiling.splits == 1 {
        0.0
    } else {
        // Written and read.
        REDUCE_US + 2.0 * tiling.partial_bytes() as f64 / REDUCE_BYTES
    };
    LAUNCH_US + (waves * chunks) as f64 * CHUNK_US[tiling.shape] + reduce
}

/// µs of packing `[k, n]`: 4 bytes read and 6 written of each value.
#[must_use]
pub fn pack_us(k: i64, n: i64) -> f64 {
    1.5 + 10.0 * (k * n) as f64 / 2.6e6
}

/// µs of masking a gradient: our kernel, which writes two images, and the one
/// that feeds SGEMM.
#[must_use]
pub fn relu_us(rows: i64, cols: i64) -> (f64, f64) {
    let values = (rows * cols) as f64;
    (3.0 + 20.0 * values / 2.8e6, 2.5 + 12.0 * values / 2.8e6)
}

/// µs of SGEMM: 47 TFLOP/s where tiles of 128 x 128 fill the device. The cube
/// root is fitted to H100 figures for 8 to 128 tiles (docs/performance.md).
#[must_use]
pub fn library_us(m: i64, n: i64, k: i64) -> f64 {
    let tiles = div_ceil(m, 128) * div_ceil(n, 128);
    let idle = (128.0 / tiles as f64).max(1.0).cbrt();
    2.5 + 2.0 * (m * n) as f64 * k as f64 / 47e6 * idle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_and_chunk_is_somebodys() {
        for m in [1, 128, 129, 1000, 4096] {
            for n in [1, 33, 512, 1024] {
                for k in [1, 32, 784, 2048, 65_536, 1 << 22] {
                    let t = Tiling::choose(m, n, k, 132);
                    let sharing = if t.parts > 1 { 1 } else { t.blocks };
                    assert!(t.row_tiles * ROWS >= m && t.row_tiles % sharing == 0);
                    assert!((t.row_tiles - sharing) * ROWS < m, "an empty cluster");
                    assert!(t.col_tiles * COLS[t.shape] >= n);
                    assert!(t.splits * t.parts <= div_ceil(k, DEPTH), "a split without k");
                    assert!(t.clusters * t.blocks <= 132 && t.clusters <= t.units());
                    assert!(t.parts == 1 || (t.splits == 1 && t.clusters == t.units()));
                    assert!(t.splits == 1 || 2 * t.row_tiles * t.col_tiles <= TICKETS);
                }
            }
        }
    }

    #[test]
    fn long_sums_are_split() {
        for (k, least) in [(4096, 1), (4100, 3), (65_536, 32)] {
            assert!(Tiling::choose(4096, 4096, k, 132).splits >= least, "{k}");
        }
    }

    #[test]
    fn few_tiles_are_split_too() {
        // Half of the device, then a quarter: measured 48 and 51 us against 74
        // and 139 unsplit.
        let half = Tiling::choose(1000, 1024, 2048, 132);
        assert!(half.splits > 1 || COLS[half.shape] < 128, "{half:?}");
        let quarter = Tiling::choose(1000, 512, 4096, 132);
        assert!(quarter.units() * quarter.blocks > 64, "{quarter:?}");
        for (m, n, k) in [(2048, 1024, 2048), (4096, 4096, 4096)] {
            let whole = Tiling::choose(m, n, k, 132);
            assert_eq!((whole.splits, COLS[whole.shape]), (1, 128), "{m} {n} {k}");
        }
    }

    #[test]
    fn sizes_of_scratch_memory() {
        assert_eq!(image_bytes(2048, 1024), 2048 * 1024 * 6);
        assert_eq!(image_bytes(1, 1), 128 * 128 * 6);
        let t = Tiling::new(0, 256, 128, 2, 132);
        assert_eq!(t.partial_bytes(), 2 * 256 * 128 * 4);
        assert_eq!(Tiling::new(0, 256, 128, 1, 132).partial_bytes(), 0);
    }
}
