//! The kernels that do a forward pass by clusters: how they multiply, and their sizes.

use super::check::Settings;
use super::format::Format;
use super::problem::Dtype;

/// Blocks of a cluster: for layers of up to 256 columns, and for wider ones.
pub const CLUSTER_SIZES: usize = 2;
/// The most kernels of a kind, one for each number of rows of a cluster.
pub const KERNELS: usize = 4;

/// How the kernel multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What the tensor cores read as it is (`kernels/cluster_mlp.cu`).
    Tensor(Format),
    /// Strict fp32, each as three bf16 (`kernels/cluster_fp32.cu`).
    Fp32,
}

impl Kind {
    /// In the order of [`Self::index`].
    pub const ALL: [Self; 4] = [
        Self::Tensor(Format::F16),
        Self::Tensor(Format::Bf16),
        Self::Tensor(Format::Tf32),
        Self::Fp32,
    ];

    /// What the settings ask for; `None` for sums in fp16.
    #[must_use]
    pub fn of(settings: Settings) -> Option<Self> {
        if settings.is_strict_fp32() {
            return Some(Self::Fp32);
        }
        Format::of(settings.dtype, settings.math).map(Self::Tensor)
    }

    /// Place in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Tensor(format) => format as usize,
            Self::Fp32 => 3,
        }
    }

    /// For messages.
    #[must_use]
    pub const fn mode(self) -> &'static str {
        match self {
            Self::Tensor(format) => format.name(),
            Self::Fp32 => "fp32",
        }
    }

    /// Of the elements.
    #[must_use]
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::Tensor(format) => format.dtype(),
            Self::Fp32 => Dtype::F32,
        }
    }

    /// Rows of a cluster, one kernel each.
    #[must_use]
    pub const fn rows(self) -> &'static [i64] {
        match self {
            Self::Tensor(_) => &[8, 16, 32],
            Self::Fp32 => &[8, 16, 24, 40],
        }
    }

    /// Columns of a tile.
    #[must_use]
    pub const fn cols(self) -> i64 {
        match self {
            Self::Tensor(_) => 64,
            Self::Fp32 => 32,
        }
    }

    /// Blocks of a cluster: a tile each of 256 columns, or of 512.
    #[must_use]
    pub const fn cluster_sizes(self) -> [i64; CLUSTER_SIZES] {
        [256 / self.cols(), 512 / self.cols()]
    }

    /// So many blocks are always worth having: with more, L2 gives each less of the
    /// weights. Strict fp32 waits for its splitting instead.
    #[must_use]
    pub const fn enough_blocks(self) -> i64 {
        match self {
            Self::Tensor(_) => 64,
            Self::Fp32 => i64::MAX,
        }
    }

    /// Of a block: warps that compute, four or eight, one that fetches, one that sends.
    #[must_use]
    pub const fn threads(self) -> u32 {
        match self {
            Self::Tensor(_) => 192,
            Self::Fp32 => 320,
        }
    }

    /// Name of a kernel.
    #[must_use]
    pub fn name(self, kernel: usize) -> String {
        let rows = self.rows()[kernel];
        match self {
            Self::Tensor(format) => format!("cluster_mlp_{}_{rows}", format.name()),
            Self::Fp32 => format!("cluster_fp32_{rows}"),
        }
    }

    /// Shared memory for sums of four warps that others add to.
    #[must_use]
    pub const fn sums_bytes(self, rows: i64) -> i64 {
        match self {
            Self::Tensor(_) => 0,
            Self::Fp32 => 4 * rows * self.cols() * 4,
        }
    }
}
