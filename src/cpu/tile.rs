//! The innermost product: `sums[r][lane] = Σ p[r][k] · v[k][lane]` for up to
//! [`ROWS`] rows and [`LANES`] lanes, the sums in registers from the first step
//! to the last. Each sum takes its products in the order of `k`, one FMA each, so
//! its bits depend neither on the tile's size nor on the instruction set.

use super::isa::Isa;

/// Most rows of any tile.
pub const ROWS: usize = 48;
/// Most lanes of a tile, and the width of a panel.
pub const LANES: usize = 32;

/// Most rows of an instruction set's tiles. With two vectors of lanes fourteen are 28
/// sums of AVX-512's 32 registers, three more for the operands; AVX2 computes a tile
/// in parts.
#[must_use]
pub const fn most_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 14,
        _ => ROWS,
    }
}

/// Rows of a tile that fill the registers once, or AVX2's twice.
#[must_use]
pub const fn few_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx2 => 12,
        _ => 14,
    }
}

/// Where the factors lie. Steps of both count four bytes' worth of factors: one
/// fp32 or a pair of bfloat16.
#[derive(Debug, Clone, Copy)]
pub struct Factors {
    /// The factor that is the same for all lanes, of row 0 and step 0.
    pub p: *const u8,
    /// Bytes from one row to the next.
    pub row: usize,
    /// Bytes from one step to the next. Either this or `row` is 4.
    pub step: usize,
    /// The factors of all lanes, of step 0: fp32 or pairs.
    pub v: *const f32,
    /// Four-byte words from one step to the next.
    pub v_step: usize,
    /// Steps.
    pub depth: usize,
    /// Behind them half a step: the first of a pair alone (pairs in rows only).
    pub half: bool,
    /// What is read soon: brought near meanwhile by AVX-512's tile, in place of the rows' own
    /// factors. Null for nothing; need not be valid.
    pub soon: *const u8,
    /// Where all lanes are stored, minus zero as zero, if not in `Sums` (not by the scalar
    /// tile).
    pub target: Option<Target>,
    /// What is written next: most often it is in no cache, and AVX-512's tile brings it near
    /// meanwhile.
    pub next: Option<Lines>,
    /// Bias and ReLU, in fp32 where [`Then::is_of`] says so.
    pub then: Then,
}

/// Where a tile's sums go.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Row 0 and lane 0.
    pub at: *mut f32,
    /// From one row to the next, in elements.
    pub stride: usize,
}

/// A cache line for each row of a tile and vector of its lanes.
#[derive(Debug, Clone, Copy)]
pub struct Lines {
    /// In the first one. Need not be valid.
    pub at: *const f32,
    /// From one row's to the next one's, in elements.
    pub row: usize,
    /// From one vector's to the next one's.
    pub vector: usize,
}

/// What becomes of a tile's sums before they leave the registers.
#[derive(Debug, Clone, Copy)]
pub struct Then {
    /// Added to the sums of each row; null for nothing.
    pub bias: *const f32,
    /// Whether a ReLU follows.
    pub relu: bool,
}

impl Then {
    /// Nothing.
    pub const NOTHING: Self = Self { bias: std::ptr::null(), relu: false };

    /// Whether a tile can do it: AVX-512's alone.
    #[must_use]
    pub fn is_of(isa: Isa, math: Math) -> bool {
        (isa, math) == (Isa::Avx512, Math::Fma)
    }
}

impl Factors {
    /// Where the tile stores: its target, or `sums`.
    #[cfg(target_arch = "x86_64")]
    fn destination(&self, sums: &mut Sums) -> Target {
        self.target.unwrap_or(Target { at: sums.0[0].as_mut_ptr(), stride: LANES })
    }
}

/// What a step is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Math {
    /// fp32, FMA.
    Fma,
    /// Pairs of bfloat16, `vdpbf16ps`.
    Dot,
    /// So many bfloat16 an element in the tiles of AMX: not computed here but in `amx`.
    Amx(usize),
}

/// A tile's sums; what lies beyond its rows and lanes is unspecified.
#[repr(align(64))]
pub struct Sums(pub [[f32; LANES]; ROWS]);

impl Sums {
    /// Zeros.
    #[must_use]
    pub fn new() -> Self {
        Self([[0.0; LANES]; ROWS])
    }
}

impl Default for Sums {
    fn default() -> Self {
        Self::new()
    }
}

/// Computes one tile of `rows` rows and `lanes` lanes (16 or 32).
///
/// # Safety
/// `factors` describes valid memory, whose target nobody else accesses; `1 <= rows <=
/// most_rows(isa)`; the CPU has `isa`, and for `Math::Dot` also avx512bf16.
pub unsafe fn run(
    isa: Isa,
    math: Math,
    rows: usize,
    lanes: usize,
    factors: &Factors,
    sums: &mut Sums,
) {
    debug_assert!((1..=most_rows(isa)).contains(&rows) && (lanes == 16 || lanes == LANES));
    debug_assert!(factors.row == 4 || factors.step == 4);
    debug_assert!(Then::is_of(isa, math) || factors.then.bias.is_null() && !factors.then.relu);
    debug_assert!(isa != Isa::Scalar || factors.target.is_none());
    // SAFETY: forwarded.
    unsafe {
        match (isa, math) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Math::Fma) => avx512::fma(rows, lanes, factors, sums),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Math::Dot) => avx512::dot(rows, lanes, factors, sums),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Math::Fma) => avx2::fma(rows, lanes, factors, sums),
            _ => scalar(math, rows, lanes, factors, sums),
        }
    }
}

/// # Safety
/// As for [`run`].
unsafe fn scalar(math: Math, rows: usize, lanes: usize, factors: &Factors, sums: &mut Sums) {
    let upper = |bits: u32| f32::from_bits(bits & 0xffff_0000);
    let lower = |bits: u32| f32::from_bits(bits << 16);
    for (r, sums) in sums.0.iter_mut().enumerate().take(rows) {
        for (lane, sum) in sums.iter_mut().enumerate().take(lanes) {
            *sum = 0.0;
            for k in 0..factors.depth + usize::from(factors.half) {
                // SAFETY: in bounds, by the caller's promise; `p` may be aligned
                // to two bytes alone, half a step has two bytes.
                let (p, v) = unsafe {
                    let p = factors.p.add(r * factors.row + k * factors.step);
                    let v = (*factors.v.add(k * factors.v_step + lane)).to_bits();
                    if k == factors.depth {
                        (u32::from(p.cast::<u16>().read_unaligned()), v)
                    } else {
                        (p.cast::<u32>().read_unaligned(), v)
                    }
                };
                *sum = match math {
                    Math::Fma => f32::from_bits(p).mul_add(f32::from_bits(v), *sum),
                    Math::Amx(_) => unreachable!("has its own tiles"),
                    Math::Dot => lower(p).mul_add(lower(v), upper(p).mul_add(upper(v), *sum)),
                };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests;
