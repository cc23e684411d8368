//! One record per CUDA device: context, cuBLASLt handle, properties, kernels.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::result::stream::{self as streams, StreamKind};
use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUstream};
use cudarc::driver::{self, CudaContext};

use super::cublaslt::{self, CublasLt, LtHandle};
use super::kept_plans::KeptPlans;
use super::modules::Modules;
use super::Refusal;

/// A device that can run our plans.
pub struct Device {
    /// The primary context, which is LibTorch's too.
    context: Arc<CudaContext>,
    cublaslt: &'static CublasLt,
    handle: LtHandle,
    /// Compute capability, as 90 for 9.0.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: i64,
    /// cuBLASLt may use this much scratch memory.
    pub gemm_workspace_limit: usize,
    /// Our kernels; empty where none was built for this device.
    pub modules: Modules,
    /// Timed plans that outlive the process.
    pub kept_plans: KeptPlans,
    recording: Mutex<Stream>,
}

/// An own stream, never destroyed.
pub(super) struct Stream(pub CUstream);

// SAFETY: CUDA's streams belong to the process, not to a thread.
unsafe impl Send for Stream {}

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
        let cublaslt = libraries()?;
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
        let handle = cublaslt.create().map_err(|failure| failure.of("cublasLtCreate"))?;
        let modules = Modules::load(capability);
        let recording = streams::create(StreamKind::NonBlocking)
            .map_err(|error| Refusal::driver("creating a stream", error))?;
        Ok(Self {
            context,
            cublaslt,
            handle,
            capability,
            multiprocessors: i64::from(multiprocessors),
            gemm_workspace_limit: gemm_workspace_limit(capability),
            modules,
            kept_plans: KeptPlans::default(),
            recording: Mutex::new(Stream(recording)),
        })
    }

    /// A stream that nothing runs on: calls are recorded on it, one at a time.
    pub(super) fn recording_stream(&self) -> MutexGuard<'_, Stream> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the driver names it; nothing if it does not.
    pub(super) fn name(&self) -> String {
        self.context.name().unwrap_or_default()
    }

    /// The cuBLASLt of the process.
    pub(super) fn cublaslt(&self) -> &'static CublasLt {
        self.cublaslt
    }

    /// Its handle for this device.
    pub(super) fn handle(&self) -> LtHandle {
        self.handle
    }

    /// Makes the device's context current. LibTorch binds it lazily, so a new
    /// thread may reach us without one.
    pub(super) fn bind(&self) -> Result<(), Refusal> {
        self.context
            .bind_to_thread()
            .map_err(|error| Refusal::driver("binding the CUDA context", error))
    }
}

/// LibTorch's own variable in its own unit (KiB), else what NVIDIA recommends
/// and LibTorch uses.
fn gemm_workspace_limit(capability: u32) -> usize {
    let wanted = std::env::var("CUBLASLT_WORKSPACE_SIZE").ok().and_then(|v| v.parse().ok());
    let kib: usize = wanted.unwrap_or(if capability >= 90 { 32 << 10 } else { 8 << 10 });
    kib.saturating_mul(1024)
}

/// Opens what there is to open, once.
fn libraries() -> Result<&'static CublasLt, Refusal> {
    static WANTED: OnceLock<bool> = OnceLock::new();
    if !WANTED.get_or_init(|| std::env::var("HYPATIA_CUDA").map_or(true, |value| value != "0")) {
        return Err(Refusal::failure("HYPATIA_CUDA=0 turns it off"));
    }
    static DRIVER: OnceLock<bool> = OnceLock::new();
    // cudarc panics where the driver is missing, so ask before the first call.
    // SAFETY: only tries to open libcuda by its usual names, whose
    // initialisers need no care.
    if !DRIVER.get_or_init(|| unsafe { driver::sys::is_culib_present() }) {
        return Err(Refusal::failure("the CUDA driver (libcuda.so.1) cannot be opened"));
    }
    cublaslt::get()
}

/// Version of the cuBLASLt in use, `None` without CUDA.
#[must_use]
pub fn cublaslt_version() -> Option<usize> {
    Some(libraries().ok()?.version())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_it_refuses_and_does_not_panic() {
        // SAFETY: only tries to open libcuda.
        if unsafe { driver::sys::is_culib_present() } {
            return; // A machine with a GPU: the GPU tests are about that.
        }
        for _ in 0..2 {
            let refusal = device(0).err().unwrap();
            assert_eq!(refusal.reason, "the CUDA driver (libcuda.so.1) cannot be opened");
            assert!(refusal.warn);
        }
        assert!(device(-1).is_err() && device(1000).is_err());
        assert_eq!(cublaslt_version(), None);
    }
}
