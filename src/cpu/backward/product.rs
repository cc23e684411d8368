//! `result = left · right` for a right factor that lies in rows: its columns are the
//! lanes. A task copies 32 of them, where it uses them more than once, so that tiles
//! read them as one stream, and computes tiles of some rows of the result.

use std::ops::Range;

use super::super::forward::{part, tile_rows};
use super::super::isa::Isa;
use super::super::panels::{Matrix, VECTOR};
use super::super::tile::{self, Factors, Math, Sums, LANES, ROWS};
use super::columns::WIDTH;
use super::tile_range;

/// Steps summed up from zero before they join the sum: a copy of as many stays in a
/// second-level cache.
const BLOCK: usize = 2048;

/// Words of a thread's copy.
pub const OWN_WORDS: usize = BLOCK * LANES;

/// Tasks of a product for each thread, and tiles of a task at least: each task copies.
/// A stage has two products.
const TASKS: usize = 8;
const FEWEST_TILES: usize = 4;

/// Tasks at most of the product for a weight `[n, k]`.
pub fn most_tasks((n, k): (usize, usize)) -> usize {
    k.div_ceil(LANES) * n.div_ceil(ROWS).div_ceil(FEWEST_TILES)
}

/// The left factor.
#[derive(Debug, Clone, Copy)]
pub enum Left {
    /// Rows as they lie, `stride` elements apart.
    Rows { data: *const f32, stride: usize },
    /// `Columns::tiles`: the rows of this factor are columns there.
    Tiles(*const f32),
}

/// One product.
#[derive(Debug, Clone, Copy)]
pub struct Product {
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
            Left::Rows { stride, .. } => tile_rows(4 * stride),
            Left::Tiles(_) => ROWS,
        }
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile_rows())
    }

    fn panels(&self) -> usize {
        self.right.k.div_ceil(LANES)
    }

    /// Parts of the tiles for each panel of columns.
    fn chunks(&self, threads: usize) -> usize {
        let wanted = if threads == 1 { 1 } else { (TASKS * threads).div_ceil(self.panels()) };
        wanted.min(self.tiles().div_ceil(FEWEST_TILES))
    }

    pub fn tasks(&self, threads: usize) -> usize {
        self.panels() * self.chunks(threads)
    }

    /// # Safety
    /// Addresses are valid for their shapes, `own` for `OWN_WORDS`; no other thread
    /// accesses what this task writes; the CPU has `isa`.
    pub unsafe fn run(&self, isa: Isa, threads: usize, task: usize, own: *mut f32) {
        let chunks = self.chunks(threads);
        let panel = task / chunks * LANES;
        let columns = panel..(panel + LANES).min(self.right.k);
        let tiles = part(self.tiles(), 1, chunks, task % chunks);
        let depth = self.right.rows;
        for first in (0..depth).step_by(BLOCK) {
            let steps = first..(first + BLOCK).min(depth);
            // SAFETY: forwarded; steps and tiles exist.
            unsafe { self.block(isa, steps, &columns, tiles.clone(), own) };
        }
    }

    /// # Safety
    /// As for `run`.
    unsafe fn block(
        &self,
        isa: Isa,
        steps: Range<usize>,
        columns: &Range<usize>,
        tiles: Range<usize>,
        own: *mut f32,
    ) {
        let depth = self.right.rows;
        let mut sums = Sums::new();
        // SAFETY: the caller's promise; a whole panel's columns can be read where they
        // lie, fewer are copied with zeros behind them.
        unsafe {
            let from = self.right.row(steps.start).cast::<f32>().add(columns.start);
            let (v, v_step) = if tiles.len() == 1 && columns.len() == LANES {
                (from, self.right.stride)
            } else {
                let width = columns.len().next_multiple_of(VECTOR);
                copy(isa, from, self.right.stride, steps.len(), columns.len(), own);
                (own.cast_const(), width)
            };
            for index in tiles {
                let rows = tile_range(self.rows, self.tile_rows(), index);
                let (p, row, step) = match self.left {
                    Left::Rows { data, stride } => {
                        (data.add(rows.start * stride + steps.start), 4 * stride, 4)
                    }
                    Left::Tiles(data) => {
                        (data.add((index * depth + steps.start) * WIDTH), 4, 4 * WIDTH)
                    }
                };
                let factors =
                    Factors { p: p.cast(), row, step, v, v_step, depth: steps.len(), half: false };
                let lanes = columns.len().next_multiple_of(VECTOR);
                tile::run(isa, Math::Fma, rows.len(), lanes, &factors, &mut sums);
                let place = rows.start * self.right.k + columns.start;
                let store = Store {
                    result: self.result.add(place),
                    output: if steps.end == depth && !self.output.is_null() {
                        self.output.add(place)
                    } else {
                        std::ptr::null()
                    },
                    stride: self.right.k,
                    rows: rows.len(),
                    columns: columns.len(),
                    adds: steps.start > 0,
                };
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => store.avx512(&sums),
                    _ => store.portable(&sums),
                }
            }
        }
    }
}

/// Some columns of so many rows, dense but for zeros up to a whole vector.
///
/// # Safety
/// They can be read, `own` has room; the CPU has `isa`.
unsafe fn copy(
    isa: Isa,
    from: *const f32,
    stride: usize,
    rows: usize,
    columns: usize,
    own: *mut f32,
) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: forwarded.
        return unsafe { copy_avx512(from, stride, rows, columns, own) };
    }
    let _ = isa;
    let width = columns.next_multiple_of(VECTOR);
    for row in 0..rows {
        // SAFETY: the caller's promise.
        unsafe {
            let out = own.add(row * width);
            std::ptr::copy_nonoverlapping(from.add(row * stride), out, columns);
            std::ptr::write_bytes(out.add(columns), 0, width - columns);
        }
    }
}

/// # Safety
/// As for `copy`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn copy_avx512(from: *const f32, stride: usize, rows: usize, columns: usize, own: *mut f32) {
    use super::super::avx512::first_lanes;
    use std::arch::x86_64::*;
    let width = columns.next_multiple_of(VECTOR);
    let lower = first_lanes(columns.min(VECTOR));
    let upper = first_lanes(columns.saturating_sub(VECTOR));
    for row in 0..rows {
        // SAFETY: the masks keep to the columns; `own` has whole vectors.
        unsafe {
            let (from, out) = (from.add(row * stride), own.add(row * width));
            _mm512_storeu_ps(out, _mm512_maskz_loadu_ps(lower, from));
            if width > VECTOR {
                let vector = _mm512_maskz_loadu_ps(upper, from.add(VECTOR));
                _mm512_storeu_ps(out.add(VECTOR), vector);
            }
        }
    }
}

/// Where a tile's sums go.
struct Store {
    result: *mut f32,
    output: *const f32,
    /// Of both.
    stride: usize,
    rows: usize,
    columns: usize,
    /// To what is there.
    adds: bool,
}

impl Store {
    /// # Safety
    /// Rows and columns exist, no other thread accesses them.
    unsafe fn portable(&self, sums: &Sums) {
        for (row, sums) in sums.0.iter().enumerate().take(self.rows) {
            for (column, sum) in sums.iter().enumerate().take(self.columns) {
                let place = row * self.stride + column;
                // SAFETY: the caller's promise.
                unsafe {
                    let to = self.result.add(place);
                    // A product that underflows leaves -0 in an FMA, 0 in a sum.
                    let value = sum + if self.adds { *to } else { 0.0 };
                    let masked = !self.output.is_null() && *self.output.add(place) <= 0.0;
                    *to = if masked { 0.0 } else { value };
                }
            }
        }
    }

    /// # Safety
    /// As for `portable`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512(&self, sums: &Sums) {
        use super::super::avx512::{first_lanes, passes_relu};
        use std::arch::x86_64::*;
        for (row, sums) in sums.0.iter().enumerate().take(self.rows) {
            for column in (0..self.columns).step_by(VECTOR) {
                let lanes = first_lanes((self.columns - column).min(VECTOR));
                let place = row * self.stride + column;
                // SAFETY: the mask keeps to the columns; a row of sums has two vectors.
                unsafe {
                    let to = self.result.add(place);
                    // Zeros too: see `portable`.
                    let before = if self.adds { lanes } else { 0 };
                    let before = _mm512_maskz_loadu_ps(before, to);
                    let mut value = _mm512_loadu_ps(sums.as_ptr().add(column));
                    value = _mm512_add_ps(before, value);
                    if !self.output.is_null() {
                        let y = _mm512_maskz_loadu_ps(lanes, self.output.add(place));
                        value = _mm512_maskz_mov_ps(passes_relu(y), value);
                    }
                    _mm512_mask_storeu_ps(to, lanes, value);
                }
            }
        }
    }
}
