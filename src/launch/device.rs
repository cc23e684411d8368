//! One record per CUDA device: context, cuBLASLt handle, properties, kernels.

use std::sync::{Arc, OnceLock};

use cudarc::cublaslt;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{self, CudaContext};

use super::modules::Modules;
use super::Refusal;

/// A device that can run our plans.
pub struct Device {
    /// The primary context, which is LibTorch's too.
    context: Arc<CudaContext>,
    lt: cublaslt::sys::cublasLtHandle_t,
    /// Streaming multiprocessors.
    pub multiprocessors: i64,
    /// Compute capability, 90 for 9.0.
    pub capability: u32,
    /// cuBLASLt may use this much scratch memory.
    pub gemm_workspace_limit: usize,
    /// Our kernels; empty where none was built for this device.
    pub modules: Modules,
}

// SAFETY: a cuBLASLt handle holds no per-thread state (its documentation:
// "cublasLt functions are thread-safe with one handle"); the other fields are
// Send and Sync themselves.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// More devices than any host has.
const MAX_DEVICES: usize = 64;

/// The record of device `ordinal`, made on first use.
///
/// # Errors
/// When CUDA cannot be opened; the reason is the same every time.
pub fn device(ordinal: i32) -> Result<&'static Device, Refusal> {
    static DEVICES: [OnceLock<Result<Device, Refusal>>; MAX_DEVICES] =
        [const { OnceLock::new() }; MAX_DEVICES];
    let slot = usize::try_from(ordinal)
        .ok()
        .and_then(|index| DEVICES.get(index))
        .ok_or_else(|| Refusal::failure(format!("device index {ordinal} is out of range")))?;
    slot.get_or_init(|| Device::open(ordinal)).as_ref().map_err(Clone::clone)
}

impl Device {
    fn open(ordinal: i32) -> Result<Self, Refusal> {
        libraries()?;
        let context = CudaContext::new(ordinal as usize)
            .map_err(|error| Refusal::driver("opening the CUDA context", error))?;
        let attribute = |which| {
            context.attribute(which).map_err(|error| Refusal::driver("a device query", error))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let capability = u32::try_from(major * 10 + minor).unwrap_or(0);
        context.bind_to_thread().map_err(|error| Refusal::driver("binding the context", error))?;
        let lt = cublaslt::result::create_handle()
            .map_err(|error| Refusal::cublaslt("cublasLtCreate", error))?;
        let modules = Modules::load(capability);
        Ok(Self {
            context,
            lt,
            multiprocessors: i64::from(multiprocessors),
            capability,
            // What NVIDIA recommends, and what LibTorch itself uses.
            gemm_workspace_limit: if capability >= 90 { 32 << 20 } else { 8 << 20 },
            modules,
        })
    }

    /// The cuBLASLt handle.
    pub(super) fn lt(&self) -> cublaslt::sys::cublasLtHandle_t {
        self.lt
    }

    /// Makes the device's context current. LibTorch binds it lazily, so a new
    /// thread may reach us without one.
    pub(super) fn bind(&self) -> Result<(), Refusal> {
        self.context
            .bind_to_thread()
            .map_err(|error| Refusal::driver("binding the CUDA context", error))
    }
}

/// cudarc panics where a library is missing, so ask before the first call.
fn libraries() -> Result<(), Refusal> {
    static FOUND: OnceLock<Result<(), Refusal>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            // SAFETY: both only try to open a library by its usual names;
            // CUDA's libraries have no initialisers that need care.
            let (driver_found, lt_found) =
                unsafe { (driver::sys::is_culib_present(), cublaslt::sys::is_culib_present()) };
            if !driver_found {
                return Err(Refusal::failure("the CUDA driver (libcuda.so.1) cannot be opened"));
            }
            if !lt_found {
                return Err(Refusal::failure("cuBLASLt (libcublasLt.so) cannot be opened"));
            }
            Ok(())
        })
        .clone()
}

/// Version of the cuBLASLt in use, `None` before CUDA is opened or without it.
#[must_use]
pub fn cublaslt_version() -> Option<usize> {
    libraries().ok()?;
    // SAFETY: `libraries` just found the library; the function takes nothing.
    Some(unsafe { cublaslt::sys::cublasLtGetVersion() })
}
