//! What becomes of a tile's sums: bias, ReLU, one rounding to the element type, then
//! to the panels that the next layer reads, to rows as LibTorch has them, or both.

use super::element::{relu, Element};
use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::panels::VECTOR;
use super::panels::{pair, steps, width};
use super::tile::{Math, Sums, LANES};

/// Where the results of a layer go.
#[derive(Debug, Clone, Copy)]
pub struct Finish {
    /// Type of bias and results.
    pub element: Element,
    /// `[n]`, dense; null for none.
    pub bias: *const u8,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub n: usize,
    /// The next layer's input; null for none.
    pub panels: *mut f32,
    /// What the next layer multiplies with, hence the form of its panels.
    pub math: Math,
    /// `[rows, n]`, dense; null for none.
    pub output: *mut u8,
}

/// The place of a tile: `columns` of the result from `column` on for the rows of one
/// panel.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Which panel of rows.
    pub panel: usize,
    /// First column.
    pub column: usize,
    /// How many.
    pub columns: usize,
}

/// Finishes one tile; its sums are overwritten.
///
/// # Safety
/// The addresses are valid for their shapes, those written to are nobody else's at
/// these places; `place` is inside; for pairs `column` is even, and `columns` too but
/// at the end; the CPU has `isa`.
pub unsafe fn tile(isa: Isa, finish: &Finish, place: Place, sums: &mut Sums) {
    debug_assert!(place.column + place.columns <= finish.n);
    // SAFETY: forwarded.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::tile(finish, place, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if finish.math == Math::Fma => avx2::tile(finish, place, sums),
            _ => portable(finish, place, sums),
        }
    }
}

/// To the output's rows of fp32: the columns of which a tile, whose results lie in a panel,
/// has made sixteen complete, a cache line of each row. AVX-512 alone.
///
/// # Safety
/// As for [`tile`]; the panel has all columns up to this tile's last one.
pub unsafe fn turn_complete(finish: &Finish, tile: Place) {
    #[cfg(target_arch = "x86_64")]
    {
        debug_assert!(finish.element == Element::F32 && finish.math == Math::Fma);
        let column = tile.column / VECTOR * VECTOR;
        let end = tile.column + tile.columns;
        let end = if end == finish.n { end } else { end / VECTOR * VECTOR };
        if column < end {
            let place = Place { column, columns: end - column, ..tile };
            // SAFETY: forwarded.
            unsafe { avx512::panel_to_rows(finish, place) }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("AVX-512 alone: {finish:?}, {tile:?}");
}

/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn portable(finish: &Finish, place: Place, sums: &mut Sums) {
    let element = finish.element;
    for (i, sums) in sums.0.iter_mut().enumerate().take(place.columns) {
        let bias = if finish.bias.is_null() {
            None
        } else {
            // SAFETY: the column exists.
            Some(unsafe { element.read(finish.bias.add((place.column + i) * element.size())) })
        };
        for sum in sums.iter_mut() {
            let mut value = bias.map_or(*sum, |bias| *sum + bias);
            if finish.relu {
                value = relu(value);
            }
            *sum = match element {
                Element::F32 => value,
                _ => element.widened(element.rounded(value)),
            };
        }
    }
    // SAFETY: forwarded.
    unsafe {
        if !finish.panels.is_null() {
            to_panels(finish, place, sums);
        }
        if !finish.output.is_null() {
            to_rows(finish, place, sums);
        }
    }
}

/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn to_panels(finish: &Finish, place: Place, sums: &Sums) {
    let width = width(finish.rows, place.panel);
    let all = steps(finish.math, finish.n);
    let per_step = if finish.math == Math::Dot { 2 } else { 1 };
    for i in (0..place.columns).step_by(per_step) {
        let step = (place.column + i) / per_step;
        let zero = [0.0; LANES];
        let (lower, upper) =
            (&sums.0[i], if i + 1 < place.columns { &sums.0[i + 1] } else { &zero });
        for lane in 0..width {
            let value = match finish.math {
                Math::Fma => lower[lane],
                Math::Dot => pair(lower[lane], upper[lane]),
                Math::Amx(_) => unreachable!("AVX-512 alone"),
            };
            // SAFETY: the panel has this step and lane.
            unsafe {
                *finish.panels.add(place.panel * LANES * all + step * width + lane) = value;
            }
        }
    }
}

/// # Safety
/// As for [`tile`].
unsafe fn to_rows(finish: &Finish, place: Place, sums: &Sums) {
    let first = place.panel * LANES;
    for lane in 0..(finish.rows - first).min(LANES) {
        let at = (first + lane) * finish.n + place.column;
        for (i, sums) in sums.0.iter().enumerate().take(place.columns) {
            // SAFETY: the row and column exist.
            unsafe {
                match finish.element {
                    Element::F32 => *finish.output.cast::<f32>().add(at + i) = sums[lane],
                    element => {
                        *finish.output.cast::<u16>().add(at + i) = element.rounded(sums[lane]);
                    }
                }
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
