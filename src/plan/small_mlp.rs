//! Whether one launch (`kernels/fused_mlp.cu`) does a whole chain of layers, and
//! in which shape: clusters of blocks, each over 16 or 32 rows. What was
//! measured, won and lost is in `docs/small_mlp.md`.

use super::check::{alignment, Matrix, Settings};
use super::div_ceil;
use super::layer::Layer;
use super::problem::{Dtype, Math};

/// Layers that the kernel's parameters have room for.
pub const MAX_LAYERS: usize = 16;
/// Shared memory that a block may have on sm_90.
pub const SHARED_BYTES: u32 = 232_448;
/// Blocks of a cluster that are considered.
pub const CLUSTER_SIZES: [u32; 2] = [16, 8];

// The kernel's, in bytes (`kernels/common/mlp_ring.cuh`).
const TEAM_ROWS: i64 = 16;
const TEAM_WARPS: i64 = 8;
const PRODUCER_THREADS: u32 = 128;
const CHUNK: i64 = 64; // of K
const PACKET: i64 = 16;
const TILE: i64 = 8; // columns
const SLOT: i64 = 32 * (TEAM_WARPS * CHUNK + CHUNK);
const MAX_SLOTS: i64 = 32;
const MAX_TEAMS: i64 = 2;
const BARRIERS: i64 =
    ((MAX_LAYERS as i64 * MAX_TEAMS + 2 * MAX_SLOTS + MAX_TEAMS) * 8 + 127) / 128 * 128;
const PARTIAL_SUMS: i64 = TEAM_WARPS * TEAM_ROWS * 32 * 4;

/// How the kernel multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// bfloat16 on tensor cores.
    Bf16,
    /// binary16 on tensor cores, sums in fp32.
    F16,
    /// fp32, rounded for tensor cores.
    Tf32,
    /// fp32 throughout.
    F32,
}

impl Precision {
    /// What the caller's settings ask for.
    fn of(settings: Settings) -> Option<Self> {
        match (settings.dtype, settings.math) {
            (Dtype::Bf16, _) => Some(Self::Bf16),
            (Dtype::F16, Math::Fp16Accumulate) => None,
            (Dtype::F16, _) => Some(Self::F16),
            (Dtype::F32, Math::Tf32) => Some(Self::Tf32),
            (Dtype::F32, _) => Some(Self::F32),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Tf32 => "tf32",
            Self::F32 => "f32",
        }
    }
}

/// One function of the kernel file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// How it multiplies.
    pub precision: Precision,
    /// Groups of warps in a block, with 16 rows each: 1 or 2.
    pub teams: u8,
}

impl Variant {
    /// Every one there is.
    pub const ALL: [Self; 8] = {
        const fn of(precision: Precision, teams: u8) -> Variant {
            Variant { precision, teams }
        }
        [
            of(Precision::Bf16, 1),
            of(Precision::Bf16, 2),
            of(Precision::F16, 1),
            of(Precision::F16, 2),
            of(Precision::Tf32, 1),
            of(Precision::Tf32, 2),
            of(Precision::F32, 1),
            of(Precision::F32, 2),
        ]
    };

    /// Place in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        2 * self.precision as usize + self.teams as usize - 1
    }

    /// Rows of a cluster.
    #[must_use]
    pub const fn rows(self) -> i64 {
        self.teams as i64 * TEAM_ROWS
    }

    /// Threads of a block.
    #[must_use]
    pub const fn threads(self) -> u32 {
        self.teams as u32 * TEAM_WARPS as u32 * 32 + PRODUCER_THREADS
    }

    /// Name of the function.
    #[must_use]
    pub fn name(self) -> String {
        format!("fused_mlp_{}_r{}", self.precision.name(), self.rows())
    }
}

/// How many clusters of a variant the device runs at a time, each block with
/// [`SHARED_BYTES`]: by [`Variant::index`], then as [`CLUSTER_SIZES`].
pub type Clusters = [[u32; CLUSTER_SIZES.len()]; Variant::ALL.len()];

/// How the blocks of a cluster share a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tiling {
    /// Columns.
    pub n: i32,
    /// Length of each sum.
    pub k: i32,
    /// Elements from one row of the weight to the next.
    pub ld: i32,
    /// Every row of the weight starts at a multiple of 16 bytes.
    pub dense: bool,
    /// Of K, 64 bytes each.
    pub chunks: u16,
    /// Of 8 columns.
    pub tiles: u16,
    /// Of `1 << shift` tiles; one block computes a group at a time.
    pub groups: u16,
    /// See `groups`.
    pub shift: u16,
}

/// One launch that does a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The function.
    pub variant: Variant,
    /// Blocks of a cluster.
    pub cluster: u32,
    /// Clusters, each over the next rows.
    pub clusters: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Of the ring that brings weights and input.
    pub slots: i32,
    /// One of the two activation buffers of a team.
    pub act_bytes: i32,
    /// Rows of the input.
    pub rows: i32,
    /// Elements from one row of the input to the next.
    pub input_ld: i32,
    /// Every row of the input starts at a multiple of 16 bytes.
    pub input_dense: bool,
    /// As many as there are layers.
    pub tilings: Vec<Tiling>,
}

/// Chooses a launch for `layers` on `input`.
///
/// # Errors
/// Why layer by layer is better, or all that works.
pub fn choose(
    settings: Settings,
    input: Matrix,
    layers: &[Layer],
    clusters: &Clusters,
) -> Result<Choice, &'static str> {
    let precision = Precision::of(settings).ok_or("fp16 accumulation is allowed")?;
    if layers.len() < 2 || layers.len() > MAX_LAYERS {
        return Err("fewer than 2 layers, or more than 16");
    }
    let (_, hidden) = layers.split_last().ok_or("no layers")?;
    if hidden.iter().any(|layer| !layer.relu) {
        return Err("a hidden layer without ReLU");
    }
    let widest = layers.iter().map(|layer| layer.weight.rows).max().unwrap_or(0);
    if widest > 512 || input.cols > 1024 {
        return Err("too wide");
    }
    let size = settings.dtype.size() as i64;
    let (input_ld, input_dense) = rows_of(input, size)?;
    let mut tilings = Vec::with_capacity(layers.len());
    for layer in layers {
        let (ld, dense) = rows_of(layer.weight, size)?;
        // Both at most 1024, by the check above.
        let (n, k) = (layer.weight.rows as i32, layer.weight.cols as i32);
        tilings.push(Tiling { n, k, ld, dense, ..Tiling::default() });
    }
    let unaligned = longest_unaligned(input_dense, &tilings);
    if unaligned > 256 || (unaligned > 0 && precision == Precision::F32) {
        return Err("unaligned rows, read element by element");
    }
    if input.rows < fewest_rows(precision, unaligned > 0) {
        return Err("too few rows");
    }
    let weights: i64 = layers.iter().map(|layer| layer.weight.rows * layer.weight.cols).sum();
    let order = order(precision, widest);
    let order = if unaligned > 0 { &order[..1] } else { order };
    for &(teams, cluster, most) in order {
        let variant = Variant { precision, teams };
        let needed = div_ceil(input.rows, variant.rows());
        // One wave: a second one takes as long again.
        let fits = needed <= i64::from(at_once(clusters, variant, cluster));
        if !fits || weights > most * 1024 * layers.len() as i64 {
            continue;
        }
        tile(&mut tilings, PACKET / size, i64::from(cluster));
        let Some(memory) = layout(&tilings, variant, i64::from(cluster)) else { continue };
        return Ok(Choice {
            variant,
            cluster,
            clusters: needed as u32,
            shared_bytes: memory.shared as u32,
            slots: memory.slots as i32,
            act_bytes: memory.act as i32,
            rows: input.rows as i32,
            input_ld,
            input_dense,
            tilings,
        });
    }
    Err("more work than the clusters that run at a time do faster")
}

/// Teams of a block, blocks of a cluster and the most weights a layer may have
/// on average, in thousands, in the order in which they are faster; only where
/// that was measured to beat layer by layer.
const fn order(precision: Precision, widest: i64) -> &'static [(u8, u32, i64)] {
    const ANY: i64 = 1024; // More than `choose` admits.
    match (precision, widest > 256) {
        (Precision::Bf16 | Precision::F16 | Precision::Tf32, true) => &[(1, 16, ANY)],
        (Precision::F32, true) => &[(1, 16, 270)],
        (Precision::Bf16 | Precision::F16, false) => {
            &[(1, 16, ANY), (2, 16, ANY), (1, 8, ANY), (2, 8, 150)]
        }
        (Precision::Tf32, false) => &[(1, 16, ANY), (1, 8, ANY), (2, 8, 150)],
        (Precision::F32, false) => &[(1, 16, ANY), (2, 16, 150), (1, 8, 150), (2, 8, 100)],
    }
}

/// Length of the longest rows that are not aligned, 0 if all are.
fn longest_unaligned(input_dense: bool, tilings: &[Tiling]) -> i32 {
    let unaligned = |(i, t): (usize, &Tiling)| !t.dense || (i == 0 && !input_dense);
    let all = tilings.iter().enumerate();
    all.filter(|&it| unaligned(it)).map(|(_, t)| t.k).max().unwrap_or(0)
}

/// Rows from which one launch is faster: cuBLASLt's matrix-vector kernels are
/// hard to beat in fp32, and everywhere where rows are read by element.
const fn fewest_rows(precision: Precision, unaligned: bool) -> i64 {
    match precision {
        _ if unaligned => 17,
        Precision::F32 => 17,
        Precision::Tf32 => 8,
        Precision::Bf16 | Precision::F16 => 1,
    }
}

fn at_once(clusters: &Clusters, variant: Variant, size: u32) -> u32 {
    let place = CLUSTER_SIZES.iter().position(|&s| s == size);
    place.map_or(0, |place| clusters[variant.index()][place])
}

/// Leading dimension of a row-major matrix and whether its rows are aligned.
fn rows_of(matrix: Matrix, size: i64) -> Result<(i32, bool), &'static str> {
    let ld = matrix.row_major_ld().ok_or("a matrix is not stored row by row")?;
    let aligned = i64::from(alignment(matrix.data)) % PACKET == 0 && ld * size % PACKET == 0;
    Ok((i32::try_from(ld).map_err(|_| "a row stride exceeds 32 bits")?, aligned))
}

/// Cuts every layer; `packet` is the elements of 16 bytes.
fn tile(tilings: &mut [Tiling], packet: i64, blocks: i64) {
    let chunk = CHUNK / PACKET * packet;
    let last = tilings.len() - 1;
    for (i, layer) in tilings.iter_mut().enumerate() {
        // A hidden result is padded to whole chunks: the next layer's K.
        let unit = if i == last { TILE } else { chunk };
        let tiles = div_ceil(i64::from(layer.n), unit) * unit / TILE;
        let shift = (0..2).find(|&s| div_ceil(tiles, 1 << s) <= blocks).unwrap_or(2);
        layer.chunks = div_ceil(i64::from(layer.k), chunk) as u16;
        layer.tiles = tiles as u16;
        layer.shift = shift;
        layer.groups = div_ceil(tiles, 1 << shift) as u16;
    }
}

struct Layout {
    shared: i64,
    slots: i64,
    act: i64,
}

/// Shared memory of a block; `None` if it does not fit.
fn layout(tilings: &[Tiling], variant: Variant, blocks: i64) -> Option<Layout> {
    let act = |t: &Tiling| i64::from(t.chunks) * TEAM_ROWS * CHUNK;
    let act = tilings[1..].iter().map(act).max().unwrap_or(0);
    let fills = |(i, t): (usize, &Tiling)| {
        // The first layer's input comes through the ring too, 32 rows a slot.
        let matrices = if i == 0 { 2 } else { 1 };
        matrices * div_ceil(t.chunks.into(), TEAM_WARPS) * div_ceil(t.groups.into(), blocks)
    };
    let fills: i64 = tilings.iter().enumerate().map(fills).sum();
    let fixed = BARRIERS + i64::from(variant.teams) * (2 * act + PARTIAL_SUMS);
    let slots = ((i64::from(SHARED_BYTES) - fixed) / SLOT).min(fills).min(MAX_SLOTS);
    (slots >= fills.min(3)).then_some(Layout { shared: fixed + slots * SLOT, slots, act })
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Clusters = [[7, 15]; 8];

    fn settings(dtype: Dtype, math: Math) -> Settings {
        Settings { device: 0, dtype, math, split_k: true, deterministic: true }
    }

    fn chain(rows: i64, widths: &[i64]) -> (Matrix, Vec<Layer>) {
        let layer = |pair: &[i64]| Layer {
            weight: Matrix::dense(1 << 20, pair[1], pair[0]),
            bias: None,
            output: 0,
            relu: true,
        };
        (Matrix::dense(1 << 20, rows, widths[0]), widths.windows(2).map(layer).collect())
    }

    fn chosen(dtype: Dtype, math: Math, rows: i64, widths: &[i64]) -> Result<Choice, &'static str> {
        let (input, layers) = chain(rows, widths);
        choose(settings(dtype, math), input, &layers, &H200)
    }

    const MODES: [(Dtype, Math); 4] = [
        (Dtype::Bf16, Math::Strict),
        (Dtype::F16, Math::Strict),
        (Dtype::F32, Math::Tf32),
        (Dtype::F32, Math::Strict),
    ];
    const TINY: &[i64] = &[784, 256, 256, 10];
    const SMALL: &[i64] = &[512, 512, 512, 512, 128];
    const MEDIUM: &[i64] = &[784, 512, 512, 512, 128];

    #[test]
    fn one_launch_where_it_was_measured_to_win() {
        for (rows, widths, [bf16, f16, tf32, f32]) in [
            (64, TINY, ["bf16_r16 16", "f16_r16 16", "tf32_r16 16", "f32_r16 16"]),
            (256, TINY, ["bf16_r32 8", "f16_r32 8", "tf32_r32 8", "f32_r32 8"]),
            (128, SMALL, [""; 4]),
            (112, SMALL, ["bf16_r16 16", "f16_r16 16", "tf32_r16 16", "f32_r16 16"]),
            (256, MEDIUM, [""; 4]),
            (224, MEDIUM, [""; 4]),
            (64, &[1024, 512, 512], ["bf16_r16 16", "f16_r16 16", "tf32_r16 16", ""]),
            (128, &[1024, 512, 512], [""; 4]),
            (1, TINY, ["bf16_r16 16", "f16_r16 16", "", ""]),
            (64, &[783, 250, 250, 10], [""; 4]),
            (64, &[37, 129, 63], ["bf16_r16 16", "f16_r16 16", "tf32_r16 16", ""]),
            (16, &[37, 129, 63], [""; 4]),
            (113, &[37, 129, 63], [""; 4]),
            (128, &[512; 3], [""; 4]),
        ] {
            for ((dtype, math), want) in MODES.into_iter().zip([bf16, f16, tf32, f32]) {
                let got = chosen(dtype, math, rows, widths)
                    .map_or(String::new(), |c| format!("{} {}", c.variant.name(), c.cluster));
                assert_eq!(
                    got.trim_start_matches("fused_mlp_"),
                    want,
                    "{rows} {widths:?} {math:?}"
                );
            }
        }
    }

    #[test]
    fn every_row_and_column_is_covered_within_the_memory_there_is() {
        let shapes: [&[i64]; 6] =
            [TINY, SMALL, &[37, 129, 63], &[40, 72, 33], &[1, 1, 1], &[1024, 8, 512, 9, 512]];
        let mut seen = 0;
        for (widths, rows) in shapes.iter().flat_map(|w| [1, 16, 17, 100, 240, 480].map(|r| (w, r)))
        {
            for (dtype, math) in MODES {
                let Ok(c) = chosen(dtype, math, rows, widths) else { continue };
                seen += 1;
                assert!(i64::from(c.clusters) * c.variant.rows() >= rows);
                assert!(c.shared_bytes <= SHARED_BYTES && c.act_bytes % 128 == 0);
                assert!((2..=MAX_SLOTS).contains(&i64::from(c.slots)));
                let chunk = 64 / dtype.size() as i32;
                for (i, t) in c.tilings.iter().enumerate() {
                    assert!(i32::from(t.chunks) * chunk >= t.k && t.shift <= 2);
                    assert!(i32::from(t.tiles) * 8 >= t.n && t.groups << t.shift >= t.tiles);
                    if let Some(next) = c.tilings.get(i + 1) {
                        let padded = i32::from(next.chunks) * chunk;
                        assert_eq!(i32::from(t.tiles) * 8, padded, "what the next layer reads");
                        assert!(i32::from(next.chunks) * 16 * 64 <= c.act_bytes);
                    }
                }
            }
        }
        assert!(seen > 50, "{seen}");
    }

    /// As it was when the kernel was measured.
    #[test]
    fn shared_memory_is_laid_out() {
        let (bf16, tf32, f32) = (MODES[0], MODES[2], MODES[3]);
        for ((dtype, math), rows, widths, want) in [
            (bf16, 64, TINY, (217_984, 10, 8192)),
            (tf32, 112, SMALL, (230_272, 8, 32_768)),
            (f32, 256, TINY, (228_224, 7, 16_384)),
            (bf16, 17, &[37, 129, 63], (82_816, 3, 5120)),
        ] {
            let c = chosen(dtype, math, rows, widths).unwrap();
            assert_eq!((c.shared_bytes, c.slots, c.act_bytes), want);
        }
        let c = chosen(bf16.0, bf16.1, 64, TINY).unwrap();
        let cut = |t: &Tiling| (t.chunks, t.tiles, t.groups, t.shift);
        let got: Vec<_> = c.tilings.iter().map(cut).collect();
        assert_eq!(got, [(25, 32, 16, 1), (8, 32, 16, 1), (8, 2, 2, 0)]);
    }

    #[test]
    fn what_the_kernel_cannot_read_goes_layer_by_layer() {
        let bf16 = settings(Dtype::Bf16, Math::Strict);
        let (input, layers) = chain(64, TINY);
        let why = |input, layers: &[Layer]| choose(bf16, input, layers, &H200).unwrap_err();
        assert!(choose(bf16, input, &layers, &H200).is_ok());
        assert!(why(input.transpose().transpose(), &layers[..1]).contains("fewer"));
        let mut far = input;
        far.row_stride = 1 << 40;
        assert!(why(far, &layers).contains("32 bits"));
        let mut turned = layers.clone();
        turned[1].weight = turned[1].weight.transpose();
        assert!(why(input, &turned).contains("row by row"));
        let mut linear = layers.clone();
        linear[0].relu = false;
        assert!(why(input, &linear).contains("without ReLU"));
        assert!(choose(settings(Dtype::F16, Math::Fp16Accumulate), input, &layers, &H200).is_err());
        assert!(choose(bf16, input, &layers, &Clusters::default()).is_err(), "no clusters");
        assert!(chosen(Dtype::Bf16, Math::Strict, 64, &[8; 18]).is_err(), "17 layers");
        assert!(chosen(Dtype::Bf16, Math::Strict, 64, &[8, 513, 8]).is_err());
        assert!(chosen(Dtype::Bf16, Math::Strict, 64, &[1025, 8, 8]).is_err());
    }

    #[test]
    fn unaligned_rows_are_named() {
        let (mut input, layers) = chain(64, &[37, 129, 64]);
        let c = choose(settings(Dtype::F32, Math::Tf32), input, &layers, &H200).unwrap();
        assert_eq!((c.input_dense, c.tilings[0].dense), (false, false), "37 numbers a row");
        let (_, layers) = chain(64, &[40, 129, 64]);
        input = Matrix { data: (1 << 20) + 4, rows: 64, cols: 40, row_stride: 48, col_stride: 1 };
        let c = choose(settings(Dtype::F32, Math::Tf32), input, &layers, &H200).unwrap();
        assert_eq!((c.input_dense, c.input_ld, c.tilings[0].dense), (false, 48, true));
    }

    #[test]
    fn variants_are_numbered_in_order() {
        for (i, variant) in Variant::ALL.into_iter().enumerate() {
            assert_eq!(variant.index(), i);
        }
    }
}
