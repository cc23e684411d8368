//! A layer's tiles on AMX: some rows of a weight are copied to tiles once and used for
//! all panels, in parts of k that the second-level cache holds.

use super::super::amx::{depths, group_bytes, GROUP, ROWS};
use super::super::tile::Sums;

/// Columns of a task at most, whole tiles: a panel, from the last-level cache, is read once
/// for all of them (2048 x 2048 in bfloat16: twice as many are 1.1 times as fast).
#[must_use]
pub const fn most_columns(planes: usize) -> usize {
    match planes {
        1 => 8 * ROWS,
        _ => 4 * ROWS,
    }
}

/// Parts of k that a weight's rows are copied in: at most 1 MiB and 768 KiB.
fn parts(planes: usize, k: usize) -> usize {
    (depths(k) * planes).div_ceil(if planes == 1 { 64 } else { 96 })
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
        let left = most_columns(planes) / GROUP * group_bytes(planes, depths(k).div_ceil(parts));
        let tiles = if parts > 1 { panels * most_columns(planes) / ROWS } else { 1 };
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
