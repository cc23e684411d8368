//! Which instructions the kernels use: asked of the CPU, and for bfloat16 also
//! measured.

use std::sync::OnceLock;

use super::amx;

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
    /// The tiles of AMX (`amx`).
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
    /// The same of AMX's `tdpbf16ps`; 0 where it may not be used.
    pub amx: f64,
    /// `HYPATIA_CPU_ISA=amx`: AMX whatever its rate.
    pub amx_wanted: bool,
}

impl Choice {
    /// Whether AMX multiplies elements of so many planes faster than FMA: its tiles do 16
    /// times what FMA does, but 4 to 6 times while others use the core's other half.
    #[must_use]
    pub fn amx_pays(&self, planes: usize) -> bool {
        self.amx > 0.0
            && (self.amx_wanted || self.amx > PAYS * self.fma * amx::products(planes) as f64)
    }
}

/// By how much a rate must be higher to be believed.
const MARGIN: f64 = 1.25;

/// The same of AMX's tiles in place of one instruction: between what others leave of them
/// and what emulators do, so that every process decides alike.
const REAL: f64 = 1.5;

/// The same of AMX's tiles where numbers are split: 1.35 times as fast as FMA where the
/// tiles are 2.8 times (quiet), 0.75 times where they are 0.95 times (busy).
const PAYS: f64 = 1.5;

/// Samples of AMX, and between two of them: a host is busy or not for 0.1 s to minutes.
const SAMPLES: usize = 5;
const APART: std::time::Duration = std::time::Duration::from_millis(2);

/// The fastest of widening, `vdpbf16ps` and AMX. CPUID alone does not tell: the
/// instruction is microcode, at half the rate of FMA, on some CPUs that have it,
/// and twice as fast as FMA on others. So all are run once a process, 10 ms on CPUs with
/// AMX, some 40 us on others, when the library is loaded, so that forked processes decide
/// alike. `HYPATIA_CPU_BF16` (widen, dot, amx) decides instead, where the CPU can.
pub fn bf16() -> Choice {
    static CHOICE: OnceLock<Choice> = OnceLock::new();
    *CHOICE.get_or_init(|| {
        let (fma, dot) = measured();
        let amx = if amx::available() { measured_amx() } else { 0.0 };
        let wish = std::env::var("HYPATIA_CPU_BF16");
        let bf16 = match wish.as_deref() {
            Ok("widen") => Bf16::Widen,
            Ok("dot") if dot > 0.0 => Bf16::Dot,
            Ok("amx") if amx > 0.0 => Bf16::Amx,
            _ => fastest(fma, dot, amx),
        };
        let amx_wanted = std::env::var("HYPATIA_CPU_ISA").as_deref() == Ok("amx");
        Choice { bf16, fma, dot, amx, amx_wanted }
    })
}

/// Whether strict fp32 may be computed as products of bfloat16: not with
/// `HYPATIA_FP32=ieee`.
#[must_use]
pub fn splits_fp32() -> bool {
    static SPLITS: OnceLock<bool> = OnceLock::new();
    *SPLITS.get_or_init(|| std::env::var("HYPATIA_FP32").as_deref() != Ok("ieee"))
}

/// Seen: 0.5 times FMA's rate where it is microcode, twice where it is not.
fn fastest(fma: f64, dot: f64, amx: f64) -> Bf16 {
    if amx > REAL * fma {
        Bf16::Amx
    } else if dot > MARGIN * fma {
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

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn measured_amx() -> f64 {
    let mut rates = [0.0; SAMPLES];
    for (i, rate) in rates.iter_mut().enumerate() {
        if i > 0 {
            std::thread::sleep(APART);
        }
        // SAFETY: the caller asked whether AMX may be used.
        *rate = unsafe {
            let _tiles = amx::Tiles::configured();
            x86::rate(x86::amx)
        };
    }
    rates.sort_by(f64::total_cmp);
    rates[SAMPLES / 2]
}

#[cfg(not(target_arch = "x86_64"))]
fn measured_amx() -> f64 {
    0.0
}

/// Whether the CPU has AMX for bfloat16: leaf 7, EDX bit 22, and the tile state
/// enabled by the operating system (XCR0 bits 17 and 18).
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(super) fn has_amx() -> bool {
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
pub(super) fn has_amx() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_by_rate_and_not_by_name() {
        assert_eq!(fastest(185.0, 93.0, 0.0), Bf16::Widen, "microcoded");
        assert_eq!(fastest(118.0, 236.0, 0.0), Bf16::Dot);
        assert_eq!(fastest(118.0, 0.0, 0.0), Bf16::Widen, "absent");
        assert_eq!(fastest(185.0, 93.0, 2300.0), Bf16::Amx);
        assert_eq!(fastest(185.0, 370.0, 700.0), Bf16::Amx, "half of a core");
        assert_eq!(fastest(185.0, 370.0, 100.0), Bf16::Dot, "emulated, say");
    }

    #[test]
    fn amx_pays_where_all_its_products_do() {
        let choice =
            Choice { bf16: Bf16::Amx, fma: 150.0, dot: 90.0, amx: 2300.0, amx_wanted: false };
        assert!((1..=3).all(|planes| choice.amx_pays(planes)));
        let slower = Choice { amx: 1000.0, ..choice };
        assert!(slower.amx_pays(2) && !slower.amx_pays(3));
        assert!(Choice { amx_wanted: true, ..slower }.amx_pays(3));
        assert!(!Choice { amx: 0.0, ..choice }.amx_pays(1));
        assert!(!Choice { amx: 0.0, amx_wanted: true, ..choice }.amx_pays(1), "there is none");
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
