//! How `kernels/tensor_gemm.cu` can do a product: candidates that are timed
//! beside cuBLASLt's algorithms (`launch::tune`).

use std::fmt;

use super::format::Format;
use super::problem::Gemm;

/// What is contiguous in the two operands; the kernels' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// k in both: a forward pass.
    Nn,
    /// k in the left one: the gradient of an input.
    Nt,
    /// k in neither: the gradient of a weight.
    Tt,
}

impl Layout {
    /// In the order of the kernels.
    pub const ALL: [Self; 3] = [Self::Nn, Self::Nt, Self::Tt];

    /// In a kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nn => "nn",
            Self::Nt => "nt",
            Self::Tt => "tt",
        }
    }

    /// Whether there are kernels for it: the tensor cores read TF32 by k alone.
    #[must_use]
    pub fn is_for(self, format: Format) -> bool {
        format != Format::Tf32 || self == Self::Nn
    }

    /// Of a product in column-major notation, whose right operand is our left one.
    fn of(gemm: &Gemm) -> Option<Self> {
        match (gemm.b.transposed, gemm.a.transposed) {
            (false, true) => Some(Self::Nn),
            (false, false) => Some(Self::Nt),
            (true, false) => Some(Self::Tt),
            (true, true) => None,
        }
    }
}

/// Warpgroups (64 rows each) and columns of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Warpgroups.
    pub groups: i64,
    /// Columns.
    pub cols: i64,
}

impl Shape {
    /// Those of the forward kernels; the last three are the others' too.
    pub const ALL: [Self; 5] = [
        Self { groups: 1, cols: 32 },
        Self { groups: 2, cols: 64 },
        Self { groups: 1, cols: 64 },
        Self { groups: 1, cols: 128 },
        Self { groups: 2, cols: 128 },
    ];

    /// Whether there is a kernel for it.
    #[must_use]
    pub fn is_for(self, layout: Layout) -> bool {
        layout == Layout::Nn || self.cols == 128 || (self.groups, self.cols) == (1, 64)
    }

    /// Rows of a block.
    #[must_use]
    pub const fn rows(self) -> i64 {
        64 * self.groups
    }

    /// Threads of a block.
    #[must_use]
    pub const fn threads(self) -> u32 {
        128 * self.groups as u32 + 32
    }

    /// Whether two blocks share a multiprocessor; `Tile::kShares`.
    const fn shares(self) -> bool {
        self.groups == 1 && self.cols < 128
    }

    /// Shared memory of a block: its ring, and room to begin it at a multiple of
    /// 1024.
    #[must_use]
    pub const fn shared_bytes(self) -> u32 {
        let kib = if self.shares() { 96 } else { 200 };
        (kib << 10) + 1024 + 512
    }
}

/// A way to do a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Of the operands.
    pub layout: Layout,
    /// Of a block.
    pub shape: Shape,
    /// Tiles of rows.
    pub row_tiles: i64,
    /// Tiles of columns.
    pub col_tiles: i64,
    /// Whether it begins while the kernel in front ends, where it may.
    pub overlaps: bool,
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layout, shape, overlaps, .. } = self;
        write!(f, "tensor_gemm {}x{} {}", shape.groups, shape.cols, layout.name())?;
        f.write_str(if *overlaps { ", overlapping" } else { "" })
    }
}

/// Those worth timing: every block runs at once.
#[must_use]
pub fn candidates(gemm: &Gemm, multiprocessors: i64) -> Vec<Tiling> {
    let Some(format) = Format::of(gemm.dtype, gemm.math) else { return vec![] };
    let row_of_16 = |ld: i64| ld % (i64::from(format.run()) / 8) == 0;
    let aligned = [gemm.a, gemm.b].iter().all(|o| o.alignment >= 16 && row_of_16(o.ld));
    let fits = |layout: &Layout| layout.is_for(format) && aligned && gemm.ldd == gemm.m;
    let Some(layout) = Layout::of(gemm).filter(fits) else { return vec![] };
    let tiled = |shape: Shape| {
        // With a multiprocessor to itself a block behind cannot begin early, and
        // its first blocks take those that were idle: faster for some shapes only.
        let ways: &[bool] = if layout != Layout::Nn {
            &[false]
        } else if shape.shares() {
            &[true]
        } else {
            &[true, false]
        };
        ways.iter().map(move |&overlaps| Tiling {
            layout,
            shape,
            row_tiles: (gemm.n + shape.rows() - 1) / shape.rows(),
            col_tiles: (gemm.m + shape.cols - 1) / shape.cols,
            overlaps,
        })
    };
    let at_once = |t: &Tiling| {
        let blocks = if t.shape.shares() { 2 } else { 1 };
        t.row_tiles * t.col_tiles <= blocks * multiprocessors
    };
    let shapes = Shape::ALL.into_iter().filter(|shape| shape.is_for(layout));
    shapes.flat_map(tiled).filter(at_once).collect()
}

#[cfg(test)]
mod tests {
    use super::super::problem::{Dtype, Epilogue, Math, Operand};
    use super::*;

    fn gemm(m: i64, n: i64, k: i64, transposed: (bool, bool)) -> Gemm {
        let operand = |transposed, ld| Operand { transposed, ld, alignment: 256 };
        Gemm {
            device: 0,
            dtype: Dtype::Bf16,
            math: Math::Strict,
            split_k: true,
            deterministic: false,
            m,
            n,
            k,
            a: operand(transposed.0, if transposed.0 { k } else { m }),
            b: operand(transposed.1, if transposed.1 { n } else { k }),
            ldd: m,
            d_alignment: 256,
            bias_alignment: 256,
            epilogue: Epilogue::ReluBias,
        }
    }

    #[test]
    fn tiles_cover_and_run_at_once() {
        for (m, n) in [(1, 1), (512, 256), (2048, 1024), (1000, 512), (2048, 512)] {
            let found = candidates(&gemm(m, n, 512, (true, false)), 132);
            assert!(!found.is_empty(), "{m} {n}");
            for t in found {
                assert!(t.row_tiles * t.shape.rows() >= n && t.col_tiles * t.shape.cols >= m);
                assert!(t.row_tiles * t.col_tiles <= 264, "{t}");
            }
        }
        assert_eq!(candidates(&gemm(4096, 4096, 4096, (true, false)), 132), []);
    }

    #[test]
    fn layouts_are_those_of_the_operands() {
        let layouts = |transposed| {
            let found = candidates(&gemm(512, 512, 512, transposed), 132);
            found.iter().map(|t| t.layout).collect::<Vec<_>>()
        };
        assert_eq!(layouts((true, false))[0], Layout::Nn);
        assert!(layouts((false, false)).iter().all(|l| *l == Layout::Nt));
        assert!(layouts((false, true)).iter().all(|l| *l == Layout::Tt));
        assert!(layouts((true, true)).is_empty());
    }

    #[test]
    fn what_the_copy_engine_cannot_read_is_left_alone() {
        let good = gemm(512, 512, 512, (true, false));
        let a = |a| Gemm { a, ..good };
        for bad in [
            a(Operand { ld: 511, ..good.a }),
            a(Operand { alignment: 8, ..good.a }),
            Gemm { dtype: Dtype::F32, ..good },
            Gemm { dtype: Dtype::F32, math: Math::Tf32, ..gemm(512, 512, 512, (false, false)) },
            Gemm { dtype: Dtype::F32, math: Math::Tf32, ..a(Operand { ld: 510, ..good.a }) },
            Gemm { math: Math::Fp16Accumulate, ..good },
            Gemm { ldd: 600, ..good },
        ] {
            assert_eq!(candidates(&bad, 132), [], "{bad}");
        }
    }
}
