//! Products on AMX, whose tiles multiply bfloat16 and sum in fp32: each element is the
//! sum of one to three bfloat16 (`planes`), so that bfloat16, binary16 and strict fp32
//! all run there. Of the products of two such sums those are kept that fp32 can see:
//! one, four, or six of nine.
//!
//! The left factor is copied to blocks as tiles read them (`left`), the right one is
//! pairs of k in panels (`right`); both are padded with zeros to [`DEPTH`] of k.
//! What inf and NaN make of the other planes' products is not what they make of the
//! numbers themselves, so such sums are computed again (`again`).

#[cfg(target_arch = "x86_64")]
pub mod again;
#[cfg(target_arch = "x86_64")]
pub mod left;
pub mod planes;
#[cfg(target_arch = "x86_64")]
pub mod product;
#[cfg(target_arch = "x86_64")]
pub mod right;

use std::sync::OnceLock;

use super::isa::{self, Isa};

/// Rows of a tile.
pub const GROUP: usize = 16;
/// Most rows of sums: two tiles.
pub const ROWS: usize = 2 * GROUP;
/// Of k, in one tile.
pub const DEPTH: usize = 32;
/// Bytes of a tile.
pub const TILE: usize = 1024;
/// Bytes of a row of a tile.
pub const ROW: usize = 64;
/// Steps (pairs) of a tile.
pub const STEPS: usize = DEPTH / 2;

/// Products of planes that are computed for one product of numbers.
#[must_use]
pub const fn products(planes: usize) -> usize {
    match planes {
        1 => 1,
        2 => 4,
        _ => 6,
    }
}

/// Tiles that `k` takes.
#[must_use]
pub fn depths(k: usize) -> usize {
    k.div_ceil(DEPTH)
}

/// Bytes of one group of the left factor's rows.
#[must_use]
pub const fn group_bytes(planes: usize, depths: usize) -> usize {
    planes * depths * TILE
}

/// Four-byte words of one depth of a panel of the right factor.
#[must_use]
pub const fn depth_words(planes: usize, width: usize) -> usize {
    planes * STEPS * width
}

/// Whether the CPU has AMX for bfloat16, the operating system lets this process use
/// it, and `Isa::best` is AVX-512, which packs for it. `HYPATIA_CPU_ISA=avx512` forbids
/// it.
#[must_use]
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        Isa::best() == Isa::Avx512
            && matches!(std::env::var("HYPATIA_CPU_ISA").as_deref(), Err(_) | Ok("amx"))
            && isa::has_amx()
            && permitted()
    })
}

/// Asks Linux for the tiles' state, which it saves only for processes that did.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call without pointers, by Linux's convention; it fails where
    // the kernel does not know it.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn permitted() -> bool {
    false
}

/// Eight whole tiles, configured on this thread while it lives.
#[derive(Debug)]
pub struct Tiles(std::marker::PhantomData<*mut u8>);

impl Tiles {
    /// # Safety
    /// [`available`] said yes.
    #[must_use]
    pub unsafe fn configured() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            #[repr(C, align(64))]
            struct Config {
                palette: u8,
                start_row: u8,
                reserved: [u8; 14],
                row_bytes: [u16; 16],
                rows: [u8; 16],
            }
            let mut config = Config {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                row_bytes: [0; 16],
                rows: [0; 16],
            };
            config.row_bytes[..8].fill(ROW as u16);
            config.rows[..8].fill(GROUP as u8);
            // SAFETY: the caller's promise; 64 bytes in the form of palette 1.
            unsafe {
                std::arch::asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly));
            }
        }
        Self(std::marker::PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // Without it each switch of threads would go on to save the tiles.
        // SAFETY: made where there is AMX.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!("tilerelease", options(nostack, nomem));
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
