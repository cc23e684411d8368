//! The products of one task, and what becomes of them.

use std::ops::Range;

use super::super::super::amx::again::{self, Left, Panel};
use super::super::super::amx::left::{copy_rows, Tiled};
use super::super::super::amx::product::{self, Copied, Factors};
use super::super::super::amx::{depth_words, depths, group_bytes, DEPTH, GROUP, ROWS, TILE};
use super::super::super::element::Element;
use super::super::super::finish::{self, Finish, Place};
use super::super::super::isa::Isa;
use super::super::super::panels::{width, Matrix};
use super::super::super::tile::{Sums, LANES};
use super::super::part;
use super::{most_columns, parts, Memory};

/// Tiles of k that are kept of a copy that is read once.
const RING: usize = 4;

/// Panels up to which a copy of bfloat16 does not pay. A step of 32 x 32 sums takes 35 ns
/// from a copy, 50 to 60 from rows far apart, and copying 75.
const IN_PLACE: usize = 6;

/// One task of a layer.
pub struct Task<'a> {
    pub planes: usize,
    pub weight: &'a Matrix,
    /// Whole tiles from a multiple of 32 on, at most [`most_columns`].
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
        debug_assert!(
            self.columns.len() <= most_columns(planes) && self.columns.start.is_multiple_of(ROWS)
        );
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
                        (panel - self.panels.start) * most_columns(planes) / ROWS + tile
                    } else {
                        0
                    };
                    // SAFETY: as many sums as `memory` counts; a tile of this layer.
                    unsafe {
                        let sums = &mut *stored.add(place);
                        let left = own.add(tile * ROWS / GROUP * group);
                        let first = panel == self.panels.start;
                        let (left, copied) = if self.in_place(&columns) {
                            if first && !weight.k.is_multiple_of(DEPTH) {
                                copy_rows::<1>(
                                    weight,
                                    column,
                                    columns.clone(),
                                    all - 1,
                                    left,
                                    TILE,
                                );
                            }
                            (Tiled::in_place(weight, columns.clone(), depths.start, left), None)
                        } else {
                            // Rows behind the last are whatever was there: nobody reads
                            // their sums.
                            let copied = first.then_some(Copied {
                                source: weight,
                                first: column,
                                depth: depths.start,
                                to: left,
                            });
                            (Tiled::blocks(left, planes, kept), copied)
                        };
                        let factors = Factors {
                            planes,
                            left,
                            right: panel_data.add(depths.start * per_depth),
                            width,
                            depths: depths.len(),
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

    /// Whether tiles are read from the weight itself: bfloat16 in whole groups of rows,
    /// where few panels would read a copy.
    fn in_place(&self, columns: &Range<usize>) -> bool {
        self.planes == 1 && self.panels.len() <= IN_PLACE && columns.len().is_multiple_of(GROUP)
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
