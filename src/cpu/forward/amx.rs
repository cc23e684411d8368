//! A layer's tiles on AMX: some rows of a weight are copied to tiles once and used for
//! all panels, in parts of k that the second-level cache holds.

use super::super::amx::{depths, group_bytes, GROUP, ROWS};
use super::super::tile::Sums;

/// Columns of a task at most, whole tiles.
pub const COLUMNS: usize = 4 * ROWS;

/// Tiles of one group of rows and one part of k: with [`COLUMNS`] 768 KiB.
const PART: usize = 96;

/// Parts of k that a weight's rows are copied in.
fn parts(planes: usize, k: usize) -> usize {
    (depths(k) * planes).div_ceil(PART)
}

/// Bytes of a thread's copy of a weight's rows, and of its sums between parts of k.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    left: usize,
    sums: usize,
}

impl Memory {
    /// For a layer with so many panels in a block.
    pub fn of(planes: usize, k: usize, panels: usize) -> Self {
        let parts = parts(planes, k);
        let left = COLUMNS / GROUP * group_bytes(planes, depths(k).div_ceil(parts));
        let tiles = if parts > 1 { panels * COLUMNS / ROWS } else { 1 };
        Self { left, sums: tiles * size_of::<Sums>() }
    }

    /// For both layers.
    pub fn max(self, other: Self) -> Self {
        Self { left: self.left.max(other.left), sums: self.sums.max(other.sums) }
    }

    /// Altogether.
    pub fn bytes(self) -> usize {
        self.left + self.sums
    }
}

#[cfg(target_arch = "x86_64")]
mod task;
#[cfg(target_arch = "x86_64")]
pub use task::Task;
