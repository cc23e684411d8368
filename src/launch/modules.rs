//! The embedded kernels: picks the image for a device and loads it once.

use std::ffi::{CStr, CString};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUfunction, CUmodule};

use super::cluster_mlp::ClusterMlpKernels;
use super::fp32::Fp32Kernels;
use super::pad_rows::PadRows;
use super::small_mlp::SmallMlp;
use super::tensor_chain::TensorChainKernels;
use super::tensor_gemm::TensorGemm;
use crate::plan::problem::Dtype;

/// One compiled kernel file.
pub struct Image {
    /// File name of the source without its extension.
    pub kernel: &'static str,
    /// Compute capability it was compiled for.
    pub capability: u32,
    /// PTX, which the driver compiles for any newer device.
    pub ptx: bool,
    /// The cubin, or the PTX text without its final NUL.
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/kernel_images.rs"));

/// The functions of one device.
pub struct Modules {
    relu_backward: Option<ReluBackward>,
    /// Why there are none, for the one warning about it.
    pub missing: Option<String>,
    /// `kernels/fused_mlp.cu`, or why layers run one by one.
    pub small_mlp: Result<SmallMlp, String>,
    /// `kernels/cluster_mlp.cu` and `cluster_fp32.cu`, or why none of them.
    pub cluster_mlp: Result<ClusterMlpKernels, String>,
    /// `kernels/pad_rows.cu`, or why operands are read as they are.
    pub pad_rows: Result<PadRows, String>,
    /// `kernels/fp32_*.cu`, or why cuBLASLt does all of strict fp32.
    pub fp32: Result<Fp32Kernels, String>,
    /// `kernels/tensor_gemm.cu`, or why cuBLASLt does all 16-bit products.
    pub tensor_gemm: Result<TensorGemm, String>,
    /// `kernels/tensor_chain.cu`, or why no 16-bit chain goes in one launch.
    pub tensor_chain: Result<TensorChainKernels, String>,
}

/// `kernels/relu_backward.cu`, indexed by dtype and by whether it vectorizes.
struct ReluBackward {
    functions: [[CUfunction; 2]; 3],
}

// SAFETY: a CUfunction is a handle into a module that is never unloaded, and
// launching it is thread-safe (CUDA driver API, thread safety).
unsafe impl Send for ReluBackward {}
// SAFETY: as above.
unsafe impl Sync for ReluBackward {}

const fn index(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    }
}

impl Modules {
    /// Loads what was built for `capability`; the device's context must be
    /// current. A kernel that cannot be had is a reason, not an error: ATen
    /// does its work.
    pub fn load(capability: u32) -> Self {
        let (relu_backward, missing) = match load_relu_backward(capability) {
            Ok(kernel) => (Some(kernel), None),
            Err(reason) => (None, Some(reason)),
        };
        let (small_mlp, fp32) = (SmallMlp::load(capability), Fp32Kernels::load(capability));
        let (tensor_gemm, tensor_chain) =
            (TensorGemm::load(capability), TensorChainKernels::load(capability));
        Self {
            relu_backward,
            missing,
            small_mlp,
            cluster_mlp: ClusterMlpKernels::load(capability),
            pad_rows: PadRows::load(capability),
            fp32,
            tensor_gemm,
            tensor_chain,
        }
    }

    /// The function for a dtype, vectorized or for any strides.
    pub fn relu_backward(&self, dtype: Dtype, vectorized: bool) -> Option<CUfunction> {
        Some(self.relu_backward.as_ref()?.functions[index(dtype)][usize::from(vectorized)])
    }
}

/// The cubin of the same major version with the highest minor the device has,
/// else PTX.
fn pick(images: &'static [Image], kernel: &str, capability: u32) -> Option<&'static Image> {
    let mine = || images.iter().filter(move |image| image.kernel == kernel);
    mine()
        .filter(|i| !i.ptx && i.capability / 10 == capability / 10 && i.capability <= capability)
        .max_by_key(|image| image.capability)
        .or_else(|| mine().find(|image| image.ptx && image.capability <= capability))
}

/// A module that stays loaded.
pub(super) struct Module(CUmodule);

impl Module {
    /// Loads the image of a kernel file for `capability`; the device's context
    /// must be current.
    pub(super) fn load(kernel: &str, capability: u32) -> Result<Self, String> {
        if IMAGES.is_empty() {
            return Err("the library was built without NVRTC, so without own kernels".to_owned());
        }
        let image = pick(IMAGES, kernel, capability)
            .ok_or_else(|| format!("no kernel image for compute capability {capability}"))?;
        // The driver reads PTX up to a NUL; a cubin carries its own length.
        let mut bytes = image.bytes.to_vec();
        bytes.push(0);
        // SAFETY: the bytes are a whole image as NVRTC wrote it (build/kernels.rs)
        // and live through the call; the driver copies what it keeps.
        let module = unsafe { result::module::load_data(bytes.as_ptr().cast()) }
            .map_err(|error| format!("loading the kernels failed: {error:?}"))?;
        Ok(Self(module))
    }

    /// One of its functions.
    pub(super) fn function(&self, name: String) -> Result<CUfunction, String> {
        let name = CString::new(name).map_err(|error| error.to_string())?;
        // SAFETY: the module was loaded by `load` and is never unloaded.
        unsafe { result::module::get_function(self.0, name) }
            .map_err(|error| format!("a kernel is missing from its image: {error:?}"))
    }

    /// Address of one of its variables, of that size.
    pub(super) fn variable(&self, name: &CStr, bytes: usize) -> Result<u64, String> {
        let (mut address, mut found) = (0, 0);
        // SAFETY: the module was loaded by `load` and is never unloaded; writes two
        // numbers.
        unsafe {
            sys::cuModuleGetGlobal_v2(&raw mut address, &raw mut found, self.0, name.as_ptr())
        }
        .result()
        .map_err(|error| format!("a variable is missing from its image: {error:?}"))?;
        if found == bytes {
            Ok(address)
        } else {
            Err(format!("{} has {found} bytes, expected {bytes}", name.to_string_lossy()))
        }
    }
}

fn load_relu_backward(capability: u32) -> Result<ReluBackward, String> {
    let module = Module::load("relu_backward", capability)?;
    let mut functions = [[std::ptr::null_mut(); 2]; 3];
    for (row, dtype) in functions.iter_mut().zip(["f32", "f16", "bf16"]) {
        for (slot, variant) in row.iter_mut().zip(["any", "vec"]) {
            *slot = module.function(format!("relu_backward_{dtype}_{variant}"))?;
        }
    }
    Ok(ReluBackward { functions })
}

#[cfg(test)]
mod tests {
    use super::*;

    static FAKE: [Image; 4] = [
        Image { kernel: "k", capability: 80, ptx: false, bytes: &[] },
        Image { kernel: "k", capability: 90, ptx: false, bytes: &[] },
        Image { kernel: "k", capability: 120, ptx: false, bytes: &[] },
        Image { kernel: "k", capability: 80, ptx: true, bytes: &[] },
    ];

    #[test]
    fn picks_the_cubin_of_the_same_major_version_else_ptx() {
        let picked = |capability| pick(&FAKE, "k", capability).map(|i| (i.capability, i.ptx));
        assert_eq!(picked(80), Some((80, false)));
        assert_eq!(picked(89), Some((80, false)));
        assert_eq!(picked(90), Some((90, false)));
        assert_eq!(picked(103), Some((80, true)), "no cubin of major version 10");
        assert_eq!(picked(121), Some((120, false)));
        assert_eq!(picked(75), None);
        assert!(pick(&FAKE, "other", 90).is_none());
    }

    #[test]
    fn the_build_embedded_every_target() {
        // Empty only where the build said so (no NVRTC).
        assert_eq!(IMAGES.is_empty(), env!("HYPATIA_CUDA_ARCHS").is_empty());
        for image in IMAGES {
            assert!(image.bytes.len() > 1000, "{} {}", image.kernel, image.capability);
        }
        // Their sources name one target.
        for kernel in [
            "fused_mlp",
            "fp32_gemm",
            "fp32_pack",
            "fp32_relu_backward",
            "tensor_chain",
            "tensor_gemm",
        ] {
            let ours = IMAGES.iter().filter(|i| i.kernel == kernel);
            let targets: Vec<_> = ours.map(|i| (i.capability, i.ptx)).collect();
            assert!(IMAGES.is_empty() || targets == [(90, false)], "{kernel} {targets:?}");
        }
    }
}
