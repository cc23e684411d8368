//! `result = left · right` for a right factor that lies in rows: its columns are the
//! lanes. A task copies 32 of them, where it uses them more than once, so that tiles
//! read them as one stream, and computes tiles of some rows of the result.

use std::ops::Range;

use super::super::amx;
use super::super::caches::caches;
use super::super::element::Element;
use super::super::forward::{few_tile_rows, part};
use super::super::isa::Isa;
use super::super::panels::{Matrix, VECTOR};
use super::super::tile::{self, few_rows, Factors, Lines, Math, Sums, Target, Then, LANES};
use super::columns::WIDTH;
use super::memory::{copy, Store};
use super::tile_range;

/// Steps summed up from zero before they join the sum: a copy of as many stays in a
/// second-level cache.
const BLOCK: usize = 2048;

/// Up to so many tiles of AVX-512, which fetches its lanes ahead, use columns where they
/// lie, of up to so many steps (256 x 784 on 64 rows: gradient of the input 136 GFLOP/s
/// with a copy, 157; with K = 2048 132, 66; AVX2 0.93 to 1.05 of the copy's speed).
const FEW_TILES: usize = 40;
const SHORT: usize = 1024;

const PLANES: usize = amx::planes::count(Element::F32);

/// Panels of columns that a task copies at most: more columns of a row are neighbours in
/// memory, and the left factor is read less often.
const GROUP: usize = 4;

/// Words of a thread's copy, of AMX a panel of its planes.
pub const OWN_WORDS: usize = BLOCK * LANES * GROUP;
const _: () = assert!(PLANES <= 2 * GROUP);

/// Tasks of a product for each thread, and tiles of a task at least: each task copies.
/// A stage has two products.
const TASKS: usize = 8;
const FEWEST_TILES: usize = 4;

/// Tasks at most of the product for a weight `[n, k]`.
pub fn most_tasks(isa: Isa, (n, k): (usize, usize)) -> usize {
    k.div_ceil(LANES) * n.div_ceil(few_rows(isa)).div_ceil(FEWEST_TILES)
}

/// The left factor.
#[derive(Debug, Clone, Copy)]
pub enum Left {
    /// Rows as they lie, `stride` elements apart.
    Rows { data: *const f32, stride: usize },
    /// `Columns::tiles`: the rows of this factor are columns there.
    Tiles(*const f32),
    /// Blocks of AMX, all depths of each group of rows.
    Blocks(*const u8),
}

/// One product.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// The CPU has it.
    pub isa: Isa,
    /// `[rows, depth]`.
    pub left: Left,
    /// Of the result.
    pub rows: usize,
    /// `[depth, columns]`.
    pub right: Matrix,
    /// `[rows, columns]`, dense.
    pub result: *mut f32,
    /// Of the same shape: where it is not above zero the result is zero, NaN apart.
    /// Null for no mask.
    pub output: *const f32,
}

impl Product {
    fn tile_rows(&self) -> usize {
        match self.left {
            Left::Rows { stride, .. } => few_tile_rows(self.isa, 4 * stride),
            Left::Tiles(_) => few_rows(self.isa),
            Left::Blocks(_) => amx::ROWS,
        }
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile_rows())
    }

    fn panels(&self) -> usize {
        self.right.k.div_ceil(LANES)
    }

    /// Panels of a task: so many that their copies stay in a second-level cache, and
    /// all threads have tasks.
    fn group(&self, threads: usize) -> usize {
        let bytes = 4 * LANES * self.right.rows.min(BLOCK);
        let most = match self.left {
            Left::Blocks(_) => 1,
            _ => (caches().second / 2 / bytes).clamp(1, GROUP),
        };
        (self.panels() / (TASKS * threads)).clamp(1, most)
    }

    fn groups(&self, threads: usize) -> usize {
        self.panels().div_ceil(self.group(threads))
    }

    /// Parts of the tiles for each group of panels.
    fn chunks(&self, threads: usize) -> usize {
        let wanted =
            if threads == 1 { 1 } else { (TASKS * threads).div_ceil(self.groups(threads)) };
        wanted.min(self.tiles().div_ceil(FEWEST_TILES))
    }

    pub fn tasks(&self, threads: usize) -> usize {
        self.groups(threads) * self.chunks(threads)
    }

    /// # Safety
    /// Addresses are valid for their shapes, `own` for `OWN_WORDS`; no other thread
    /// accesses what this task writes.
    pub unsafe fn run(&self, threads: usize, task: usize, own: *mut f32) {
        let chunks = self.chunks(threads);
        let columns = part(self.right.k, LANES, self.groups(threads), task / chunks);
        let tiles = part(self.tiles(), 1, chunks, task % chunks);
        let depth = self.right.rows;
        for first in (0..depth).step_by(BLOCK) {
            let steps = first..(first + BLOCK).min(depth);
            // SAFETY: forwarded; steps and tiles exist.
            unsafe {
                match self.left {
                    #[cfg(target_arch = "x86_64")]
                    Left::Blocks(left) => {
                        self.block_on_amx(left, steps, &columns, tiles.clone(), own);
                    }
                    _ => self.block(steps, &columns, tiles.clone(), own),
                }
            }
        }
    }

    /// # Safety
    /// As for `run`; the thread has `Tiles`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn block_on_amx(
        &self,
        left: *const u8,
        steps: Range<usize>,
        columns: &Range<usize>,
        tiles: Range<usize>,
        own: *mut f32,
    ) {
        use super::super::amx::again::{self, Blocks, Panel};
        use super::super::amx::left::Tiled;
        let all = amx::depths(self.right.rows);
        let group = amx::group_bytes(PLANES, all);
        let width = columns.len().next_multiple_of(VECTOR);
        let left = left.wrapping_add(steps.start / amx::DEPTH * PLANES * amx::TILE);
        let mut sums = Sums::new();
        // SAFETY: the caller's promise; blocks of steps begin with a whole depth.
        unsafe {
            amx::right::from_rows(&self.right, steps.clone(), columns.clone(), own);
            for index in tiles {
                let rows = self.rows_of(index);
                let data = left.add(rows.start / amx::GROUP * group);
                let depths = amx::depths(steps.len());
                let factors = amx::product::Factors {
                    planes: PLANES,
                    left: Tiled { group, ..Tiled::blocks(data, PLANES, depths) },
                    right: own,
                    width,
                    depths,
                };
                let store = self.store(&rows, columns, &steps);
                store.soon();
                amx::product::run(&factors, rows.len(), None, sums.0[0].as_mut_ptr(), false);
                let blocks = Blocks { data, group, rows: rows.len(), k: steps.len() };
                let panel = Panel { planes: PLANES, data: own, width };
                again::finite(&again::Left::Blocks(blocks), &panel, &mut sums);
                store.run(self.isa, &sums);
            }
        }
    }

    /// Where the sums of some steps go.
    fn store(&self, rows: &Range<usize>, columns: &Range<usize>, steps: &Range<usize>) -> Store {
        let place = rows.start * self.right.k + columns.start;
        let last = steps.end == self.right.rows;
        Store {
            result: self.result.wrapping_add(place),
            output: if last && !self.output.is_null() {
                self.output.wrapping_add(place)
            } else {
                std::ptr::null()
            },
            stride: self.right.k,
            rows: rows.len(),
            columns: columns.len(),
            adds: steps.start > 0,
        }
    }

    /// # Safety
    /// As for `run`.
    unsafe fn block(
        &self,
        steps: Range<usize>,
        columns: &Range<usize>,
        tiles: Range<usize>,
        own: *mut f32,
    ) {
        let mut sums = Sums::new();
        // SAFETY: the caller's promise; whole vectors of columns can be read where they
        // lie, fewer are copied with zeros behind them.
        unsafe {
            let from = self.right.row(steps.start).cast::<f32>().add(columns.start);
            let in_place = self.reads_in_place(steps.len(), columns.len(), tiles.len());
            if !in_place {
                copy(self.isa, from, self.right.stride, steps.len(), columns.len(), own);
            }
            for index in tiles {
                let (p, row, step) = self.left_factor(index, steps.start);
                for first in (0..columns.len()).step_by(LANES) {
                    let lanes = (columns.len() - first).min(LANES);
                    let factors = Factors {
                        p,
                        row,
                        step,
                        v: if in_place { from.add(first) } else { own.add(first * steps.len()) },
                        v_step: match in_place {
                            true => self.right.stride,
                            false => lanes.next_multiple_of(VECTOR),
                        },
                        depth: steps.len(),
                        half: false,
                        soon: std::ptr::null(),
                        target: None,
                        next: None,
                        then: Then::NOTHING,
                    };
                    let begin = columns.start + first;
                    let columns = begin..begin + lanes;
                    self.tile(factors, &self.rows_of(index), &columns, &steps, &mut sums);
                }
            }
        }
    }

    /// Whether tiles read columns of the right factor where they lie: where a copy would
    /// not be used often, and the first-level cache takes lines a row apart.
    fn reads_in_place(&self, steps: usize, columns: usize, tiles: usize) -> bool {
        let short = steps <= SHORT && !(4 * self.right.stride).is_multiple_of(4096);
        let few = if self.isa == Isa::Avx512 && short { FEW_TILES } else { 1 };
        tiles <= few && columns.is_multiple_of(VECTOR)
    }

    /// One tile of the result.
    ///
    /// # Safety
    /// As for `run`; `factors` are of these rows, columns and steps.
    unsafe fn tile(
        &self,
        factors: Factors,
        rows: &Range<usize>,
        columns: &Range<usize>,
        steps: &Range<usize>,
        sums: &mut Sums,
    ) {
        let store = self.store(rows, columns, steps);
        let lanes = columns.len().next_multiple_of(VECTOR);
        let stores = self.isa != Isa::Scalar && lanes == columns.len() && store.only_writes();
        let target = Target { at: store.result, stride: store.stride };
        let next = Lines { at: store.result, row: store.stride, vector: VECTOR };
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx2 {
            store.soon();
        }
        // SAFETY: forwarded; rows and columns are this task's alone.
        unsafe {
            let factors = Factors { target: stores.then_some(target), next: Some(next), ..factors };
            tile::run(self.isa, Math::Fma, rows.len(), lanes, &factors, sums);
            if !stores {
                store.run(self.isa, sums);
            }
        }
    }

    fn rows_of(&self, tile: usize) -> Range<usize> {
        match self.left {
            // Whole tiles.
            Left::Blocks(_) => part(self.rows, self.tile_rows(), self.tiles(), tile),
            _ => tile_range(self.rows, self.tile_rows(), tile),
        }
    }

    /// Where a tile of the left factor lies from some step on, and the bytes from row to
    /// row and step to step.
    ///
    /// # Safety
    /// Tile and step exist.
    unsafe fn left_factor(&self, tile: usize, step: usize) -> (*const u8, usize, usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.left {
                Left::Rows { data, stride } => {
                    (data.add(self.rows_of(tile).start * stride + step).cast(), 4 * stride, 4)
                }
                Left::Blocks(_) => unreachable!("AMX has products of its own"),
                Left::Tiles(data) => {
                    let tile = data.add((tile * self.right.rows + step) * WIDTH);
                    (tile.cast(), 4, 4 * WIDTH)
                }
            }
        }
    }
}
