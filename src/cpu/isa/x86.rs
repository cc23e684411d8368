//! What a core does in registers alone: FMA, `vdpbf16ps`, AMX.

use std::arch::x86_64::*;
use std::time::Instant;

use super::super::scratch::Scratch;

const STEPS: usize = 2_000;
const CHAINS: usize = 12;

/// GFLOP/s: the best of some runs, because whoever else is on the core only
/// makes it slower.
///
/// # Safety
/// The CPU has what `run` needs.
pub unsafe fn rate(run: unsafe fn() -> f64) -> f64 {
    let once = || {
        let start = Instant::now();
        // SAFETY: the caller's promise.
        let operations = unsafe { run() };
        operations / start.elapsed().as_secs_f64() * 1e-9
    };
    (0..7).map(|_| once()).fold(0.0, f64::max)
}

/// Operations done: independent chains, enough for latency times throughput.
#[target_feature(enable = "avx512f")]
pub unsafe fn fma() -> f64 {
    let mut sums = [_mm512_set1_ps(1.0); CHAINS];
    let (a, b) = (_mm512_set1_ps(std::hint::black_box(0.5)), _mm512_set1_ps(0.5));
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(a, b, *sum);
        }
    }
    std::hint::black_box(sums);
    (STEPS * CHAINS * 32) as f64
}

/// The same in AVX2.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn fma_avx2() -> f64 {
    let mut sums = [_mm256_set1_ps(1.0); CHAINS];
    let (a, b) = (_mm256_set1_ps(std::hint::black_box(0.5)), _mm256_set1_ps(0.5));
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(a, b, *sum);
        }
    }
    std::hint::black_box(sums);
    (STEPS * CHAINS * 16) as f64
}

/// The same of `vdpbf16ps`.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn dot() -> f64 {
    let mut sums = [_mm512_set1_ps(1.0); CHAINS];
    let pairs = _mm512_set1_epi32(std::hint::black_box(0x3f00_3f00));
    // SAFETY: both are 512 bits of anything.
    let pairs: __m512bh = unsafe { std::mem::transmute(pairs) };
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
        }
    }
    std::hint::black_box(sums);
    (STEPS * CHAINS * 64) as f64
}

/// The same of `tdpbf16ps`, its factors from the second-level cache as products have them.
/// The thread has `amx::Tiles`.
pub unsafe fn amx() -> f64 {
    const BYTES: usize = 512 << 10;
    const TIMES: usize = BYTES / 4096;
    let memory = Scratch::new(BYTES);
    // SAFETY: configured; tiles are nobody else's; `TIMES` times four tiles are there.
    unsafe {
        std::arch::asm!(
            "2:",
            "tileloadd tmm4, [{at} + {row}*1]",
            "tileloadd tmm5, [{at} + {row}*1 + 1024]",
            "tileloadd tmm6, [{at} + {row}*1 + 2048]",
            "tileloadd tmm7, [{at} + {row}*1 + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {at}, 4096",
            "dec {times}",
            "jnz 2b",
            at = inout(reg) memory.address() => _,
            row = in(reg) 64usize,
            times = inout(reg) TIMES => _,
            options(nostack, readonly)
        );
    }
    (TIMES * 8 * 2 * 16 * 16 * 32) as f64
}
