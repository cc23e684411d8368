//! The products of one task, and what becomes of them.

use std::ops::Range;

use super::super::super::amx::again::{self, Left, Panel};
use super::super::super::amx::product::{self, Copied, Factors};
use super::super::super::amx::{depth_words, depths, group_bytes, GROUP, ROWS};
use super::super::super::element::Element;
use super::super::super::finish::{self, Finish, Place};
use super::super::super::isa::Isa;
use super::super::super::panels::{width, Matrix};
use super::super::super::tile::{Sums, LANES};
use super::super::part;
use super::{parts, Memory, COLUMNS};

/// Tiles of k that are kept of a copy that is read once.
const RING: usize = 4;

/// One task of a layer.
pub struct Task<'a> {
    pub planes: usize,
    pub weight: &'a Matrix,
    /// Whole tiles from a multiple of 32 on, at most [`COLUMNS`].
    pub columns: Range<usize>,
    /// Of the block's.
    pub panels: Range<usize>,
    /// The block's input.
    pub input: *const f32,
    pub to: &'a Finish,
}

impl Task<'_> {
    /// # Safety
    /// All addresses are valid for their shapes, `own` for `memory`, which is this
    /// layer's at least; nobody else accesses what is written; the thread has `Tiles`.
    pub unsafe fn run(&self, memory: Memory, own: *mut u8) {
        let Self { planes, weight, to, .. } = *self;
        debug_assert!(self.columns.len() <= COLUMNS && self.columns.start.is_multiple_of(ROWS));
        let (all, parts) = (depths(weight.k), parts(planes, weight.k));
        let stored = own.wrapping_add(memory.left).cast::<Sums>();
        for i in 0..parts {
            let depths = part(all, 1, parts, i);
            // What one panel alone reads need not leave the first-level cache.
            let kept = if self.panels.len() == 1 { depths.len().min(RING) } else { depths.len() };
            let group = group_bytes(planes, kept);
            for panel in self.panels.clone() {
                let width = width(to.rows, panel);
                let per_depth = depth_words(planes, width);
                let panel_data = self.input.wrapping_add(panel * LANES * all * per_depth / width);
                for (tile, column) in self.columns.clone().step_by(ROWS).enumerate() {
                    let columns = column..(column + ROWS).min(self.columns.end);
                    let place = if parts > 1 {
                        (panel - self.panels.start) * COLUMNS / ROWS + tile
                    } else {
                        0
                    };
                    // SAFETY: as many sums as `memory` counts; a tile of this layer.
                    unsafe {
                        let sums = &mut *stored.add(place);
                        let left = own.add(tile * ROWS / GROUP * group);
                        // Rows behind the last are whatever was there: nobody reads
                        // their sums.
                        let copied = (panel == self.panels.start).then_some(Copied {
                            source: weight,
                            first: column,
                            depth: depths.start,
                            to: left,
                        });
                        let factors = Factors {
                            planes,
                            left,
                            group,
                            right: panel_data.add(depths.start * per_depth),
                            width,
                            depths: depths.len(),
                            kept,
                        };
                        let sums_at = sums.0[0].as_mut_ptr();
                        product::run(&factors, columns.len(), copied, sums_at, i > 0);
                        if i + 1 == parts {
                            self.finish(columns, panel, panel_data, sums);
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn finish(
        &self,
        columns: Range<usize>,
        panel: usize,
        panel_data: *const f32,
        sums: &mut Sums,
    ) {
        let planes = self.planes;
        // SAFETY: forwarded.
        unsafe {
            // bfloat16 has one plane: its products are what they are.
            if self.weight.element != Element::Bf16 {
                let right = Panel { planes, data: panel_data, width: width(self.to.rows, panel) };
                again::finite(&Left::Rows(self.weight, columns.clone()), &right, sums);
            }
            let place = Place { panel, column: columns.start, columns: columns.len() };
            finish::tile(Isa::Avx512, self.to, place, sums);
        }
    }
}
