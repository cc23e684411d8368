//! How work is divided: figures, each with its reason.

use std::ops::Range;

use super::super::caches::{caches, Caches};
use super::super::isa::Isa;
use super::super::panels::count;
use super::super::tile::{few_rows, most_rows, Math, LANES};
use super::Kernels;

/// Up to here a chain reads its weights faster than it multiplies.
pub const FEW_ROWS: usize = 8;

/// Bytes of a block's activations between two layers, of one thread and of all:
/// with one more such buffer they stay in a core's share of the last-level cache.
const BUFFER: usize = 2 << 20;
/// A second-level cache from which on half of it is better: one layer's input stays there
/// while the weights pass by (2048 x 2048 on 512 rows: 160 GFLOP/s a core for 120).
const LARGE_SECOND: usize = 2 << 20;
const SHARED_BUFFER: usize = 4 << 20;
/// The same for AMX, and bytes of a weight from which on threads share blocks
/// (784-2048x4-1000 on 512 rows: 1.4 times as fast, 1024-512x4-256 on 256 0.7 times).
const AMX_BUFFER: usize = 8 << 20;
const SHARED_WEIGHT: usize = 4 << 20;
/// Fewer rows a block would read each weight too often.
const FEWEST_ROWS: usize = 64;

/// Panels of a thread from which on its blocks become smaller and smaller: half of
/// what is left, shared by all, at a time. Threads end together then, also where
/// others disturb one (784-256-256-10 on 256 rows beside other work: 1.0 to 1.15 times
/// as fast as two equal blocks a thread, in AVX2; in AVX-512 a small block costs more).
const SHRINKS: usize = 4;
const SHRINKS_AVX512: usize = 8;

/// Tasks of a layer for each thread: what the last ones to end wait for is a part of
/// one, and a thread that others disturb leaves its share to the rest.
const TASKS: usize = 16;
const COPYING_TASKS: usize = 4;

/// Threads that so many products are worth. A thread's start and end cost some
/// microseconds; few rows wait for memory, so that a product takes longer.
pub fn worth(products: usize, rows: usize) -> usize {
    let each = if rows <= FEW_ROWS { 1 << 16 } else { 1 << 18 };
    products / each
}

/// How a chain is divided among threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Division {
    /// Blocks of rows, each through all layers by one thread: nothing is shared but
    /// weights, and nobody waits for anybody.
    Rows(Vec<Range<usize>>),
    /// All threads on each layer of a block of so many rows.
    Columns(usize),
}

impl Division {
    /// By rows if every thread gets about as many; activations that another core
    /// has written cost some 10 % (784-256-256-10 on 256 rows).
    /// AMX copies each weight once a block: where the largest, of so many bytes, is in no
    /// core's cache, all threads share blocks as large as they may be. So they do where
    /// shares were `uneven` (`balance`).
    pub fn new(
        kernels: Kernels,
        rows: usize,
        widest_steps: usize,
        largest: usize,
        threads: usize,
        uneven: bool,
        caches: Caches,
    ) -> Self {
        let Kernels { isa, math } = kernels;
        let panels = count(rows);
        let each = panels.div_ceil(threads);
        let fit = |bytes: usize| (bytes / (4 * widest_steps)).max(FEWEST_ROWS);
        if matches!(math, Math::Amx(_)) && largest > SHARED_WEIGHT {
            return Self::Columns(equal(rows, rows.div_ceil(fit(AMX_BUFFER))));
        }
        let columns = || Self::Columns(equal(rows, rows.div_ceil(fit(SHARED_BUFFER))));
        if panels * 8 < each * threads * 7 {
            return columns();
        }
        let most = equal(each * LANES, (each * LANES).div_ceil(fit(buffer(caches)))) / LANES;
        let fewest = if isa == Isa::Avx512 { SHRINKS_AVX512 } else { SHRINKS };
        let shrinks = threads > 1 && each >= fewest;
        let (mut blocks, mut first) = (Vec::new(), 0);
        while first < panels {
            let left = panels - first;
            let take = if shrinks { left.div_ceil(2 * threads).min(most) } else { most };
            let end = (first + take).min(panels);
            blocks.push(first * LANES..(end * LANES).min(rows));
            first = end;
        }
        let rows = Self::Rows(blocks);
        if uneven && rows.is_one_each(threads) {
            return columns();
        }
        rows
    }

    /// Whether each thread has one block, so that nobody can help another.
    pub fn is_one_each(&self, threads: usize) -> bool {
        matches!(self, Self::Rows(blocks) if blocks.len() == threads)
    }
}

/// `BUFFER`, or what this core's caches are better at.
fn buffer(caches: Caches) -> usize {
    if caches.second >= LARGE_SECOND {
        caches.second / 2
    } else {
        BUFFER
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

    /// The same where each task copies the weight's rows: all panels in one chunk, if
    /// that leaves enough tasks.
    pub fn copying(rows: usize, n: usize, tile: usize, unit: usize, threads: usize) -> Self {
        let units = n.div_ceil(unit);
        let wanted = if threads == 1 { 1 } else { COPYING_TASKS * threads };
        let columns = units.div_ceil(tile / unit).max(wanted).min(units);
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
/// a first-level cache: more of them than it has ways would evict one another (of eight
/// ways: 88 GFLOP/s for 111 at K = 2048; of twelve: 156 with eight rows, 161 with
/// twelve; copying them elsewhere first cost more than it gained). AVX2's tiles read six
/// at a time.
pub fn few_tile_rows(isa: Isa, row_bytes: usize) -> usize {
    let most = few_rows(isa);
    if isa != Isa::Avx2 && row_bytes.is_multiple_of(4096) {
        caches().ways.clamp(most / 2, most)
    } else {
        most
    }
}

/// Bytes of a weight's rows that stay in a second-level cache, beside a panel.
const TILE: usize = 192 << 10;

/// The same where all panels of a block read the same tile: in AVX2 more than
/// registers hold, so that each panel, from the third-level cache, is read less often
/// (48 rows against 12: 1.03 to 1.06 times as fast).
pub fn tile_rows(isa: Isa, row_bytes: usize) -> usize {
    match isa {
        Isa::Avx2 => (TILE / row_bytes.max(1) / 6 * 6).clamp(few_rows(isa), most_rows(isa)),
        _ => few_tile_rows(isa, row_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tile::ROWS;
    use super::*;

    /// A core's caches with so many bytes in the second level.
    fn with_second(second: usize) -> Caches {
        Caches { ways: 8, second }
    }

    /// Panels of each block, or of all in columns.
    fn panels(isa: Isa, rows: usize, steps: usize, threads: usize) -> (bool, Vec<usize>) {
        panels_with(1 << 20, isa, rows, steps, threads)
    }

    fn panels_with(
        second: usize,
        isa: Isa,
        rows: usize,
        steps: usize,
        threads: usize,
    ) -> (bool, Vec<usize>) {
        let kernels = Kernels { isa, math: Math::Fma };
        let caches = with_second(second);
        match Division::new(kernels, rows, steps, 0, threads, false, caches) {
            Division::Rows(blocks) => (true, blocks.iter().map(|b| count(b.len())).collect()),
            Division::Columns(block) => (false, vec![count(block)]),
        }
    }

    #[test]
    fn rows_are_divided_where_every_thread_gets_as_many() {
        use Isa::{Avx2, Avx512};
        assert_eq!(panels(Avx2, 64, 784, 2), (true, vec![1, 1]));
        assert_eq!(panels(Avx2, 64, 784, 1), (true, vec![2]));
        assert_eq!(panels(Avx2, 128, 784, 2), (true, vec![2, 2]));
        assert_eq!(panels(Avx2, 250, 784, 2), (true, vec![2, 2, 1, 1, 1, 1]));
        assert_eq!(panels(Avx512, 256, 784, 2), (true, vec![4, 4]));
        assert_eq!(panels(Avx512, 512, 2048, 2), (true, vec![4, 3, 3, 2, 1, 1, 1, 1]));
        assert_eq!(panels(Avx2, 1024, 2048, 1), (true, vec![8; 4]));
        assert_eq!(panels(Avx2, 96, 784, 2), (false, vec![3]));
        assert_eq!(panels(Avx2, 32, 784, 2), (false, vec![1]));
        assert_eq!(panels(Avx2, 1024, 2048, 48), (false, vec![16]));
    }

    #[test]
    fn a_layers_input_stays_in_a_large_second_level() {
        let panels = |second| panels_with(second, Isa::Avx512, 1024, 2048, 1).1;
        assert_eq!((panels(1 << 20), panels(2 << 20)), (vec![8; 4], vec![4; 8]));
    }

    #[test]
    fn blocks_are_all_rows_and_threads_end_together() {
        for (rows, threads) in (1..3000).step_by(7).flat_map(|r| (1..12).map(move |t| (r, t))) {
            let kernels = Kernels { isa: Isa::Avx2, math: Math::Fma };
            let caches = with_second(1 << 20);
            let division = |uneven| Division::new(kernels, rows, 2048, 0, threads, uneven, caches);
            let Division::Rows(blocks) = division(false) else {
                continue;
            };
            // Uneven shares are given up, tasks that whoever is free takes are not.
            assert_eq!(division(true) == division(false), blocks.len() != threads);
            assert_eq!(
                blocks.iter().flat_map(Clone::clone).collect::<Vec<_>>(),
                Vec::from_iter(0..rows)
            );
            assert!(blocks.iter().all(|block| block.start % LANES == 0));
            // Whoever is done first takes the next.
            let mut ends = vec![0; threads];
            for block in &blocks {
                *ends.iter_mut().min().expect("threads") += count(block.len());
            }
            let last = ends.into_iter().max().expect("threads");
            assert!(last <= count(rows).div_ceil(threads), "{rows} {threads}: {blocks:?}");
        }
    }

    #[test]
    fn small_layers_have_tasks_for_every_thread() {
        let grid = |rows, n, unit, threads| {
            let Grid { columns, chunks } = Grid::new(rows, n, 14, unit, threads);
            (columns, chunks)
        };
        assert_eq!(grid(64, 256, 1, 2), (20, 2));
        assert_eq!(grid(64, 10, 1, 2), (1, 2));
        assert_eq!(grid(1024, 10, 2, 2), (1, 32));
        assert_eq!(grid(1024, 10, 2, 1), (1, 1));
    }

    #[test]
    fn tiles_fit_registers_or_a_cache() {
        let rows = |k: usize| tile_rows(Isa::Avx2, 4 * k);
        assert_eq!((rows(10), rows(784), rows(1024), rows(2048)), (48, 48, 48, 24));
        assert_eq!((rows(4096), rows(100_000)), (12, 12));
        let ways = caches().ways.clamp(7, 14);
        assert_eq!((tile_rows(Isa::Avx512, 4 * 784), tile_rows(Isa::Avx512, 4 * 1024)), (14, ways));
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
