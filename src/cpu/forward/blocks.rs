//! How work is divided: figures, each with its reason.

use super::super::panels::count;
use super::super::isa::Isa;
use super::super::tile::{best_rows, LANES};

/// Up to here a chain reads its weights faster than it multiplies.
pub const FEW_ROWS: usize = 8;

/// Bytes of a block's activations between two layers, of one thread and of all:
/// with one more such buffer they stay in a core's share of the last-level cache.
const BUFFER: usize = 2 << 20;
const SHARED_BUFFER: usize = 4 << 20;
/// Fewer rows a block would read each weight too often.
const FEWEST_ROWS: usize = 128;

/// Tasks of a layer for each thread: what the last ones to end wait for is a part of
/// one, and a thread that others disturb leaves its share to the rest.
const TASKS: usize = 16;

/// Threads that so many products are worth. A thread's start and end cost some
/// microseconds; few rows wait for memory, so that a product takes longer.
pub fn worth(products: usize, rows: usize) -> usize {
    let each = if rows <= FEW_ROWS { 1 << 16 } else { 1 << 18 };
    products / each
}

/// How a chain is divided among threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Division {
    /// Blocks of so many rows, each through all layers by one thread: nothing is
    /// shared but weights, and nobody waits for anybody.
    Rows(usize),
    /// All threads on each layer of a block of so many rows.
    Columns(usize),
}

impl Division {
    /// By rows if every thread gets about as many; activations that another core
    /// has written cost some 10 % (784-256-256-10 on 256 rows).
    pub fn new(rows: usize, widest_steps: usize, threads: usize) -> Self {
        let panels = count(rows);
        let each = panels.div_ceil(threads);
        let fit = |bytes: usize| (bytes / (4 * widest_steps)).max(FEWEST_ROWS);
        if panels * 8 < each * threads * 7 {
            return Self::Columns(equal(rows, rows.div_ceil(fit(SHARED_BUFFER))));
        }
        let blocks = (each * LANES).div_ceil(fit(BUFFER));
        // Two for each thread, if they are not small: others may disturb one.
        let blocks =
            if threads > 1 && each * LANES >= 2 * FEWEST_ROWS { blocks.max(2) } else { blocks };
        Self::Rows(equal(rows, blocks * threads))
    }
}

/// Rows of each of so many blocks, whole panels.
fn equal(rows: usize, blocks: usize) -> usize {
    rows.div_ceil(blocks).next_multiple_of(LANES)
}

/// How the result of a layer is divided: blocks of columns, a tile wide, by chunks
/// of panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Blocks of columns.
    pub columns: usize,
    /// Chunks of panels.
    pub chunks: usize,
}

impl Grid {
    /// Tasks enough that threads end together; at most `tile` columns each, of which
    /// `unit` belong together.
    pub fn new(rows: usize, n: usize, tile: usize, unit: usize, threads: usize) -> Self {
        let units = n.div_ceil(unit);
        let fewest = units.div_ceil(tile / unit);
        // As many for each thread, if that leaves them nearly as wide.
        let equal = fewest.next_multiple_of(threads);
        let columns = if equal * 4 <= fewest * 5 { equal } else { fewest };
        let wanted = if threads == 1 { 1 } else { TASKS * threads };
        Self { columns, chunks: wanted.div_ceil(columns).min(count(rows)) }
    }

    /// All of them.
    pub fn tasks(self) -> usize {
        self.columns * self.chunks
    }
}

/// Words from one row of a copied weight to the next: an odd number of cache lines,
/// so that a tile's rows never meet in one set of the first-level cache.
pub fn padded_words(words: usize) -> usize {
    (words.div_ceil(16) | 1) * 16
}

/// Most rows of a weight in a tile. Rows a multiple of 4 KiB apart meet in one set of
/// a first-level cache of eight ways, where fourteen would evict one another (88
/// GFLOP/s for 111 at K = 2048; copying them elsewhere first cost more than it gained).
/// AVX2's tiles read six at a time.
pub fn tile_rows(isa: Isa, row_bytes: usize) -> usize {
    if isa != Isa::Avx2 && row_bytes.is_multiple_of(4096) {
        8
    } else {
        best_rows(isa)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tile::ROWS;
    use super::*;

    #[test]
    fn rows_are_divided_where_every_thread_gets_as_many() {
        use Division::{Columns, Rows};
        assert_eq!(Division::new(64, 784, 2), Rows(32));
        assert_eq!(Division::new(64, 784, 1), Rows(64));
        assert_eq!(Division::new(256, 784, 2), Rows(128));
        assert_eq!(Division::new(512, 2048, 2), Rows(128));
        assert_eq!(Division::new(1024, 2048, 2), Rows(256));
        assert_eq!(Division::new(96, 784, 2), Columns(96), "three panels");
        assert_eq!(Division::new(32, 784, 2), Columns(32), "one panel");
        assert_eq!(Division::new(1024, 2048, 48), Columns(512));
        for rows in 1..3000 {
            let (Rows(block) | Columns(block)) = Division::new(rows, 100_000, 3);
            assert!(block % LANES == 0 && block > 0);
        }
    }

    #[test]
    fn small_layers_have_tasks_for_every_thread() {
        let grid = |rows, n, unit, threads| {
            let Grid { columns, chunks } = Grid::new(rows, n, ROWS, unit, threads);
            (columns, chunks)
        };
        assert_eq!(grid(64, 256, 1, 2), (20, 2));
        assert_eq!(grid(64, 10, 1, 2), (1, 2));
        assert_eq!(grid(1024, 10, 2, 2), (1, 32));
        assert_eq!(grid(1024, 10, 2, 1), (1, 1));
    }

    #[test]
    fn copied_rows_meet_in_no_set() {
        for words in 1..5000 {
            let padded = padded_words(words);
            assert!(padded >= words && padded < words + 32);
            let sets: std::collections::HashSet<_> =
                (0..ROWS).map(|row| row * padded * 4 / 64 % 64).collect();
            assert_eq!(sets.len(), ROWS);
        }
    }
}
