//! The chain on more rows: activations in panels, weights as they lie in memory.

use std::ops::Range;
use std::time::Instant;

use super::super::amx::DEPTH;
use super::super::balance::{self, Race};
use super::super::caches;
use super::super::element::Element;
use super::super::finish::{self, Finish, Place};
use super::super::panels::{self, count, steps, width, words, Matrix, VECTOR};
use super::super::scratch::Scratch;
use super::super::tile::{self, Factors, Lines, Math, Sums, Target, Then, LANES};
use super::amx;
use super::blocks::{padded_words, tile_rows, Division, Grid};
use super::{part, Kernels, Layer};

/// Steps of the input that a task turns: whole depths of AMX, whatever the planes.
const TURNED: usize = 288;

pub struct Chain {
    kernels: Kernels,
    input: Matrix,
    layers: Vec<Layer>,
    division: Division,
    /// Of the blocks, if each of several threads has one.
    race: Option<Race>,
    threads: usize,
    /// Words of a block's activations between two layers.
    buffer: usize,
    /// A thread's for AMX.
    memory: amx::Memory,
    /// Two such buffers for all threads.
    shared: Scratch,
}

/// Of a weight's elements.
fn bytes(weight: &Matrix) -> usize {
    weight.rows * weight.k * weight.element.size()
}

/// A block of rows and where its activations lie.
struct Block {
    rows: Range<usize>,
    buffers: *mut f32,
}

/// What is written behind a tile, or soon: the output's rows, or panels, in fp32.
fn written_next(to: &Finish, place: Place) -> Lines {
    let (row, width) = (place.panel * LANES, width(to.rows, place.panel));
    if to.output.is_null() {
        let at = to.panels.wrapping_add(row * to.n + place.column * width);
        return Lines { at, row: width, vector: VECTOR };
    }
    let line = place.column / VECTOR * VECTOR;
    let at = to.output.cast::<f32>().wrapping_add(row * to.n + line);
    // Rows of the output are lanes of the tile, but as many lines.
    Lines { at, row: width / VECTOR * to.n, vector: to.n }
}

impl Chain {
    pub fn new(kernels: Kernels, input: Matrix, layers: Vec<Layer>, threads: usize) -> Self {
        let depth = |layer: &Layer| steps(kernels.math, layer.weight.k);
        let widest = layers.iter().map(depth).max().unwrap_or(1);
        let largest = layers.iter().map(|layer| bytes(&layer.weight)).max().unwrap_or(0);
        let uneven = threads > 1 && balance::is_uneven();
        let rows = input.rows;
        let division =
            Division::new(kernels, rows, widest, largest, threads, uneven, caches::caches());
        let race = (threads > 1 && division.is_one_each(threads)).then(|| Race::new(threads));
        let block = match &division {
            Division::Rows(blocks) => blocks.iter().map(Range::len).max().unwrap_or(0),
            Division::Columns(block) => (*block).min(input.rows),
        };
        let buffer = words(block, widest);
        let shared = match division {
            Division::Rows(_) => Scratch::new(0),
            Division::Columns(_) => Scratch::new(4 * 2 * buffer),
        };
        let memory = match kernels.math {
            Math::Amx(planes) => layers
                .iter()
                .map(|layer| amx::Memory::of(planes, layer.weight.k, count(block)))
                .fold(amx::Memory::default(), amx::Memory::max),
            _ => amx::Memory::default(),
        };
        Self { kernels, input, layers, division, race, threads, buffer, memory, shared }
    }

    #[cfg(test)]
    pub fn race(&self) -> Option<&Race> {
        self.race.as_ref()
    }

    /// Whether threads need `Tiles`.
    pub fn on_amx(&self) -> bool {
        matches!(self.kernels.math, Math::Amx(_))
    }

    /// By rows one stage of all blocks, else for each block one stage for turning
    /// its input and one for each layer.
    pub fn tasks(&self) -> Vec<usize> {
        let rows = self.input.rows;
        match self.division {
            Division::Rows(ref blocks) => vec![blocks.len()],
            Division::Columns(block) => (0..rows.div_ceil(block))
                .flat_map(|i| {
                    let rows = self.rows(block, i).len();
                    let layers = 0..self.layers.len();
                    std::iter::once(self.turns(rows))
                        .chain(layers.map(move |layer| self.grid(rows, layer).tasks()))
                })
                .collect(),
        }
    }

    fn rows(&self, block: usize, i: usize) -> Range<usize> {
        i * block..((i + 1) * block).min(self.input.rows)
    }

    /// Tasks that turn the input of so many rows.
    fn turns(&self, rows: usize) -> usize {
        count(rows) * steps(self.kernels.math, self.input.k).div_ceil(TURNED)
    }

    /// Columns that become one step of the next layer stay together.
    fn unit(&self) -> usize {
        match self.kernels.math {
            Math::Fma => 1,
            Math::Dot => 2,
            Math::Amx(_) => DEPTH,
        }
    }

    fn grid(&self, rows: usize, layer: usize) -> Grid {
        let weight = &self.layers[layer].weight;
        let threads = match self.division {
            Division::Rows(_) => 1,
            Division::Columns(_) => self.threads,
        };
        if let Math::Amx(planes) = self.kernels.math {
            return Grid::copying(rows, weight.rows, amx::most_columns(planes), DEPTH, threads);
        }
        let tile = tile_rows(self.kernels.isa, self.row_bytes(weight));
        Grid::new(rows, weight.rows, tile, self.unit(), threads)
    }

    /// Whether tiles read a copy of the weight's rows in fp32.
    fn widens(&self, weight: &Matrix) -> bool {
        self.kernels.math == Math::Fma && weight.element != Element::F32
    }

    /// Bytes from one row to the next, as tiles read them.
    fn row_bytes(&self, weight: &Matrix) -> usize {
        match self.widens(weight) {
            true => 4 * padded_words(weight.k),
            false => weight.stride * weight.element.size(),
        }
    }

    /// Whether tiles do all that a layer does to its sums, but turning them.
    fn in_registers(&self) -> bool {
        let Kernels { isa, math } = self.kernels;
        Then::is_of(isa, math) && self.input.element == Element::F32
    }

    /// Whether outputs are turned from panels, cache line by cache line of each row: a
    /// thread has all tiles of its panels, while a tile's columns seldom are whole lines.
    fn turns_panels(&self) -> bool {
        self.in_registers() && matches!(self.division, Division::Rows(_))
    }

    /// Words that a thread needs for some rows of a weight.
    fn own_words(&self) -> usize {
        if self.on_amx() {
            return self.memory.bytes() / 4;
        }
        let widened = self.layers.iter().map(|layer| &layer.weight).filter(|w| self.widens(w));
        let words = widened.map(|weight| {
            let row = padded_words(weight.k);
            tile_rows(self.kernels.isa, 4 * row) * row
        });
        words.max().unwrap_or(0)
    }

    /// What a thread needs for itself: some rows of a weight and, if blocks are its
    /// own, their buffers.
    pub fn own_scratch(&self) -> Scratch {
        let buffers = match self.division {
            Division::Rows(_) => 2 * self.buffer,
            Division::Columns(_) => 0,
        };
        Scratch::new(4 * (self.own_words() + buffers))
    }

    /// Input of layer `layer`.
    fn panels(&self, block: &Block, layer: usize) -> *mut f32 {
        block.buffers.wrapping_add(layer % 2 * self.buffer)
    }

    /// # Safety
    /// As promised to `Forward::new`; the stages before are done, no other thread
    /// runs this task or uses `own`, which is `own_scratch`'s.
    pub unsafe fn run(&self, stage: usize, task: usize, own: &Scratch) {
        let own = own.address().cast::<f32>();
        // SAFETY: forwarded; each buffer has room for a block.
        unsafe {
            match self.division {
                Division::Rows(ref blocks) => {
                    let began = Instant::now();
                    let rows = blocks[task].clone();
                    let buffers = own.add(self.own_words());
                    let block = Block { rows, buffers };
                    for task in 0..self.turns(block.rows.len()) {
                        self.turn(&block, task);
                    }
                    for layer in 0..self.layers.len() {
                        for task in 0..self.grid(block.rows.len(), layer).tasks() {
                            self.layer(&block, layer, task, own);
                        }
                    }
                    if let Some(race) = &self.race {
                        balance::finished(race, began);
                    }
                }
                Division::Columns(block) => {
                    let stages = 1 + self.layers.len();
                    let rows = self.rows(block, stage / stages);
                    let block = Block { rows, buffers: self.shared.address().cast() };
                    match (stage % stages).checked_sub(1) {
                        None => self.turn(&block, task),
                        Some(layer) => self.layer(&block, layer, task, own),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn turn(&self, block: &Block, task: usize) {
        let rows = &block.rows;
        let Kernels { isa, math } = self.kernels;
        let all = steps(math, self.input.k);
        let parts = all.div_ceil(TURNED);
        let range = task % parts * TURNED..(task % parts * TURNED + TURNED).min(all);
        // SAFETY: rows of the input; a buffer has room for a block.
        unsafe {
            let data = self.input.row(rows.start);
            let source = Matrix { data, rows: rows.len(), ..self.input };
            panels::pack(isa, math, &source, task / parts, range, self.panels(block, 0));
        }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn layer(&self, block: &Block, index: usize, task: usize, own: *mut f32) {
        let rows = &block.rows;
        let Kernels { isa, math } = self.kernels;
        let layer = &self.layers[index];
        let Matrix { rows: n, k, element, .. } = layer.weight;
        let grid = self.grid(rows.len(), index);
        let columns = part(n, self.unit(), grid.columns, task / grid.chunks);
        let chunk = part(count(rows.len()), 1, grid.chunks, task % grid.chunks);
        let last = index + 1 == self.layers.len();
        let output = if layer.output.is_null() {
            layer.output
        } else {
            layer.output.wrapping_add(rows.start * n * element.size())
        };
        let mut to = Finish {
            element,
            bias: layer.bias,
            relu: layer.relu,
            rows: rows.len(),
            n,
            panels: match last && !(self.turns_panels() && words(rows.len(), n) <= self.buffer) {
                true => std::ptr::null_mut(),
                false => self.panels(block, index + 1),
            },
            math,
            output,
        };
        #[cfg(target_arch = "x86_64")]
        if let Math::Amx(planes) = math {
            let input = self.panels(block, index);
            let weight = &layer.weight;
            let task = amx::Task { planes, weight, columns, panels: chunk, input, to: &to };
            // SAFETY: forwarded.
            unsafe { task.run(self.memory, own.cast()) };
            return;
        }
        // What the tile does to its sums in registers; from there they go right into panels.
        let in_registers = self.in_registers();
        let bias = match to.bias.is_null() {
            true => std::ptr::null(),
            false => to.bias.cast::<f32>().wrapping_add(columns.start),
        };
        let then = if in_registers { Then { bias, relu: to.relu } } else { Then::NOTHING };
        // Minus zero becomes zero there: only behind a sum or a ReLU, which have it so too.
        let direct = in_registers
            && (then.relu || !then.bias.is_null())
            && !to.panels.is_null()
            && (to.output.is_null() || self.turns_panels());
        if in_registers {
            (to.bias, to.relu) = (std::ptr::null(), false);
        }
        let all = steps(math, k);
        let mut sums = Sums::new();
        // SAFETY: columns and panels of the layer; `own` has room for the columns.
        unsafe {
            let (p, row) = self.factors(&layer.weight, &columns, own);
            let (first, soon) = (chunk.start, self.soon(index, columns.end));
            for panel in chunk {
                let width = width(rows.len(), panel);
                let place = Place { panel, column: columns.start, columns: columns.len() };
                let factors = Factors {
                    p,
                    row,
                    step: 4,
                    v: self.panels(block, index).add(panel * LANES * all),
                    v_step: width,
                    depth: if math == Math::Dot { k / 2 } else { k },
                    half: math == Math::Dot && k % 2 == 1,
                    soon: if panel == first { soon } else { std::ptr::null() },
                    target: direct.then(|| Target {
                        at: to.panels.add(panel * LANES * n + columns.start * width),
                        stride: width,
                    }),
                    next: in_registers.then(|| written_next(&to, place)),
                    then,
                };
                tile::run(isa, math, columns.len(), width, &factors, &mut sums);
                if !direct {
                    finish::tile(isa, &to, place, &mut sums);
                } else if !to.output.is_null() {
                    finish::turn_complete(&to, place);
                }
            }
        }
    }

    /// Where the rows of a weight that is copied first go on, or behind the last one the
    /// next layer's begin; null for one that tiles read as it is.
    fn soon(&self, layer: usize, row: usize) -> *const u8 {
        let (layer, row) =
            if row < self.layers[layer].weight.rows { (layer, row) } else { (layer + 1, 0) };
        match self.layers.get(layer).map(|layer| &layer.weight) {
            Some(weight) if self.widens(weight) => {
                weight.data.wrapping_add(row * weight.stride * weight.element.size())
            }
            _ => std::ptr::null(),
        }
    }

    /// Address and distance in bytes of rows of a weight, as the tiles read them.
    ///
    /// # Safety
    /// The rows exist, `own` has room for `own_words`.
    unsafe fn factors(
        &self,
        weight: &Matrix,
        rows: &Range<usize>,
        own: *mut f32,
    ) -> (*const u8, usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.widens(weight) {
                return (weight.row(rows.start), self.row_bytes(weight));
            }
            let bytes = self.row_bytes(weight);
            panels::widen(self.kernels.isa, weight, rows.clone(), own, bytes / 4);
            (own.cast(), bytes)
        }
    }
}
