//! Which instructions the kernels use: asked of the CPU, and for bfloat16 also
//! measured.

use std::sync::OnceLock;

/// Instruction sets, best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW and VL.
    Avx512,
}

impl Isa {
    /// The best that this CPU has. `HYPATIA_CPU_ISA` (scalar, avx2, avx512)
    /// forbids what is better.
    #[must_use]
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let limit = match std::env::var("HYPATIA_CPU_ISA").as_deref() {
                Ok("scalar") => Self::Scalar,
                Ok("avx2") => Self::Avx2,
                _ => Self::Avx512,
            };
            Self::detected().min(limit)
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn detected() -> Self {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        match (avx2, avx512) {
            (true, true) => Self::Avx512,
            (true, false) => Self::Avx2,
            _ => Self::Scalar,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detected() -> Self {
        Self::Scalar
    }

    /// As `build_info` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

/// What bfloat16 products are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bf16 {
    /// Widened to fp32, then FMA.
    Widen,
    /// `vdpbf16ps`, two products an element and instruction.
    Dot,
    /// Neither: oneDNN has AMX here, which is several times as fast.
    Amx,
}

impl Bf16 {
    /// As `build_info` and `HYPATIA_CPU_BF16` name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Widen => "widen",
            Self::Dot => "dot",
            Self::Amx => "amx",
        }
    }
}

/// What [`bf16`] decided and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What products are made of.
    pub bf16: Bf16,
    /// GFLOP/s of one core's FMA in registers; 0 if not measured.
    pub fma: f64,
    /// The same of `vdpbf16ps`; 0 where there is none.
    pub dot: f64,
}

/// The faster of widening and `vdpbf16ps`. CPUID alone does not tell: the
/// instruction is microcode, at half the rate of FMA, on some CPUs that have it,
/// and twice as fast as FMA on others. So both are run once a process, some 20 us
/// each. `HYPATIA_CPU_BF16` (widen, dot) decides instead, where the CPU can.
pub fn bf16() -> Choice {
    static CHOICE: OnceLock<Choice> = OnceLock::new();
    *CHOICE.get_or_init(|| {
        let (fma, dot) = measured();
        let wish = std::env::var("HYPATIA_CPU_BF16");
        let bf16 = match wish.as_deref() {
            Ok("widen") => Bf16::Widen,
            Ok("dot") if dot > 0.0 => Bf16::Dot,
            _ if has_amx() => Bf16::Amx,
            _ => faster(fma, dot),
        };
        Choice { bf16, fma, dot }
    })
}

/// Seen: 0.5 times FMA's rate where it is microcode, twice where it is not.
fn faster(fma: f64, dot: f64) -> Bf16 {
    if dot > 1.25 * fma {
        Bf16::Dot
    } else {
        Bf16::Widen
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn measured() -> (f64, f64) {
    // SAFETY: `Isa::best` asked the CPU, the line itself for the rest.
    unsafe {
        match Isa::best() {
            Isa::Scalar => (0.0, 0.0),
            Isa::Avx2 => (x86::rate(x86::fma_avx2), 0.0),
            Isa::Avx512 => {
                let dot = is_x86_feature_detected!("avx512bf16");
                (x86::rate(x86::fma), if dot { x86::rate(x86::dot) } else { 0.0 })
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn measured() -> (f64, f64) {
    (0.0, 0.0)
}

/// Whether oneDNN may use AMX for bfloat16: leaf 7, EDX bit 22, and the tile
/// state enabled by the operating system (XCR0 bits 17 and 18).
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    #[target_feature(enable = "xsave")]
    fn tiles_enabled() -> bool {
        // SAFETY: the caller asked for `xsave`, and AVX's detection for OSXSAVE.
        unsafe { _xgetbv(0) & 0x6_0000 == 0x6_0000 }
    }

    #[allow(unused_unsafe)] // Safe functions in newer Rust.
    // SAFETY: every x86-64 CPU has CPUID.
    let amx = unsafe { __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (1 << 22) != 0 };
    let saves = is_x86_feature_detected!("xsave") && is_x86_feature_detected!("avx");
    // SAFETY: `xsave` was asked for just now.
    amx && saves && unsafe { tiles_enabled() }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_amx() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use std::arch::x86_64::*;
    use std::time::Instant;

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_by_rate_and_not_by_name() {
        assert_eq!(faster(185.0, 93.0), Bf16::Widen, "microcoded");
        assert_eq!(faster(118.0, 236.0), Bf16::Dot);
        assert_eq!(faster(118.0, 0.0), Bf16::Widen, "absent");
    }

    #[test]
    fn measures_where_it_chooses() {
        let choice = bf16();
        if Isa::best() > Isa::Scalar {
            assert!(choice.fma > 1.0, "{choice:?}");
        }
        if choice.bf16 == Bf16::Dot {
            assert!(choice.dot > 0.0, "{choice:?}");
        }
    }
}
