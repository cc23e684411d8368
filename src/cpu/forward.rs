//! A chain of layers, as stages of tasks for any number of threads. Up to
//! [`FEW_ROWS`] rows it is dot products straight from the weights
//! (`few_rows`); beyond, tiles over turned inputs (`panels`), in blocks of rows
//! whose activations stay in the caches from one layer to the next.

mod amx;
mod blocks;
mod few;
mod tiles;

pub(super) use blocks::few_tile_rows;
pub use blocks::FEW_ROWS;

use std::ops::Range;

use super::amx::{planes, Tiles};
use super::element::Element;
use super::isa::{self, Bf16, Isa};
use super::pages;
use super::panels::Matrix;
use super::schedule::Schedule;
use super::tile::Math;

/// `output = input · weightᵀ + bias`, then ReLU if `relu`.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// `[n, k]`.
    pub weight: Matrix,
    /// `[n]`, dense; null for none.
    pub bias: *const u8,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// `[rows, n]`, dense; null for a hidden layer whose result nobody wants.
    pub output: *mut u8,
}

/// Products that LibTorch computes without oneDNN.
const SMALL: usize = 16 * 16 * 16;

/// Rows up to which splitting fp32 weights for AMX takes as long as FMA multiplies: 32
/// rows by 32 x 32 weights take 447 ns, 64 of them 776, at FMA's peak 437 and 874.
const SPLITTING_ROWS: usize = 64;

/// What the kernels are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    /// Instruction set.
    pub isa: Isa,
    /// Of the tiles.
    pub math: Math,
}

impl Kernels {
    /// Those for an element type, a number of rows and the products of the largest
    /// layer; none where LibTorch's own products are the faster.
    ///
    /// `vdpbf16ps` and AMX take subnormal numbers for zero, so that in bfloat16 infinity
    /// times one of them is NaN. oneDNN has it so too, but LibTorch computes small
    /// products without oneDNN, and exactly; so do we.
    #[must_use]
    pub fn best(element: Element, rows: usize, products: usize) -> Option<Self> {
        let isa = Isa::best();
        if isa == Isa::Scalar {
            return None;
        }
        let splits = element == Element::F32 && rows <= SPLITTING_ROWS;
        let math = if rows > FEW_ROWS && products > SMALL && !splits {
            Self::large(element)
        } else {
            Math::Fma
        };
        Some(Self { isa, math })
    }

    /// What products of many rows are made of.
    #[must_use]
    pub fn large(element: Element) -> Math {
        let planes = planes::count(element);
        let choice = isa::bf16();
        match (element, choice.bf16) {
            (Element::Bf16, Bf16::Amx) => Math::Amx(planes),
            (Element::Bf16, Bf16::Dot) => Math::Dot,
            (Element::F16, _) if choice.amx_pays(planes) => Math::Amx(planes),
            (Element::F32, _) if choice.amx_pays(planes) && isa::splits_fp32() => Math::Amx(planes),
            _ => Math::Fma,
        }
    }
}

/// One call: all layers on one input.
pub struct Forward {
    route: Route,
    schedule: Schedule,
    threads: usize,
}

enum Route {
    Few(few::Chain),
    Tiles(tiles::Chain),
}

// SAFETY: addresses that the caller of `new` keeps valid; threads write to disjoint
// parts of what they point to, and `Schedule` orders writes before reads.
unsafe impl Send for Forward {}
// SAFETY: as above.
unsafe impl Sync for Forward {}

impl Forward {
    /// Of `threads` threads at most.
    ///
    /// # Safety
    /// Every address is valid for its shape, aligned for its element, and stays so
    /// while this lives; outputs overlap nothing else; no size is 0; all elements are
    /// of one type; the K of each layer is the N of the one before, the last has an
    /// output; the CPU has `kernels`.
    #[must_use]
    pub unsafe fn new(kernels: Kernels, input: Matrix, layers: Vec<Layer>, threads: usize) -> Self {
        let products: usize = layers.iter().map(|l| l.weight.rows * l.weight.k).sum();
        for Layer { weight, output, .. } in &layers {
            // SAFETY: results that nobody else has.
            unsafe { pages::large(*output, input.rows * weight.rows * weight.element.size()) };
        }
        let threads = threads.min(blocks::worth(products * input.rows, input.rows)).max(1);
        let (route, schedule) = if input.rows <= FEW_ROWS {
            let chain = few::Chain::new(kernels.isa, input, layers, threads);
            // Few rows wait for weights, most of all for those in another core's cache.
            let schedule = Schedule::shared_out(chain.tasks(), threads);
            (Route::Few(chain), schedule)
        } else {
            let chain = tiles::Chain::new(kernels, input, layers, threads);
            let schedule = Schedule::new(chain.tasks());
            (Route::Tiles(chain), schedule)
        };
        Self { route, schedule, threads }
    }

    /// As many are worth their start.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// What thread `me` of them does; when one returns true, and every other thread that was
    /// called has returned, all outputs are complete.
    pub fn work(&self, me: usize) -> bool {
        match &self.route {
            Route::Few(chain) => self.schedule.work(me, |stage, task| {
                // SAFETY: promised to `new`; a task runs once, behind the stage before.
                unsafe { chain.run(stage, task) }
            }),
            Route::Tiles(chain) => {
                let own = chain.own_scratch();
                // SAFETY: the CPU has the chain's kernels.
                let _tiles = chain.on_amx().then(|| unsafe { Tiles::configured() });
                self.schedule.work(me, |stage, task| {
                    // SAFETY: as above; `own` is this thread's.
                    unsafe { chain.run(stage, task, &own) }
                })
            }
        }
    }
}

/// Part `i` of `parts` of `0..n`, in multiples of `unit`.
pub(super) fn part(n: usize, unit: usize, parts: usize, i: usize) -> Range<usize> {
    let units = n.div_ceil(unit);
    let at = |i: usize| (i * units / parts * unit).min(n);
    at(i)..at(i + 1)
}

#[cfg(test)]
mod tests;
