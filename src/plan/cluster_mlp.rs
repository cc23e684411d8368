//! How `kernels/cluster_mlp.cu`, in strict fp32 `cluster_fp32.cu`, does a forward pass
//! in one launch, and where that is worth it: chains of small layers on few rows. What
//! was measured is in `docs/small_mlp.md`.

use std::fmt;

use super::check::{Matrix, Settings};
use super::cluster_kind::{Kind, CLUSTER_SIZES, KERNELS};
use super::div_ceil;
use super::format::Format;
use super::layer::{Layer, Work};
use super::operands::takes;
use super::policy::Policy;
use super::small_mlp::SHARED_BYTES;
use super::tensor_chain::MAX_LAYERS;

// The kernels', in bytes.
const CHUNK: i64 = 128; // of k
const BARRIERS: i64 = 1024;
const ALIGNMENT: i64 = 1024;
const STAGE_CHUNKS: i64 = 2;
const STAGES: std::ops::RangeInclusive<i64> = 4..=12;

/// Scratch memory for hidden results begins at multiples of it.
const SCRATCH_ALIGNMENT: i64 = 256;

/// How many clusters run at a time: by [`Kind::index`], [`Kind::rows`], then
/// [`Kind::cluster_sizes`].
pub type Clusters = [[[i64; CLUSTER_SIZES]; KERNELS]; Kind::ALL.len()];

/// A layer in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiled {
    /// Columns of the result.
    pub n: i64,
    /// Length of each sum.
    pub k: i64,
    /// Of k, 128 bytes each.
    pub chunks: i64,
    /// Of [`Kind::cols`] columns.
    pub tiles: i64,
    /// Where the result goes in scratch memory if it has no other place.
    pub scratch: i64,
}

/// One launch for all layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMlp {
    /// How it multiplies.
    pub kind: Kind,
    /// Rows of every result.
    pub rows: i64,
    /// Rows of a cluster, as an index of [`Kind::rows`].
    pub kernel: usize,
    /// Blocks of a cluster.
    pub cluster: i64,
    /// Clusters, each over the next rows.
    pub clusters: i64,
    /// From the first on.
    pub layers: Vec<Tiled>,
    /// Whether the copy engine can store the last result.
    pub by_map: bool,
    /// How shared memory is used.
    pub memory: Memory,
    /// Scratch memory for hidden results without a place.
    pub scratch_bytes: i64,
}

/// Shared memory of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Stages of the ring of weights.
    pub stages: i64,
    /// Bytes of the inputs of layers 0, 2, ...
    pub even: i64,
    /// Bytes of the inputs of layers 1, 3, ...
    pub odd: i64,
    /// Of 128 bytes of k, in `even`, through which the input goes round.
    pub even_blocks: i64,
    /// All of it.
    pub bytes: i64,
}

impl fmt::Display for ClusterMlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, kernel, cluster, clusters, layers, memory, .. } = self;
        let (name, layers, stages) = (kind.name(*kernel), layers.len(), memory.stages);
        write!(f, "{name}, {layers} layers in {clusters} clusters of {cluster}, {stages} stages")
    }
}

/// The launch that does `work`, which need not have memory for hidden results.
///
/// # Errors
/// Why another way is better, or all that works.
pub fn choose(
    settings: Settings,
    work: &Work,
    at_once: &Clusters,
    policy: Policy,
) -> Result<ClusterMlp, &'static str> {
    let Work::Forward(input, layers) = work else { return Err("not a forward pass") };
    let kind = Kind::of(settings).ok_or("sums in fp16")?;
    if layers.len() < 2 || layers.len() > MAX_LAYERS || input.rows < 1 {
        return Err("too few or too many layers");
    }
    let by_map = takes(*input, layers, kind.dtype())?;
    if policy == Policy::WhereFaster {
        if too_wide(kind, *input, layers) {
            return Err("too wide for clusters");
        }
        if for_matrix_vector_kernels(kind, *input, layers) {
            return Err("few rows, for matrix-vector kernels");
        }
    }
    let size = kind.dtype().size() as i64;
    let mut scratch_bytes = 0;
    let tiled = layers.iter().enumerate().map(|(index, layer)| {
        let (n, k) = (layer.weight.rows, layer.weight.cols);
        let scratch = scratch_bytes;
        if index + 1 < layers.len() && layer.output == 0 {
            let bytes = n * input.rows * size;
            scratch_bytes += div_ceil(bytes, SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT;
        }
        Tiled { n, k, chunks: div_ceil(k * size, CHUNK), tiles: div_ceil(n, kind.cols()), scratch }
    });
    let tiled: Vec<Tiled> = tiled.collect();
    let place = usize::from(widest(layers) > 256);
    let cluster = kind.cluster_sizes()[place];
    let fits = |kernel: &usize, blocks: i64| {
        let clusters = div_ceil(input.rows, kind.rows()[*kernel]);
        clusters <= at_once[kind.index()][*kernel][place] && clusters * cluster <= blocks
    };
    let kernels = || 0..kind.rows().len();
    let kernel = kernels()
        .find(|kernel| fits(kernel, kind.enough_blocks()))
        .or_else(|| kernels().find(|kernel| fits(kernel, i64::MAX)))
        .ok_or("more rows than the clusters that run at a time have")?;
    let rows = input.rows;
    let clusters = div_ceil(rows, kind.rows()[kernel]);
    let memory = layout(kind, &tiled, kernel, cluster).ok_or("too wide for clusters")?;
    let layers = tiled;
    Ok(ClusterMlp { kind, rows, kernel, cluster, clusters, layers, by_map, memory, scratch_bytes })
}

/// Whether its layers are faster one by one: each cluster fetches all weights. Strict
/// fp32, which multiplies for longer, has more to gain.
fn too_wide(kind: Kind, input: Matrix, layers: &[Layer]) -> bool {
    let widest = widest(layers);
    match kind {
        Kind::Tensor(_) => widest > 512 || input.cols > 1024,
        Kind::Fp32 => {
            let large = weights(layers) > layers.len() as i64 * (640 << 10);
            widest > 1024
                || input.cols > 2048
                || (widest > 512 && (input.rows < 16 || large))
                || (input.cols > 1024 && input.rows < 8)
        }
    }
}

fn widest(layers: &[Layer]) -> i64 {
    layers.iter().map(|layer| layer.weight.rows).max().unwrap_or(0)
}

fn weights(layers: &[Layer]) -> i64 {
    layers.iter().map(|layer| layer.weight.rows * layer.weight.cols).sum()
}

/// Whether matrix-vector kernels are faster on one row, or a few: there the weights come
/// to all multiprocessors, here to one cluster, in fp32 twice as many bytes.
fn for_matrix_vector_kernels(kind: Kind, input: Matrix, layers: &[Layer]) -> bool {
    let weights = weights(layers);
    let (rows, deep) = (input.rows, layers.len() > 2);
    match kind {
        Kind::Tensor(Format::Tf32) => {
            rows == 1 && (input.cols > 784 || (!deep && weights > 64 << 10))
        }
        Kind::Tensor(_) => false,
        Kind::Fp32 => (rows == 1 || (rows < 8 && !deep)) && weights > (layers.len() as i64) << 16,
    }
}

/// `None` if it does not fit.
fn layout(kind: Kind, layers: &[Tiled], kernel: usize, cluster: i64) -> Option<Memory> {
    let rows = kind.rows()[kernel];
    let block = rows * CHUNK;
    let result = rows * kind.cols() * kind.dtype().size() as i64;
    let stage = STAGE_CHUNKS * kind.cols() * CHUNK;
    let received = |layer: usize| layers[layer - 1].tiles * result;
    let largest = |first: usize| (first..layers.len()).step_by(2).map(received).max().unwrap_or(0);
    // What the busiest block takes, in stages; and of that the first layer.
    let taken =
        |layer: &Tiled| div_ceil(layer.chunks, STAGE_CHUNKS) * div_ceil(layer.tiles, cluster);
    let (all, first): (i64, i64) = (layers.iter().map(taken).sum(), taken(&layers[0]));
    let (odd, least) = (largest(1), all.min(*STAGES.start()));
    (least..=all.min(*STAGES.end())).rev().find_map(|stages| {
        let ring = STAGE_CHUNKS * stages.min(first) * block;
        let even = largest(2).max(ring);
        let even = div_ceil(even, STAGE_CHUNKS * block) * STAGE_CHUNKS * block;
        let fixed = ALIGNMENT + BARRIERS + result + kind.sums_bytes(rows);
        let bytes = fixed + even + odd + stages * stage;
        let even_blocks = even / block;
        (bytes <= i64::from(SHARED_BYTES)).then_some(Memory {
            stages,
            even,
            odd,
            even_blocks,
            bytes,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::problem::{Dtype, Math};
    use super::*;

    const H100: Clusters = [[[30, 15]; 4], [[30, 15]; 4], [[30, 15]; 4], [[15, 7]; 4]];

    const BF16: Settings = Settings {
        device: 0,
        dtype: Dtype::Bf16,
        math: Math::Strict,
        split_k: true,
        deterministic: true,
    };
    const TF32: Settings = Settings { dtype: Dtype::F32, math: Math::Tf32, ..BF16 };
    const FP32: Settings = Settings { dtype: Dtype::F32, ..BF16 };

    fn forward(rows: i64, widths: &[i64]) -> Work {
        let layers = widths.windows(2).map(|pair| Layer {
            weight: Matrix::dense(1 << 20, pair[1], pair[0]),
            bias: None,
            output: 0,
            relu: true,
        });
        Work::Forward(Matrix::dense(1 << 20, rows, widths[0]), layers.collect())
    }

    fn chosen(settings: Settings, rows: i64, widths: &[i64]) -> Result<ClusterMlp, &'static str> {
        choose(settings, &forward(rows, widths), &H100, Policy::WhereFaster)
    }

    /// Rows of a cluster, its blocks, and how many there are.
    fn clusters(settings: Settings, rows: i64, widths: &[i64]) -> (i64, i64, i64) {
        let c = chosen(settings, rows, widths).unwrap();
        (c.kind.rows()[c.kernel], c.cluster, c.clusters)
    }

    const TINY: &[i64] = &[784, 256, 256, 10];
    const SMALL: &[i64] = &[512, 512, 512, 512, 128];
    const MEDIUM: &[i64] = &[1024, 512, 512, 512, 512, 256];

    #[test]
    fn few_rows_go_to_few_small_clusters() {
        for (rows, widths, want) in [
            (1, TINY, (8, 4, 1)),
            (64, TINY, (8, 4, 8)),
            (256, TINY, (16, 4, 16)),
            (512, TINY, (32, 4, 16)),
            (960, TINY, (32, 4, 30)),
            (200, TINY, (16, 4, 13)),
            (64, SMALL, (8, 8, 8)),
            (100, SMALL, (16, 8, 7)),
            (128, SMALL, (16, 8, 8)),
            (256, MEDIUM, (32, 8, 8)),
            (480, MEDIUM, (32, 8, 15)),
        ] {
            for settings in [BF16, TF32] {
                assert_eq!(clusters(settings, rows, widths), want, "{rows} {widths:?}");
            }
        }
        for (rows, widths) in [(961, TINY), (481, MEDIUM)] {
            assert!(chosen(BF16, rows, widths).unwrap_err().contains("rows"));
        }
    }

    #[test]
    fn strict_fp32_takes_the_fewest_rows_that_run_at_once() {
        for (rows, widths, want) in [
            (2, TINY, (8, 8, 1)),
            (64, TINY, (8, 8, 8)),
            (120, TINY, (8, 8, 15)),
            (121, TINY, (16, 8, 8)),
            (256, TINY, (24, 8, 11)),
            (600, TINY, (40, 8, 15)),
            (128, SMALL, (24, 16, 6)),
            (256, MEDIUM, (40, 16, 7)),
            (280, MEDIUM, (40, 16, 7)),
        ] {
            assert_eq!(clusters(FP32, rows, widths), want, "{rows} {widths:?}");
        }
        for (rows, widths) in [(601, TINY), (281, MEDIUM)] {
            assert!(chosen(FP32, rows, widths).unwrap_err().contains("rows"));
        }
    }

    #[test]
    fn shared_memory_holds_what_the_kernel_puts_there() {
        let shapes: [&[i64]; 6] =
            [TINY, SMALL, MEDIUM, &[8, 8, 8], &[1024, 8, 512, 24, 512], &[32, 512, 512]];
        for (settings, widths, rows) in [BF16, TF32, FP32]
            .into_iter()
            .flat_map(|s| shapes.map(|w| (s, w)))
            .flat_map(|(s, w)| [1, 9, 100, 256, 480].map(|r| (s, w, r)))
        {
            let Ok(c) = chosen(settings, rows, widths) else { continue };
            let (size, kernel_rows) = (settings.dtype.size() as i64, c.kind.rows()[c.kernel]);
            let (cols, stage) = (c.kind.cols(), 2 * 128 * c.kind.cols());
            assert!(c.clusters * kernel_rows >= rows);
            let Memory { stages, even, odd, even_blocks, bytes } = c.memory;
            let mut all = 0;
            for (i, layer) in c.layers.iter().enumerate() {
                assert!(layer.tiles * cols >= layer.n && layer.chunks * 128 >= layer.k * size);
                let stages_of =
                    (layer.chunks + 1) / 2 * ((layer.tiles + c.cluster - 1) / c.cluster);
                all += stages_of;
                let room = if i % 2 == 0 { even } else { odd };
                if i == 0 {
                    // The input's ring holds all of it, or two chunks a stage.
                    assert!(even_blocks >= 2 * stages.min(stages_of) && even_blocks % 2 == 0);
                    assert!(even_blocks * kernel_rows * 128 <= even);
                } else {
                    let sent = c.layers[i - 1].tiles * cols * size * kernel_rows;
                    assert!(sent <= room && layer.chunks * 128 * kernel_rows <= room);
                }
            }
            assert!(stages >= all.min(4) && stages <= 12 && even % 1024 == 0 && odd % 1024 == 0);
            assert!(bytes <= i64::from(SHARED_BYTES));
            let sums = if settings == FP32 { 4 * cols * kernel_rows * 4 } else { 0 };
            let result = kernel_rows * cols * size;
            assert!(bytes >= 2048 + result + even + odd + stages * stage + sums);
        }
        assert_eq!(chosen(BF16, 256, MEDIUM).unwrap().memory.stages, 7);
        assert_eq!(chosen(TF32, 256, MEDIUM).unwrap().memory.stages, 5);
        assert_eq!(chosen(FP32, 256, MEDIUM).unwrap().memory.stages, 5);
        assert_eq!(chosen(BF16, 1, &[8, 8, 8]).unwrap().memory.stages, 2, "no more than there are");
    }

    #[test]
    fn hidden_results_without_a_place_get_one() {
        let c = chosen(BF16, 100, TINY).unwrap();
        let places: Vec<_> = c.layers.iter().map(|layer| layer.scratch).collect();
        assert_eq!(places[..2], [0, 51_200]);
        assert_eq!(c.scratch_bytes, 2 * 51_200);
        let mut work = forward(100, TINY);
        let Work::Forward(_, layers) = &mut work else { unreachable!() };
        for layer in layers.iter_mut() {
            layer.output = 1 << 20;
        }
        let c = choose(BF16, &work, &H100, Policy::WhereFaster).unwrap();
        assert_eq!(c.scratch_bytes, 0);
        let Work::Forward(_, layers) = &mut work else { unreachable!() };
        layers[0].output += 8;
        assert!(choose(BF16, &work, &H100, Policy::Always).unwrap_err().contains("hidden"));
    }

    #[test]
    fn few_rows_of_fp32_where_that_is_faster() {
        let why = |rows, widths: &[i64]| chosen(TF32, rows, widths).err();
        let one = Some("few rows, for matrix-vector kernels");
        assert_eq!([why(1, TINY), why(1, SMALL), why(1, &[40, 128, 64])], [None; 3]);
        assert_eq!([why(1, MEDIUM), why(1, &[512; 3]), why(1, &[1024, 256, 16])], [one; 3]);
        assert_eq!([why(2, MEDIUM), why(2, &[512; 3])], [None; 2]);
        assert!(chosen(BF16, 1, MEDIUM).is_ok());
        let why = |rows, widths: &[i64]| chosen(FP32, rows, widths).err();
        assert_eq!([why(1, TINY), why(1, SMALL), why(1, MEDIUM), why(7, &[512; 3])], [one; 4]);
        assert_eq!([why(2, TINY), why(8, &[512; 3]), why(2, SMALL)], [None; 3]);
        assert_eq!([why(1, &[64, 64, 16]), why(1, &[256; 9]), why(7, &[256; 3])], [None; 3]);
    }

    #[test]
    fn wide_layers_of_strict_fp32_where_that_is_faster() {
        let wide = Some("too wide for clusters");
        let why = |rows, widths: &[i64]| chosen(FP32, rows, widths).err();
        for widths in [&[784, 1024, 1024, 16][..], &[512, 768, 512], &[784, 640, 640, 10]] {
            assert_eq!([why(15, widths), why(16, widths)], [wide, None], "{widths:?}");
            assert_eq!(chosen(BF16, 64, widths).err(), wide);
        }
        assert_eq!([why(40, &[1024; 3]), why(40, &[1024; 4])], [wide; 2], "too large");
        assert_eq!([why(40, &[768, 816, 816]), why(40, &[784, 848, 848])], [None, wide]);
        assert_eq!([why(64, &[64, 1032, 64]), why(64, &[2056, 64, 64])], [wide; 2]);
        assert_eq!([why(7, &[2048, 256, 256, 16]), why(8, &[2048, 256, 256, 16])], [wide, None]);
        assert!(why(280, &[2048, 512, 512]).is_none());
        assert_eq!(chosen(TF32, 64, &[1032, 64, 64]).err(), wide);
    }

    #[test]
    fn others_go_another_way() {
        let fp16_sums = Settings { dtype: Dtype::F16, math: Math::Fp16Accumulate, ..BF16 };
        assert!(chosen(fp16_sums, 64, TINY).unwrap_err().contains("fp16"));
        assert!(chosen(BF16, 64, &[784, 256]).unwrap_err().contains("layers"));
        assert!(chosen(BF16, 64, &[64; 14]).unwrap_err().contains("layers"));
        assert!(chosen(BF16, 64, &[783, 256, 256]).unwrap_err().contains("operand"));
        assert!(chosen(BF16, 64, &[784, 250, 256]).unwrap_err().contains("operand"));
        assert!(!chosen(BF16, 64, &[784, 256, 250]).unwrap().by_map);
        assert!(chosen(BF16, 64, &[784, 520, 256]).unwrap_err().contains("wide"));
        let always =
            |rows, widths: &[i64]| choose(BF16, &forward(rows, widths), &H100, Policy::Always);
        assert!(always(64, &[784, 520, 256]).is_ok());
        assert!(always(200, &[264, 4096, 4096, 63]).unwrap_err().contains("wide"));
        let none = Clusters::default();
        let refused = choose(BF16, &forward(1, TINY), &none, Policy::Always);
        assert!(refused.unwrap_err().contains("rows"));
    }
}
