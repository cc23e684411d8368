//! The functions of `kernels/fp32_*.cu` on one device.

use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::CUfunction;

use super::super::kernel::{allow, asked_of_fp32};
use super::super::modules::Module;
use crate::plan::fp32::tiling::COLS;
use crate::plan::fp32::Order;
use crate::plan::policy::Policy;

/// What a block of `fp32_gemm` needs: 220 KiB for its ring, whatever the tile,
/// and room to begin it at a multiple of 1024.
pub(super) const SHARED_BYTES: u32 = (221 << 10) + 512;

/// The functions of one device.
pub struct Fp32Kernels {
    gemm: [[CUfunction; COLS.len()]; 2],
    pack: [CUfunction; 2],
    pub(super) relu_backward: CUfunction,
    /// When to use them.
    pub policy: Policy,
    failed: AtomicBool,
}

// SAFETY: a CUfunction is a handle into a module that is never unloaded, and
// launching it is thread-safe (CUDA driver API, thread safety).
unsafe impl Send for Fp32Kernels {}
// SAFETY: as above.
unsafe impl Sync for Fp32Kernels {}

impl Fp32Kernels {
    /// Loads them; the device's context must be current.
    ///
    /// # Errors
    /// Why there are none: other devices, an old driver, `HYPATIA_FP32=ieee`.
    pub fn load(capability: u32) -> Result<Self, String> {
        let policy = asked_of_fp32()?;
        let null = std::ptr::null_mut();
        let mut gemm = [[null; COLS.len()]; 2];
        let mut pack = [null; 2];
        let (gemms, packs) =
            (Module::load("fp32_gemm", capability)?, Module::load("fp32_pack", capability)?);
        for (order, name) in ["rows", "columns"].into_iter().enumerate() {
            for (function, cols) in gemm[order].iter_mut().zip(COLS) {
                *function = gemms.function(format!("fp32_gemm_{name}_{cols}"))?;
                allow(*function, SHARED_BYTES)?;
            }
            pack[order] = packs.function(format!("fp32_pack_{name}"))?;
        }
        let masks = Module::load("fp32_relu_backward", capability)?;
        let relu_backward = masks.function("fp32_relu_backward".to_owned())?;
        Ok(Self { gemm, pack, relu_backward, policy, failed: AtomicBool::new(false) })
    }

    /// The product whose left operand is of that order.
    pub(super) fn gemm(&self, order: Order, shape: usize) -> CUfunction {
        self.gemm[order as usize][shape]
    }

    /// The image for it.
    pub(super) fn pack(&self, order: Order) -> CUfunction {
        self.pack[order as usize]
    }

    /// A launch failed: from now on cuBLASLt does the device's products.
    pub fn give_up(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether one did.
    pub fn gave_up(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}
