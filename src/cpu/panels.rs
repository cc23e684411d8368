//! A matrix `[rows, k]` turned so that its rows are the lanes of vectors: panels of
//! 32 rows, `[step][lane]` each, the last of 16 where that is enough. A step is one
//! fp32 or, for `vdpbf16ps`, a pair of bfloat16. Lanes without a row are zero.
//!
//! Turning the input of a chain instead of its weights is what makes packed weights
//! unnecessary: a product of two matrices needs one factor turned and one as it
//! lies, the input is the smaller, and results come out turned for the next layer.

use std::ops::Range;

use super::amx;
use super::element::Element;
use super::isa::Isa;
use super::tile::{Math, LANES};

/// Lanes of one AVX-512 vector, the unit of a panel's width.
pub const VECTOR: usize = 16;

/// A matrix with unit stride along K.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Its first element.
    pub data: *const u8,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub k: usize,
    /// Type of the elements.
    pub element: Element,
}

impl Matrix {
    /// Address of a row's first element.
    ///
    /// # Safety
    /// The matrix has that row.
    #[must_use]
    pub unsafe fn row(&self, row: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { self.data.add(row * self.stride * self.element.size()) }
    }
}

/// Steps of `k` factors.
#[must_use]
pub fn steps(math: Math, k: usize) -> usize {
    match math {
        Math::Fma => k,
        Math::Dot => k.div_ceil(2),
        Math::Amx(planes) => amx::depths(k) * planes * amx::STEPS,
    }
}

/// Four-byte words of all panels.
#[must_use]
pub fn words(rows: usize, steps: usize) -> usize {
    rows.next_multiple_of(VECTOR) * steps
}

/// How many there are.
#[must_use]
pub fn count(rows: usize) -> usize {
    rows.div_ceil(LANES)
}

/// Lanes of one panel.
#[must_use]
pub fn width(rows: usize, panel: usize) -> usize {
    (rows.next_multiple_of(VECTOR) - panel * LANES).min(LANES)
}

/// Writes `steps` of panel `panel`; `panels` is the first one's address.
///
/// # Safety
/// `source` and `panels` are valid for their shapes, the latter aligned to 64 bytes;
/// nothing else accesses what is written; the CPU has `isa`. For `Math::Dot` the
/// elements are bfloat16; for `Math::Amx` the range is whole depths.
pub unsafe fn pack(
    isa: Isa,
    math: Math,
    source: &Matrix,
    panel: usize,
    range: Range<usize>,
    panels: *mut f32,
) {
    let all = steps(math, source.k);
    debug_assert!(range.end <= all && panel < count(source.rows));
    #[cfg(target_arch = "x86_64")]
    if let Math::Amx(planes) = math {
        let depths = range.start / (planes * amx::STEPS)..range.end / (planes * amx::STEPS);
        // SAFETY: forwarded.
        unsafe {
            let out = panels.add(panel * LANES * all);
            amx::right::turned(planes, source, panel, depths, out);
        }
        return;
    }
    let width = width(source.rows, panel);
    for group in 0..width / VECTOR {
        let first = panel * LANES + group * VECTOR;
        let rows = source.rows.saturating_sub(first).min(VECTOR);
        // SAFETY: panels in front are 32 wide, this one `width`; rows from `first` on.
        unsafe {
            let out = panels.add(panel * LANES * all + group * VECTOR);
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::pack(math, source, first, rows, range.clone(), out, width),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 if math == Math::Fma => {
                    x86::pack_avx2(source, first, rows, range.clone(), out, width);
                }
                _ => portable(math, source, first, rows, range.clone(), out, width),
            }
        }
    }
}

/// Sixteen lanes: `rows` rows from `first` on, zeros behind them.
///
/// # Safety
/// As for [`pack`]; `out` is the address of step 0 of these lanes.
unsafe fn portable(
    math: Math,
    source: &Matrix,
    first: usize,
    rows: usize,
    range: Range<usize>,
    out: *mut f32,
    width: usize,
) {
    for step in range {
        for lane in 0..VECTOR {
            // SAFETY: the row and column exist, or nothing is read.
            unsafe {
                let read = |k: usize| {
                    if lane < rows && k < source.k {
                        source.element.read(source.row(first + lane).add(k * source.element.size()))
                    } else {
                        0.0
                    }
                };
                let value = match math {
                    Math::Fma => read(step),
                    Math::Dot => pair(read(2 * step), read(2 * step + 1)),
                    Math::Amx(_) => unreachable!("packed above"),
                };
                *out.add(step * width + lane) = value;
            }
        }
    }
}

/// Two numbers that are bfloat16 already, the first in the lower half.
#[inline(always)]
pub fn pair(lower: f32, upper: f32) -> f32 {
    f32::from_bits(lower.to_bits() >> 16 | upper.to_bits() & 0xffff_0000)
}

/// Rows as fp32, `stride` elements apart.
///
/// # Safety
/// The matrix has the rows; `out` has room for them; the CPU has `isa`.
pub unsafe fn widen(isa: Isa, source: &Matrix, rows: Range<usize>, out: *mut f32, stride: usize) {
    for (place, row) in rows.enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let (from, out) = (source.row(row), out.add(place * stride));
            match (source.element, isa) {
                (Element::F32, _) => {
                    std::ptr::copy_nonoverlapping(from.cast::<f32>(), out, source.k);
                }
                #[cfg(target_arch = "x86_64")]
                (_, Isa::Avx512) => x86::widen_avx512(source.element, from, source.k, out),
                #[cfg(target_arch = "x86_64")]
                (element, Isa::Avx2) => x86::widen_avx2(element, from, source.k, out),
                _ => {
                    for k in 0..source.k {
                        *out.add(k) = source.element.read(from.add(2 * k));
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;
