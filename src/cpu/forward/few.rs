//! The chain on few rows: activations in rows of fp32.

use super::super::element::Element;
use super::super::few_rows;
use super::super::isa::Isa;
use super::super::panels::{self, Matrix};
use super::super::scratch::Scratch;
use super::{part, Layer};

/// Columns that a task takes at least: one tile of one row.
const UNIT: usize = 16;

/// Tasks of a layer for each thread.
const PARTS: usize = 2;

pub struct Chain {
    isa: Isa,
    input: Matrix,
    layers: Vec<few_rows::Layer>,
    tasks: Vec<usize>,
    /// The input as fp32; null where it is.
    widened: *mut f32,
    _scratch: Scratch,
}

impl Chain {
    pub fn new(isa: Isa, input: Matrix, layers: Vec<Layer>, threads: usize) -> Self {
        let (rows, element) = (input.rows, input.element);
        let narrow = element != Element::F32;
        let widest = layers.iter().map(|layer| layer.weight.rows).max().unwrap_or(0);
        let of_input = if narrow { (rows * input.k).next_multiple_of(16) } else { 0 };
        let of_layer = (rows * widest).next_multiple_of(16);
        let scratch = Scratch::new(4 * (of_input + 2 * of_layer));
        let words = scratch.address().cast::<f32>();
        let buffer = |i: usize| words.wrapping_add(of_input + i % 2 * of_layer);
        let mut from = if narrow { words.cast_const() } else { input.data.cast() };
        let mut stride = if narrow { input.k } else { input.stride };
        let mut chain = Vec::with_capacity(layers.len());
        for (i, layer) in layers.iter().enumerate() {
            let last = i + 1 == layers.len();
            // fp32 outputs are the next layer's input themselves.
            let wide = if last || (!narrow && !layer.output.is_null()) {
                std::ptr::null_mut()
            } else {
                buffer(i)
            };
            chain.push(few_rows::Layer {
                input: from,
                input_stride: stride,
                rows,
                k: layer.weight.k,
                weight: layer.weight.data,
                weight_stride: layer.weight.stride,
                bias: layer.bias,
                element,
                output: layer.output,
                wide,
                n: layer.weight.rows,
                relu: layer.relu,
            });
            from = if wide.is_null() { layer.output.cast() } else { wide };
            stride = layer.weight.rows;
        }
        let parts = |layer: &few_rows::Layer| match threads {
            1 => 1,
            _ => layer.n.div_ceil(UNIT).min(PARTS * threads),
        };
        let tasks = std::iter::once(usize::from(narrow)).chain(chain.iter().map(parts)).collect();
        let widened = if narrow { words } else { std::ptr::null_mut() };
        Self { isa, input, layers: chain, tasks, widened, _scratch: scratch }
    }

    pub fn tasks(&self) -> Vec<usize> {
        self.tasks.clone()
    }

    /// # Safety
    /// As promised to `Forward::new`; the stage before is done, no other thread
    /// runs this task.
    pub unsafe fn run(&self, stage: usize, task: usize) {
        // SAFETY: the caller's promise; the scratch memory is as large as the layers.
        unsafe {
            match stage.checked_sub(1) {
                None => {
                    let Matrix { rows, k, .. } = self.input;
                    panels::widen(self.isa, &self.input, 0..rows, self.widened, k);
                }
                Some(layer) => {
                    let parts = self.tasks[stage];
                    let layer = &self.layers[layer];
                    few_rows::run(layer, part(layer.n, UNIT, parts, task), self.isa);
                }
            }
        }
    }
}
