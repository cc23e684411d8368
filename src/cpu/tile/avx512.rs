//! The tile in AVX-512.

use std::arch::x86_64::*;

use super::super::avx512::passes_relu;
use super::{Factors, Lines, Sums};

/// Steps that the lanes' factors are fetched ahead, and those of rows beside each other: they
/// stream from the second or third level, and the CPU's own prefetching stops at every page.
const AHEAD: usize = 32;

/// The same of lanes' factors a multiple of 2 KiB apart, in words: they meet in two sets of
/// the first-level cache, whose 24 lines do not hold so many steps.
const AHEAD_IN_TWO_SETS: usize = 8;
const TWO_SETS: usize = 512;

/// The same of rows that lie apart, in bytes: one row's line with each step. Rows that are a
/// multiple of 4 KiB apart end their pages all at once.
const ROW_AHEAD: usize = 256;
/// Steps of a row's line, and its bytes.
const LINE: usize = 16;
const LINE_BYTES: usize = 64;

/// One function for each number of rows, vectors and way through `p`, chosen from
/// a table: the sums are in registers only if their number is a constant.
macro_rules! avx512 {
    ($run:ident, $tile:ident, $features:literal, $mul:expr) => {
        /// # Safety
        /// As for `tile::run`, with the features here.
        pub unsafe fn $run(rows: usize, lanes: usize, factors: &Factors, sums: &mut Sums) {
            // SAFETY: forwarded.
            unsafe {
                match (factors.step == 4, lanes > 16) {
                    (true, true) => by_rows!($tile, rows, 2, false, factors, sums),
                    (true, false) => by_rows!($tile, rows, 1, false, factors, sums),
                    (false, true) => by_rows!($tile, rows, 2, true, factors, sums),
                    (false, false) => by_rows!($tile, rows, 1, true, factors, sums),
                }
            }
        }

        /// # Safety
        /// As for `tile::run`, with `M` rows and `N` times 16 lanes.
        #[target_feature(enable = $features)]
        unsafe fn $tile<const M: usize, const N: usize, const COLUMNS: bool>(
            factors: &Factors,
            sums: &mut Sums,
        ) {
            let row = if COLUMNS { 4 } else { factors.row };
            let step = if COLUMNS { factors.step } else { 4 };
            let (mut p, mut v) = (factors.p, factors.v);
            let (mut turn, mut soon) = (0, factors.soon);
            let looks_on = !soon.is_null();
            let v_ahead = match factors.v_step.is_multiple_of(TWO_SETS) {
                true => AHEAD_IN_TWO_SETS * factors.v_step,
                false => AHEAD * factors.v_step,
            };
            let mut acc = [[_mm512_setzero_ps(); N]; M];
            // SAFETY: steps, rows and lanes are in bounds, by the caller's promise.
            unsafe {
                // No closure: that would have the sums in memory.
                macro_rules! go {
                    ($steps:expr) => {
                        for _ in 0..$steps {
                            let ahead = match COLUMNS {
                                true => AHEAD * step,
                                false => ROW_AHEAD + turn.min(M - 1) * row,
                            };
                            let own = p.wrapping_add(ahead);
                            _mm_prefetch::<_MM_HINT_T0>(if looks_on { soon } else { own }.cast());
                            soon = soon.wrapping_add(LINE_BYTES);
                            turn = (turn + 1) % LINE;
                            let b: [__m512; N] =
                                std::array::from_fn(|n| _mm512_loadu_ps(v.add(16 * n)));
                            for n in 0..N {
                                let ahead = v.wrapping_add(v_ahead + 16 * n);
                                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                            }
                            for (m, acc) in acc.iter_mut().enumerate() {
                                let a = p.add(m * row).cast::<i32>().read_unaligned();
                                let a = _mm512_set1_epi32(a);
                                for (acc, b) in acc.iter_mut().zip(b) {
                                    *acc = $mul(*acc, a, b);
                                }
                            }
                            p = p.add(step);
                            v = v.add(factors.v_step);
                        }
                    };
                }
                let mut left = factors.depth;
                if let Some(Lines { at, row, vector }) = factors.next {
                    // Evenly: at once they would take all of a core's line buffers.
                    let each = left / (M * N);
                    for i in 0..M * N {
                        let line = at.wrapping_add(i / N * row + i % N * vector);
                        _mm_prefetch::<_MM_HINT_T0>(line.cast());
                        go!(each);
                    }
                    left -= each * M * N;
                }
                go!(left);
                if !COLUMNS && factors.half {
                    for (m, acc) in acc.iter_mut().enumerate() {
                        let a = p.add(m * row).cast::<u16>().read_unaligned();
                        let a = _mm512_set1_epi32(i32::from(a));
                        for (n, acc) in acc.iter_mut().enumerate() {
                            *acc = $mul(*acc, a, _mm512_loadu_ps(v.add(16 * n)));
                        }
                    }
                }
                let (to, then) = (factors.destination(sums), factors.then);
                for (m, acc) in acc.iter().enumerate() {
                    let bias = match then.bias.is_null() {
                        true => _mm512_setzero_ps(),
                        false => _mm512_set1_ps(*then.bias.add(m)),
                    };
                    for (n, acc) in acc.iter().enumerate() {
                        // A product that underflows leaves -0 in an FMA, 0 in a sum.
                        let as_it_is = then.bias.is_null() && factors.target.is_none();
                        let mut sum = if as_it_is { *acc } else { _mm512_add_ps(*acc, bias) };
                        if then.relu {
                            sum = _mm512_maskz_mov_ps(passes_relu(sum), sum);
                        }
                        _mm512_storeu_ps(to.at.add(m * to.stride + 16 * n), sum);
                    }
                }
            }
        }
    };
}

macro_rules! by_rows {
    ($tile:ident, $rows:expr, $n:literal, $columns:literal, $factors:expr, $sums:expr) => {{
        match $rows {
            1 => $tile::<1, $n, $columns>($factors, $sums),
            2 => $tile::<2, $n, $columns>($factors, $sums),
            3 => $tile::<3, $n, $columns>($factors, $sums),
            4 => $tile::<4, $n, $columns>($factors, $sums),
            5 => $tile::<5, $n, $columns>($factors, $sums),
            6 => $tile::<6, $n, $columns>($factors, $sums),
            7 => $tile::<7, $n, $columns>($factors, $sums),
            8 => $tile::<8, $n, $columns>($factors, $sums),
            9 => $tile::<9, $n, $columns>($factors, $sums),
            10 => $tile::<10, $n, $columns>($factors, $sums),
            11 => $tile::<11, $n, $columns>($factors, $sums),
            12 => $tile::<12, $n, $columns>($factors, $sums),
            13 => $tile::<13, $n, $columns>($factors, $sums),
            _ => $tile::<14, $n, $columns>($factors, $sums),
        }
    }};
}

avx512!(fma, fma_tile, "avx512f", |acc, a, b| _mm512_fmadd_ps(_mm512_castsi512_ps(a), b, acc));
avx512!(dot, dot_tile, "avx512f,avx512bf16", |acc, a, b: __m512| {
    // Both are 512 bits of anything.
    let (a, b): (__m512bh, __m512bh) =
        (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b));
    _mm512_dpbf16_ps(acc, a, b)
});
