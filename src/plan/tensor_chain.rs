//! How `kernels/tensor_chain.cu` does a forward pass in one launch, and where
//! that is worth it: chains whose tiles fill the device once a layer.

use std::fmt;

use super::check::Settings;
use super::format::Format;
use super::layer::{Layer, Work};
use super::operands::takes;
use super::policy::Policy;
use super::relu_grid::TICKETS;

/// Layers of one launch, `kChainLayers`.
pub const MAX_LAYERS: usize = 12;
/// Threads of a block: eight computing warps, one that fetches, two that store.
pub const THREADS: u32 = 352;
/// Blocks of a cluster, whose tiles lie below each other.
pub const PAIR: i64 = 2;
/// Rows of a map's box, and of the half of a tile that a warpgroup computes.
pub const BOX_ROWS: i64 = 64;
/// Six stages of 32 KiB and results of as much, or five and results of 64 KiB in fp32;
/// the stages' barriers, and room to begin at a multiple of 1024.
pub const SHARED_BYTES: u32 = ((7 * 32) << 10) + 6 * 16 + 1024;

const ROWS: i64 = 2 * BOX_ROWS;
/// Elements of a weight in TF32: 32 MiB.
const MOST_TF32: i64 = 8 << 20;
/// Columns of a tile; the narrower one where it would not fill half of the device.
const COLS: [i64; 2] = [128, 64];

/// A layer in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiled {
    /// Columns of the result.
    pub n: i64,
    /// Length of each sum.
    pub k: i64,
    /// Columns of a tile.
    pub cols: i64,
    /// `n / cols`, rounded up.
    pub col_tiles: i64,
}

/// One launch for all layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorChain {
    /// Rows of every result.
    pub rows: i64,
    /// Of tiles, a multiple of [`PAIR`].
    pub row_tiles: i64,
    /// From the first on.
    pub layers: Vec<Tiled>,
    /// Of the grid, whole clusters; all run at once.
    pub blocks: i64,
    /// Whether the copy engine can store the last result.
    pub by_map: bool,
}

impl TensorChain {
    /// How many numbers the kernel's `done` has.
    #[must_use]
    pub fn counts(&self) -> i64 {
        (self.layers.len() as i64 - 1) * self.row_tiles + 1
    }
}

impl fmt::Display for TensorChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, blocks, row_tiles, .. } = self;
        write!(
            f,
            "tensor_chain, {} layers in {blocks} blocks, {row_tiles} rows of tiles",
            layers.len()
        )
    }
}

/// The launch that does `work`; `at_once` blocks run at a time.
///
/// # Errors
/// Why the layers run one by one.
pub fn choose(
    settings: Settings,
    work: &Work,
    at_once: i64,
    policy: Policy,
) -> Result<TensorChain, &'static str> {
    let Work::Forward(input, layers) = work else { return Err("not a forward pass") };
    let format = Format::of(settings.dtype, settings.math)
        .ok_or("not what the tensor cores read, with sums in fp32")?;
    if layers.len() < 2 || layers.len() > MAX_LAYERS || input.rows < 1 {
        return Err("too few or too many layers");
    }
    let blocks_at_once = at_once / PAIR * PAIR;
    let by_map = takes(*input, layers, format.dtype())?;
    let rows = input.rows;
    let row_tiles = (rows + ROWS - 1) / ROWS;
    let tiled = layers.iter().map(|layer| tile(layer, row_tiles, blocks_at_once));
    let tiled: Vec<Tiled> = tiled.collect();
    let padded = (row_tiles + PAIR - 1) / PAIR * PAIR;
    let most = tiled.iter().map(|layer| layer.col_tiles * padded).max().unwrap_or(0);
    let blocks = most.min(blocks_at_once);
    let chain = TensorChain { rows, row_tiles: padded, layers: tiled, blocks, by_map };
    if blocks < PAIR || chain.counts() > TICKETS || most > i64::from(i32::MAX) {
        return Err("too large");
    }
    let hidden = &chain.layers[..layers.len() - 1];
    if policy == Policy::WhereFaster {
        if most > blocks_at_once {
            return Err("more tiles than blocks run at once");
        }
        // Three quarters of the blocks: below, cuBLASLt's smaller tiles win.
        if hidden.iter().any(|layer| 4 * layer.col_tiles * row_tiles < 3 * blocks_at_once) {
            return Err("too few tiles");
        }
        // Twice the bytes for the same work: with narrow tiles L2 does not keep up,
        // nor memory where L2 does not hold a weight.
        if format == Format::Tf32 {
            if hidden.iter().any(|layer| layer.cols < COLS[0]) {
                return Err("tiles too narrow for TF32");
            }
            if chain.layers.iter().any(|layer| layer.n * layer.k > MOST_TF32) {
                return Err("weights too large for TF32");
            }
        }
    }
    Ok(chain)
}

fn tile(layer: &Layer, row_tiles: i64, at_once: i64) -> Tiled {
    let (n, k) = (layer.weight.rows, layer.weight.cols);
    let tiles = |cols: i64| (n + cols - 1) / cols;
    let cols = if 2 * row_tiles * tiles(COLS[0]) > at_once { COLS[0] } else { COLS[1] };
    Tiled { n, k, cols, col_tiles: tiles(cols) }
}

#[cfg(test)]
mod tests {
    use super::super::check::Matrix;
    use super::super::problem::{Dtype, Math};
    use super::*;

    const SETTINGS: Settings = Settings { dtype: Dtype::Bf16, ..Settings::USUAL };

    fn forward(rows: i64, widths: &[i64]) -> Work {
        let layers = widths.windows(2).enumerate().map(|(i, pair)| Layer {
            weight: Matrix::dense(1 << 20, pair[1], pair[0]),
            bias: None,
            output: (i + 2) << 20,
            relu: true,
        });
        Work::Forward(Matrix::dense(1 << 20, rows, widths[0]), layers.collect())
    }

    fn chosen(rows: i64, widths: &[i64]) -> Result<TensorChain, &'static str> {
        choose(SETTINGS, &forward(rows, widths), 132, Policy::WhereFaster)
    }

    #[test]
    fn large_models_fill_the_device_once_a_layer() {
        for (rows, widths, cols) in [
            (512, vec![784, 2048, 2048, 2048, 2048, 1000], [64, 64]),
            (1024, vec![784, 2048, 2048, 2048, 2048, 1000], [128, 64]),
            (1024, vec![2048, 2048, 2048, 2048, 2048, 1000], [128, 64]),
            (512, vec![1024, 4096, 4096, 4096, 4096, 4096, 4096, 1000], [128, 64]),
            (1000, vec![512, 2048, 10], [128, 64]),
        ] {
            let chain = chosen(rows, &widths).unwrap();
            let (first, last) = (chain.layers[0], *chain.layers.last().unwrap());
            assert_eq!([first.cols, last.cols], cols, "{rows} {widths:?}");
            assert_eq!(chain.row_tiles % PAIR, 0);
            assert!(
                chain.row_tiles * 128 >= rows && chain.blocks <= 132 && chain.blocks % PAIR == 0
            );
            for (layer, pair) in chain.layers.iter().zip(widths.windows(2)) {
                assert_eq!((layer.k, layer.n), (pair[0], pair[1]));
                assert!(layer.col_tiles * layer.cols >= layer.n);
                assert!(layer.col_tiles * chain.row_tiles <= chain.blocks);
            }
        }
    }

    #[test]
    fn others_run_layer_by_layer() {
        let few = "too few tiles";
        assert_eq!(chosen(256, &[1024, 512, 512, 512, 512, 256]), Err(few));
        assert_eq!(chosen(1024, &[784, 2048, 512, 1000]), Err(few));
        assert!(chosen(4096, &[1024, 2048, 2048, 1000]).unwrap_err().contains("more tiles"));
        assert!(chosen(1024, &[2048, 2048]).unwrap_err().contains("layers"));
        assert!(chosen(1024, &[2048; 14]).unwrap_err().contains("layers"));
        assert!(chosen(1024, &[37, 2048, 2048]).unwrap_err().contains("operand"));
        assert!(chosen(1024, &[64, 2044, 2044]).unwrap_err().contains("operand"));
        let work = forward(1024, &[2048, 2048, 2048]);
        for settings in [
            Settings { dtype: Dtype::F32, ..SETTINGS },
            Settings { math: Math::Fp16Accumulate, dtype: Dtype::F16, ..SETTINGS },
        ] {
            assert!(choose(settings, &work, 132, Policy::Always).is_err());
        }
        let mut unaligned = forward(1024, &[2048, 2048, 2048]);
        let Work::Forward(_, layers) = &mut unaligned else { unreachable!() };
        layers[0].output += 8;
        let refused = choose(SETTINGS, &unaligned, 132, Policy::Always);
        assert!(refused.unwrap_err().contains("hidden"));
        assert!(choose(SETTINGS, &work, 1, Policy::Always).is_err());
    }

    #[test]
    fn tf32_goes_with_wide_tiles() {
        let tf32 = Settings { dtype: Dtype::F32, math: Math::Tf32, ..SETTINGS };
        let chosen =
            |rows, k, policy| choose(tf32, &forward(rows, &[k, 2048, 2048, 1000]), 132, policy);
        assert_eq!(chosen(1024, 784, Policy::WhereFaster).unwrap().layers[1].cols, 128);
        assert!(chosen(512, 784, Policy::WhereFaster).unwrap_err().contains("narrow"));
        assert!(chosen(1024, 4100, Policy::WhereFaster).unwrap_err().contains("too large"));
        assert!(chosen(512, 784, Policy::Always).is_ok());
        assert!(chosen(1024, 36, Policy::Always).is_ok(), "rows of 16 bytes");
        assert!(chosen(1024, 38, Policy::Always).is_err());
    }

    #[test]
    fn always_takes_any_size_in_turns() {
        let chain = choose(SETTINGS, &forward(5000, &[72, 2048, 10]), 132, Policy::Always).unwrap();
        assert_eq!((chain.blocks, chain.row_tiles, chain.by_map), (132, 40, false));
        let chain = choose(SETTINGS, &forward(1, &[8, 16, 24]), 132, Policy::Always).unwrap();
        assert_eq!((chain.blocks, chain.row_tiles, chain.by_map), (2, 2, true));
    }
}
