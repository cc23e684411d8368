//! Launches of our kernels that need more than a grid: clusters, and overlap with
//! the end of the kernel in front.

use cudarc::driver::result;
use cudarc::driver::sys::{
    self, CUfunction, CUfunction_attribute as FunctionAttribute, CUlaunchAttribute,
    CUlaunchAttributeID as Id, CUlaunchConfig, CUstream,
};
use cudarc::driver::DriverError;

use crate::plan::policy::Policy;

/// Where and how a kernel runs.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Blocks.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster, along the first dimension of the grid.
    pub cluster: u32,
    /// Bytes of shared memory besides what the kernel states itself.
    pub shared: u32,
    /// It may start before the kernel in front on the stream has ended, and waits
    /// for that itself (`griddepcontrol.wait`).
    pub overlaps: bool,
    /// All blocks run at once, or the launch fails.
    pub cooperates: bool,
}

impl Shape {
    /// Calls `use_it` with the driver's form of this.
    fn with_config<R>(&self, stream: CUstream, use_it: impl FnOnce(&CUlaunchConfig) -> R) -> R {
        // SAFETY: integers and a union of plain data, for which zeros are valid.
        let mut attributes: [CUlaunchAttribute; 3] = unsafe { std::mem::zeroed() };
        attributes[0].id = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attributes[0].value.clusterDim.x = self.cluster;
        attributes[0].value.clusterDim.y = 1;
        attributes[0].value.clusterDim.z = 1;
        let mut count = 1;
        if self.overlaps {
            attributes[count].id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        if self.cooperates {
            attributes[count].id = Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
            attributes[count].value.cooperative = 1;
            count += 1;
        }
        use_it(&CUlaunchConfig {
            gridDimX: self.grid.0,
            gridDimY: self.grid.1,
            gridDimZ: 1,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count as u32,
        })
    }

    /// How many of its clusters run at a time; 0 where the device cannot say.
    pub(super) fn clusters_at_once(&self, function: CUfunction) -> u32 {
        let mut count = 0;
        self.with_config(std::ptr::null_mut(), |config| {
            // SAFETY: writes one number; configuration and attributes outlive
            // the call.
            unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut count, function, config) }
        })
        .result()
        .map_or(0, |()| u32::try_from(count).unwrap_or(0))
    }

    /// Puts the kernel on the stream.
    ///
    /// # Safety
    /// The device's context is current; `arguments` point to the parameters that
    /// the kernel declares, which make it do nothing that is not allowed.
    pub(super) unsafe fn launch<const N: usize>(
        &self,
        function: CUfunction,
        stream: CUstream,
        mut arguments: [*mut std::ffi::c_void; N],
    ) -> Result<(), DriverError> {
        self.with_config(stream, |config| {
            // SAFETY: forwarded; configuration and attributes outlive the call.
            unsafe {
                let null = std::ptr::null_mut();
                sys::cuLaunchKernelEx(config, function, arguments.as_mut_ptr(), null)
            }
        })
        .result()
    }
}

/// What the environment variable says of some kernels: nothing, `1` for always.
///
/// # Errors
/// That it forbids them, with `0`.
pub(super) fn asked(variable: &str) -> Result<Policy, String> {
    match std::env::var(variable).as_deref() {
        Ok("0") => Err(format!("{variable}=0")),
        Ok("1") => Ok(Policy::Always),
        _ => Ok(Policy::WhereFaster),
    }
}

/// What the user says of strict fp32 on the tensor cores (`HYPATIA_FP32`).
///
/// # Errors
/// For `ieee`: never.
pub(super) fn asked_of_fp32() -> Result<Policy, String> {
    match std::env::var("HYPATIA_FP32").as_deref() {
        Ok("ieee") => Err("HYPATIA_FP32=ieee".to_owned()),
        Ok("tensor") => Ok(Policy::Always),
        _ => Ok(Policy::WhereFaster),
    }
}

/// Allows a kernel that much shared memory and clusters of more than eight.
pub(super) fn allow(function: CUfunction, shared: u32) -> Result<(), String> {
    for (attribute, value) in [
        (
            FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            i32::try_from(shared).unwrap_or(i32::MAX),
        ),
        (FunctionAttribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
    ] {
        // SAFETY: the function is of a module that stays loaded (modules.rs).
        unsafe { result::function::set_function_attribute(function, attribute, value) }
            .map_err(|error| format!("setting up a kernel failed: {error:?}"))?;
    }
    Ok(())
}
