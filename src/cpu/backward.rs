//! The gradients of a chain of fp32 layers, as stages of tasks for any number of
//! threads. Each layer, from the last on, has two stages: the gradient of its result
//! is masked, summed up for the bias and copied by columns (`columns`); then two
//! products (`product`), of those columns with the layer's input for its weight, and
//! of the gradient's rows with the weight for its input. The latter is the masked
//! gradient of the layer before.

mod columns;
mod memory;
mod product;
mod split;

use std::ops::Range;

use super::amx::Tiles;
use super::forward::{part, Kernels};
use super::isa::Isa;
use super::pages;
use super::panels::Matrix;
use super::schedule::Schedule;
use super::scratch::Scratch;
use super::tile::{few_rows, Math};
use columns::{Columns, WIDTH};
use product::{Left, Product, OWN_WORDS};
use split::Split;

/// `output = input · weightᵀ + bias`, then ReLU if `output` is there.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// `[n, k]`.
    pub weight: Matrix,
    /// `[rows, k]`.
    pub input: Matrix,
    /// `[rows, n]`, dense: where a ReLU followed, that is in every layer but the last.
    pub output: *const f32,
    /// `[n, k]`, dense; null if nobody wants it.
    pub grad_weight: *mut f32,
    /// `[n]`; null if nobody wants it.
    pub grad_bias: *mut f32,
}

/// One call: all layers that a wanted gradient needs.
pub struct Backward {
    chain: Chain,
    schedule: Schedule,
}

struct Chain {
    isa: Isa,
    /// Whether the products are AMX's, of three bfloat16 an element.
    amx: bool,
    /// Of the last layer's result.
    grad_output: Matrix,
    /// First layer first.
    layers: Vec<Layer>,
    /// Of the first one's input, dense; null if nobody wants it.
    grad_input: *mut f32,
    threads: usize,
    scratch: Scratch,
    /// Words of one masked gradient; two of them, in turn, then the columns.
    masked: usize,
}

// SAFETY: addresses that the caller of `new` keeps valid; threads write to disjoint
// parts of what they point to, and `Schedule` orders writes before reads.
unsafe impl Send for Backward {}
// SAFETY: as above.
unsafe impl Sync for Backward {}

/// Products of a thread at least, so that it is worth its start.
const WORTH: usize = 1 << 18;

/// With fewer rows LibTorch is faster: a gradient of a weight is written and a weight
/// read faster than tiles can be filled (one row, 2048 x 2048: 0.4 times eager's
/// speed; four rows of 784-256-256-10: 2.8 times).
const FEWEST_ROWS: usize = 4;

/// Threads of `threads` that so many products are worth.
fn worth(threads: usize, products: usize) -> usize {
    threads.min(products / WORTH).max(1)
}

/// Whether these kernels are faster than LibTorch's products for weights of these
/// sizes, `(n, k)`. The product for a weight is not divided along the rows: a narrow
/// layer on many rows would leave threads without work (16-8 on 65,536: 0.75 times
/// eager's speed).
#[must_use]
pub fn takes(
    isa: Isa,
    rows: usize,
    weights: impl Iterator<Item = (usize, usize)>,
    threads: usize,
) -> bool {
    let (mut products, mut largest) = (0, (0, 0));
    for (n, k) in weights {
        products += n * k;
        if n * k > largest.0 * largest.1 {
            largest = (n, k);
        }
    }
    let threads = worth(threads, 2 * products * rows);
    rows >= FEWEST_ROWS && (threads == 1 || product::most_tasks(isa, largest) >= 2 * threads)
}

impl Backward {
    /// By `threads` threads at most.
    ///
    /// # Safety
    /// Every address is valid for its shape and aligned, and stays so while this
    /// lives; gradients overlap nothing else; no size is 0; all elements are fp32; the
    /// K of each layer is the N of the one before; the CPU has `kernels`.
    #[must_use]
    pub unsafe fn new(
        Kernels { isa, math }: Kernels,
        grad_output: Matrix,
        layers: Vec<Layer>,
        grad_input: *mut f32,
        threads: usize,
    ) -> Self {
        let rows = grad_output.rows;
        let products: usize = layers.iter().map(|l| l.weight.rows * l.weight.k).sum();
        let threads = worth(threads, 2 * products * rows);
        let widest = layers.iter().map(|layer| layer.weight.rows).max().unwrap_or(0);
        let masked = (rows * widest).next_multiple_of(WIDTH);
        let amx = matches!(math, Math::Amx(_));
        let copies = if amx {
            let of = |layer: &Layer| {
                let n = layer.weight.rows;
                split::bytes(n, rows) + split::bytes(rows, n)
            };
            layers.iter().map(of).max().unwrap_or(0)
        } else {
            4 * widest.div_ceil(few_rows(isa)) * rows * WIDTH
        };
        let scratch = Scratch::new(4 * 2 * masked + copies);
        // SAFETY: results that nobody else has.
        unsafe {
            for Layer { weight, grad_weight, .. } in &layers {
                pages::large(*grad_weight, 4 * weight.rows * weight.k);
            }
            pages::large(grad_input, 4 * rows * layers.first().map_or(0, |l| l.weight.k));
        }
        let chain = Chain { isa, amx, grad_output, layers, grad_input, threads, scratch, masked };
        // Of a stage's two products a thread begins with the same one, call after call: it
        // finds what that reads and writes in its core's caches.
        let schedule = Schedule::shared_out(chain.tasks(), threads);
        Self { chain, schedule }
    }

    /// As many are worth their start.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.chain.threads
    }

    /// What thread `me` of them does; when one returns true, and every other thread that was
    /// called has returned, all gradients are complete.
    pub fn work(&self, me: usize) -> bool {
        let own = Scratch::new(4 * OWN_WORDS);
        // SAFETY: the CPU has the chain's kernels.
        let _tiles = self.chain.amx.then(|| unsafe { Tiles::configured() });
        self.schedule.work(me, |stage, task| {
            // SAFETY: promised to `new`; a task runs once, behind the stage before;
            // `own` is this thread's.
            unsafe { self.chain.run(stage, task, own.address().cast()) }
        })
    }
}

impl Chain {
    /// # Safety
    /// As promised to `Backward::new`; the stages before are done, no other thread
    /// runs this task or uses `own`, of `OWN_WORDS`.
    unsafe fn run(&self, stage: usize, task: usize, own: *mut f32) {
        let index = self.layers.len() - 1 - stage / 2;
        // SAFETY: forwarded.
        unsafe {
            match stage % 2 {
                0 if self.amx => self.split(index).run(task),
                0 => self.columns(index).run(task),
                _ => self.products(index, task, own),
            }
        }
    }

    /// For each layer, from the last on, one stage for its columns and one for both
    /// products.
    fn tasks(&self) -> Vec<usize> {
        let stages = |index| {
            let products = self.weight_product(index).into_iter().chain(self.input_product(index));
            let products = products.map(|product| product.tasks(self.threads)).sum();
            let first =
                if self.amx { self.split(index).tasks() } else { self.columns(index).tasks() };
            [first, products]
        };
        (0..self.layers.len()).rev().flat_map(stages).collect()
    }

    /// Whether the gradient of a layer's input is wanted or on the way.
    fn goes_on(&self, index: usize) -> bool {
        index > 0 || !self.grad_input.is_null()
    }

    /// Memory for the masked gradient of a layer's result.
    fn buffer(&self, index: usize) -> *mut f32 {
        self.scratch.address().cast::<f32>().wrapping_add(index % 2 * self.masked)
    }

    fn column_tiles(&self) -> *mut f32 {
        self.scratch.address().cast::<f32>().wrapping_add(2 * self.masked)
    }

    /// The gradient of a layer's result, as the layer behind left it.
    fn grad(&self, index: usize) -> Matrix {
        if index + 1 == self.layers.len() {
            return self.grad_output;
        }
        let k = self.layers[index].weight.rows;
        Matrix { data: self.buffer(index).cast(), stride: k, k, ..self.grad_output }
    }

    fn columns(&self, index: usize) -> Columns {
        let layer = &self.layers[index];
        let null = std::ptr::null_mut();
        // What comes from a layer behind is masked already.
        let last = index + 1 == self.layers.len();
        let masks = last && !layer.output.is_null();
        Columns {
            isa: self.isa,
            grad: self.grad(index),
            output: if masks { layer.output } else { std::ptr::null() },
            tiles: if layer.grad_weight.is_null() { null } else { self.column_tiles() },
            masked: if masks && self.goes_on(index) { self.buffer(index) } else { null },
            sums: layer.grad_bias,
        }
    }

    fn split(&self, index: usize) -> Split {
        let layer = &self.layers[index];
        let Columns { grad, output, sums, .. } = self.columns(index);
        let null = std::ptr::null_mut();
        let (by_columns, by_rows) = self.blocks(layer);
        Split {
            grad,
            output,
            by_columns: if layer.grad_weight.is_null() { null } else { by_columns },
            by_rows: if self.goes_on(index) { by_rows } else { null },
            sums,
        }
    }

    /// Memory for AMX's left factors of a layer, by columns and by rows.
    fn blocks(&self, layer: &Layer) -> (*mut u8, *mut u8) {
        let by_columns = self.column_tiles().cast::<u8>();
        let bytes = split::bytes(layer.weight.rows, self.grad_output.rows);
        (by_columns, by_columns.wrapping_add(bytes))
    }

    fn weight_product(&self, index: usize) -> Option<Product> {
        let layer = &self.layers[index];
        (!layer.grad_weight.is_null()).then(|| Product {
            isa: self.isa,
            left: if self.amx {
                Left::Blocks(self.blocks(layer).0)
            } else {
                Left::Tiles(self.column_tiles())
            },
            rows: layer.weight.rows,
            right: layer.input,
            result: layer.grad_weight,
            output: std::ptr::null(),
        })
    }

    fn input_product(&self, index: usize) -> Option<Product> {
        if !self.goes_on(index) {
            return None;
        }
        let layer = &self.layers[index];
        let grad = self.grad(index);
        let masked = self.columns(index).masked;
        Some(Product {
            isa: self.isa,
            left: if self.amx {
                Left::Blocks(self.blocks(layer).1)
            } else if masked.is_null() {
                Left::Rows { data: grad.data.cast(), stride: grad.stride }
            } else {
                Left::Rows { data: masked, stride: grad.k }
            },
            rows: grad.rows,
            right: layer.weight,
            result: if index == 0 { self.grad_input } else { self.buffer(index - 1) },
            output: if index == 0 { std::ptr::null() } else { self.layers[index - 1].output },
        })
    }

    /// # Safety
    /// As for `run`.
    unsafe fn products(&self, index: usize, task: usize, own: *mut f32) {
        let mut task = task;
        for product in self.weight_product(index).into_iter().chain(self.input_product(index)) {
            let tasks = product.tasks(self.threads);
            if task < tasks {
                // SAFETY: forwarded.
                unsafe { product.run(self.threads, task, own) };
                return;
            }
            task -= tasks;
        }
    }
}

/// Rows `tile` of `rows` in tiles of at most `most`, all about as large.
fn tile_range(rows: usize, most: usize, tile: usize) -> Range<usize> {
    part(rows, 1, rows.div_ceil(most), tile)
}

#[cfg(test)]
mod tests;
