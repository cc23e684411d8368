//! Finishing in AVX-512.

use std::arch::x86_64::*;

use super::super::amx;
use super::super::amx::planes::store;
use super::super::avx512::{first_lanes, load, passes_relu, turn};
use super::super::element::Element;
use super::super::panels::{steps, width, VECTOR};
use super::super::tile::ROWS;
use super::{Finish, Math, Place, Sums, LANES};

/// # Safety
/// As for `finish::tile`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn tile(finish: &Finish, place: Place, sums: &mut Sums) {
    let vectors = width(finish.rows, place.panel) / VECTOR;
    // SAFETY: forwarded.
    unsafe {
        if let (Math::Amx(planes), false) = (finish.math, finish.panels.is_null()) {
            match planes {
                1 => to_depth::<1>(finish, place, sums, vectors),
                2 => to_depth::<2>(finish, place, sums, vectors),
                _ => to_depth::<3>(finish, place, sums, vectors),
            }
        } else {
            let bias = biases(finish, place);
            // The tile has done all that fp32 needs.
            let done = finish.element == Element::F32 && bias.is_none() && !finish.relu;
            let columns = if done { 0 } else { place.columns };
            for (i, sums) in sums.0.iter_mut().enumerate().take(columns) {
                for n in 0..vectors {
                    let at = sums.as_mut_ptr().add(VECTOR * n);
                    let bias = bias.as_ref().map(|bias| bias[i]);
                    let value = value(finish, bias, _mm512_loadu_ps(at));
                    _mm512_storeu_ps(at, rounded(finish.element, value));
                }
            }
            if !finish.panels.is_null() {
                to_panels(finish, place, sums, vectors);
            }
        }
        if !finish.output.is_null() {
            let columns = Columns { at: sums.0[0].as_ptr(), step: LANES, readable: ROWS };
            to_rows(finish, place, columns);
        }
    }
}

/// Columns of a panel in fp32 to rows.
///
/// # Safety
/// As for `finish::tile`; the panel has these columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn panel_to_rows(finish: &Finish, place: Place) {
    let width = width(finish.rows, place.panel);
    // SAFETY: forwarded.
    unsafe {
        let panel = finish.panels.add(place.panel * LANES * finish.n);
        let at = panel.add(place.column * width);
        to_rows(finish, place, Columns { at, step: width, readable: place.columns });
    }
}

/// A tile's biases as fp32, or none: read one by one they take longer than the rest.
///
/// # Safety
/// As for `finish::tile`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn biases(finish: &Finish, place: Place) -> Option<[f32; ROWS]> {
    if finish.bias.is_null() {
        return None;
    }
    let mut biases = [0.0; ROWS];
    let size = finish.element.size();
    for begin in (0..place.columns).step_by(VECTOR) {
        // SAFETY: so many columns from this one on; `ROWS` is two vectors.
        unsafe {
            let at = finish.bias.add((place.column + begin) * size);
            let lanes = load(finish.element, at, (place.columns - begin).min(VECTOR));
            _mm512_storeu_ps(biases.as_mut_ptr().add(begin), lanes);
        }
    }
    Some(biases)
}

/// Bias and ReLU.
#[inline]
#[target_feature(enable = "avx512f")]
fn value(finish: &Finish, bias: Option<f32>, sum: __m512) -> __m512 {
    let mut value = sum;
    if let Some(bias) = bias {
        value = _mm512_add_ps(value, _mm512_set1_ps(bias));
    }
    if finish.relu {
        value = _mm512_maskz_mov_ps(passes_relu(value), value);
    }
    value
}

/// The nearest numbers of the type, as fp32.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(element: Element, value: __m512) -> __m512 {
    match element {
        Element::F32 => value,
        Element::Bf16 => {
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let nearest = _mm512_add_epi32(bits, up);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let bits = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x40_0000));
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(bits, upper))
        }
        Element::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value)),
    }
}

/// # Safety
/// As for `finish::tile`.
#[target_feature(enable = "avx512f")]
unsafe fn to_panels(finish: &Finish, place: Place, sums: &Sums, vectors: usize) {
    let all = steps(finish.math, finish.n);
    let width = VECTOR * vectors;
    // SAFETY: the panel has these steps and lanes.
    unsafe {
        let panel = finish.panels.add(place.panel * LANES * all);
        match finish.math {
            Math::Fma => {
                for (i, sums) in sums.0.iter().enumerate().take(place.columns) {
                    let out = panel.add((place.column + i) * width);
                    for n in 0..vectors {
                        let at = sums.as_ptr().add(VECTOR * n);
                        _mm512_storeu_ps(out.add(VECTOR * n), _mm512_loadu_ps(at));
                    }
                }
            }
            Math::Dot => {
                let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                for i in (0..place.columns).step_by(2) {
                    let out = panel.add((place.column + i) / 2 * width);
                    for n in 0..vectors {
                        let at = |i: usize| sums.0[i].as_ptr().add(VECTOR * n).cast();
                        let first = _mm512_srli_epi32::<16>(_mm512_loadu_si512(at(i)));
                        let second = if i + 1 < place.columns {
                            _mm512_and_si512(_mm512_loadu_si512(at(i + 1)), upper)
                        } else {
                            _mm512_setzero_si512()
                        };
                        let pairs = _mm512_or_si512(first, second);
                        _mm512_storeu_si512(out.add(VECTOR * n).cast(), pairs);
                    }
                }
            }
            Math::Amx(_) => unreachable!("`to_depth` writes them"),
        }
    }
}

/// Bias, ReLU, rounding and up to 32 columns as one depth of a panel, zeros behind them,
/// all at once. Pairs are neighbours with one plane, else 16 columns apart, as
/// `amx::left` has them.
///
/// # Safety
/// As for `finish::tile`, of so many planes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn to_depth<const P: usize>(finish: &Finish, place: Place, sums: &mut Sums, vectors: usize) {
    let element = [Element::Bf16, Element::F16, Element::F32][P - 1];
    let width = VECTOR * vectors;
    let all = steps(finish.math, finish.n);
    let depth = place.column / amx::DEPTH * amx::depth_words(P, width);
    let out = finish.panels.wrapping_add(place.panel * LANES * all + depth);
    let keeps = !finish.output.is_null();
    // SAFETY: a row of sums has two vectors; the panel has this depth.
    unsafe {
        let bias = biases(finish, place);
        for step in 0..amx::STEPS {
            let pair = if P == 1 { [2 * step, 2 * step + 1] } else { [step, amx::STEPS + step] };
            for n in 0..vectors {
                let [lower, upper] = pair.map(|column| {
                    if column >= place.columns {
                        return _mm512_setzero_ps();
                    }
                    let at = sums.0[column].as_mut_ptr().add(VECTOR * n);
                    let bias = bias.as_ref().map(|bias| bias[column]);
                    let value = rounded(element, value(finish, bias, _mm512_loadu_ps(at)));
                    if keeps {
                        _mm512_storeu_ps(at, value);
                    }
                    value
                });
                let to = out.add(step * width + VECTOR * n).cast();
                store::<P>(lower, upper, to, 4 * amx::STEPS * width);
            }
        }
    }
}

/// Results of all lanes, column by column.
#[derive(Clone, Copy)]
struct Columns {
    at: *const f32,
    /// Words from one to the next.
    step: usize,
    /// How many can be read.
    readable: usize,
}

/// # Safety
/// As for `finish::tile`, of such columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn to_rows(finish: &Finish, place: Place, from: Columns) {
    let size = finish.element.size();
    let vectors = width(finish.rows, place.panel) / VECTOR;
    for i in 0..place.columns.div_ceil(VECTOR) * vectors {
        let (begin, n) = (i / vectors * VECTOR, i % vectors);
        let mask = first_lanes((place.columns - begin).min(VECTOR));
        let first = place.panel * LANES + n * VECTOR;
        // Behind the last column is whatever was there: the mask keeps to columns.
        let column = |i: usize| {
            // SAFETY: it is readable, and has `vectors`.
            unsafe { _mm512_loadu_ps(from.at.add((begin + i) * from.step + VECTOR * n)) }
        };
        let columns = match begin + VECTOR <= from.readable {
            true => std::array::from_fn(column),
            false => std::array::from_fn(|i| column(i.min(from.readable - begin - 1))),
        };
        let rows = turn(columns);
        for (i, row) in rows.iter().enumerate().take(finish.rows.saturating_sub(first)) {
            // SAFETY: the row exists, the mask keeps to its columns.
            unsafe {
                let place = (first + i) * finish.n + place.column + begin;
                let at = finish.output.add(place * size);
                match finish.element {
                    Element::F32 => _mm512_mask_storeu_ps(at.cast(), mask, *row),
                    Element::Bf16 => {
                        let upper = _mm512_srli_epi32::<16>(_mm512_castps_si512(*row));
                        let halves = _mm512_cvtepi32_epi16(upper);
                        _mm256_mask_storeu_epi16(at.cast(), mask, halves);
                    }
                    Element::F16 => {
                        let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(*row);
                        _mm256_mask_storeu_epi16(at.cast(), mask, halves);
                    }
                }
            }
        }
    }
}
