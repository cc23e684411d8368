//! From a [`Gemm`] to a ready-made cuBLASLt call, or to a launch of our own kernel
//! where that was timed to be faster.

use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;

use super::algorithm::Algorithm;
use super::cublaslt::{self, CublasLt, MatrixLayout};
use super::device::Device;
use super::Refusal;
use crate::plan::kept::Choice;
use crate::plan::layer::GemmData;
use crate::plan::problem::{Dtype, Epilogue, Gemm, Math};
use crate::plan::tensor_gemm;
use crate::plan::tuning::Effort;

/// Everything about a product that does not change from call to call.
pub struct GemmPlan {
    library: &'static CublasLt,
    // A value, not a handle: each call sets its bias on a copy of its own, so
    // threads share a plan without a lock.
    description: sys::cublasLtMatmulDescOpaque_t,
    a: MatrixLayout,
    b: MatrixLayout,
    d: MatrixLayout,
    one: Scalar,
    zero: Scalar,
    fused_bias: bool,
    gemm: Gemm,
    /// The algorithm in use.
    pub algorithm: Algorithm,
    /// Its place in the heuristic's lists.
    pub rank: usize,
    /// The lists of all limits, best guess first, then our own; kept until the plan
    /// is tuned.
    pub candidates: Vec<Algorithm>,
}

// SAFETY: layouts are only read after `new` (cublasLtMatmul takes them as
// input), the rest is plain data.
unsafe impl Send for GemmPlan {}
// SAFETY: as above.
unsafe impl Sync for GemmPlan {}

/// One or zero in the scale type: fp32, or fp16 in the low half.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Scalar(u32);

const fn data_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
        Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

/// Compute type, scale type, and one in the scale type.
fn arithmetic(math: Math) -> (sys::cublasComputeType_t, sys::cudaDataType, Scalar) {
    use sys::cublasComputeType_t as Compute;
    let fp32 = |compute| (compute, sys::cudaDataType::CUDA_R_32F, Scalar(1.0f32.to_bits()));
    match math {
        Math::Strict => fp32(Compute::CUBLAS_COMPUTE_32F),
        Math::Tf32 => fp32(Compute::CUBLAS_COMPUTE_32F_FAST_TF32),
        Math::Fp16Accumulate => {
            (Compute::CUBLAS_COMPUTE_16F, sys::cudaDataType::CUDA_R_16F, Scalar(0x3C00))
        }
    }
}

impl GemmPlan {
    /// Builds the descriptors and asks the heuristic for as many algorithms as `effort`
    /// says; the best guess is in use until `tune` knows better. `data` counts only for
    /// its alignment.
    ///
    /// # Errors
    /// When cuBLASLt has no algorithm.
    pub fn new(
        device: &Device,
        gemm: &Gemm,
        data: GemmData,
        effort: &Effort,
    ) -> Result<Self, Refusal> {
        let library = device.cublaslt();
        let (mut description, one) = describe(library, gemm, data)?;
        let dtype = data_type(gemm.dtype);
        let layout = |rows, cols, ld| {
            library
                .layout(dtype, rows, cols, ld)
                .map_err(|failure| failure.of("cublasLtMatrixLayoutCreate"))
        };
        // Stored sizes: a transposed operand lies in memory the other way round.
        let stored = |transposed, rows, cols| if transposed { (cols, rows) } else { (rows, cols) };
        let (rows, cols) = stored(gemm.a.transposed, gemm.m, gemm.k);
        let a = layout(rows, cols, gemm.a.ld)?;
        let (rows, cols) = stored(gemm.b.transposed, gemm.k, gemm.n);
        let b = layout(rows, cols, gemm.b.ld)?;
        let d = layout(gemm.m, gemm.n, gemm.ldd)?;

        let mut candidates: Vec<Algorithm> = vec![];
        for &limit in effort.limits {
            let limit = limit.min(device.gemm_workspace_limit);
            let preference = preference(library, gemm, limit)
                .map_err(|failure| failure.of("cublasLtMatmulPreferenceSetAttribute"))?;
            let layouts = [&a, &b, &d];
            let found = library
                .algorithms(
                    device.handle(),
                    &mut description,
                    layouts,
                    &preference,
                    effort.candidates,
                )
                .unwrap_or_default(); // No algorithm: the other limits decide.
            for algorithm in found {
                let differs = |known: &Algorithm| match known {
                    Algorithm::Library(known) => known.config != algorithm.config,
                    Algorithm::Own(_) => true,
                };
                if candidates.iter().all(differs) {
                    candidates.push(Algorithm::Library(algorithm));
                }
            }
        }
        if gemm.has_few_long_sums(device.multiprocessors) {
            // Stable: else as guessed.
            candidates.sort_by_key(|candidate| !candidate.splits_k());
        }
        if let Ok(kernel) = &device.modules.tensor_gemm {
            let ours = tensor_gemm::candidates(gemm, device.multiprocessors);
            let ours = ours.into_iter().map(Algorithm::Own);
            let at = if kernel.always { 0 } else { candidates.len() };
            candidates.splice(at..at, ours);
        }
        // Not a failure: some shapes have no fused algorithm.
        let algorithm = *candidates
            .first()
            .ok_or_else(|| Refusal::by_design(format!("cuBLASLt has no algorithm for {gemm}")))?;
        Ok(Self {
            library,
            description,
            a,
            b,
            d,
            one,
            zero: Scalar(0),
            fused_bias: gemm.epilogue.has_bias(),
            gemm: *gemm,
            algorithm,
            rank: 0,
            candidates,
        })
    }

    /// Uses the candidate at `rank`.
    pub fn choose(&mut self, rank: usize) {
        self.algorithm = self.candidates[rank];
        self.rank = rank;
    }

    /// Uses what another process chose, if that is among the candidates.
    pub fn take(&mut self, choice: &Choice) -> bool {
        let found = self.candidates.iter().position(|candidate| candidate.choice() == *choice);
        if let Some(rank) = found {
            self.choose(rank);
        }
        found.is_some()
    }

    /// Whether it is a layer's forward pass, which may begin while the kernel in
    /// front ends.
    pub fn is_forward(&self) -> bool {
        self.gemm.a.transposed && !self.gemm.b.transposed
    }

    /// Puts the product on `stream`; with `overlaps` it may begin while the kernel
    /// in front ends, which must not write the weights.
    ///
    /// # Safety
    /// The device's context is current; every address is valid on it for the
    /// shapes of the plan until the stream has passed this point; `workspace`
    /// has at least the algorithm's bytes; `algorithm` was one of the plan's
    /// candidates.
    ///
    /// # Errors
    /// When cuBLASLt or the driver reports one.
    pub unsafe fn launch(
        &self,
        device: &Device,
        algorithm: &Algorithm,
        data: GemmData,
        workspace: usize,
        stream: CUstream,
        overlaps: bool,
    ) -> Result<(), Refusal> {
        let algorithm = match (algorithm, &device.modules.tensor_gemm) {
            (Algorithm::Library(found), _) => found,
            (Algorithm::Own(tiling), Ok(kernel)) => {
                // SAFETY: forwarded.
                return unsafe { kernel.launch(&self.gemm, tiling, data, stream, overlaps) };
            }
            (Algorithm::Own(_), Err(reason)) => return Err(Refusal::failure(reason.clone())),
        };
        let mut description = self.description;
        if self.fused_bias {
            set_bias(self.library, &mut description, data.bias)?;
        }
        // SAFETY: the caller vouches for addresses and workspace; the scalars
        // were made for the description's scale type (`arithmetic`). beta is
        // 0, so D is written without being read.
        unsafe {
            self.library.matmul(
                device.handle(),
                &mut description,
                [(&raw const self.one).cast(), (&raw const self.zero).cast()],
                [data.a, data.b, data.d],
                [&self.a, &self.b, &self.d],
                algorithm,
                workspace,
                stream.cast(),
            )
        }
        .map_err(|failure| failure.of("cublasLtMatmul"))
    }
}

fn set_bias(
    library: &CublasLt,
    description: &mut sys::cublasLtMatmulDescOpaque_t,
    bias: usize,
) -> Result<(), Refusal> {
    let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
    library
        .set(description, attribute, bias as u64)
        .map_err(|failure| failure.of("cublasLtMatmulDescSetAttribute"))
}

/// The operation, and one in its scale type.
fn describe(
    library: &CublasLt,
    gemm: &Gemm,
    data: GemmData,
) -> Result<(sys::cublasLtMatmulDescOpaque_t, Scalar), Refusal> {
    use sys::cublasLtMatmulDescAttributes_t as Desc;
    let (compute, scale, one) = arithmetic(gemm.math);
    let mut description = library
        .description(compute, scale)
        .map_err(|failure| failure.of("cublasLtMatmulDescInit"))?;
    let epilogue = match gemm.epilogue {
        Epilogue::None => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
        Epilogue::Bias => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
        Epilogue::Relu => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_RELU,
        Epilogue::ReluBias => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_RELU_BIAS,
    };
    // cublasOperation_t: CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
    for (attribute, value) in [
        (Desc::CUBLASLT_MATMUL_DESC_TRANSA, u32::from(gemm.a.transposed)),
        (Desc::CUBLASLT_MATMUL_DESC_TRANSB, u32::from(gemm.b.transposed)),
        (Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue as u32),
    ] {
        library
            .set(&mut description, attribute, value)
            .map_err(|failure| failure.of("cublasLtMatmulDescSetAttribute"))?;
    }
    if gemm.epilogue.has_bias() {
        // The heuristic looks at its alignment.
        set_bias(library, &mut description, data.bias)?;
    }
    Ok((description, one))
}

/// What the heuristic may use and rely on.
fn preference(
    library: &'static CublasLt,
    gemm: &Gemm,
    workspace_limit: usize,
) -> Result<cublaslt::SearchPreference, cublaslt::Failure> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
    use sys::cublasLtReductionScheme_t as Scheme;
    let preference = library.preference()?;
    preference.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_limit)?;
    for (attribute, alignment) in [
        (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, gemm.a.alignment),
        (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, gemm.b.alignment),
        (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, gemm.d_alignment),
        (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, gemm.d_alignment),
    ] {
        preference.set(attribute, alignment)?;
    }
    if gemm.dtype != Dtype::F32 {
        // Split-K sums stay in fp32. The framework's flags would allow 16-bit
        // ones, but those were off by 0.06 at K = 784 and |y| = 0.04 in bf16.
        // With a bias none at all: cuBLASLt 13.1 rounds the sum to 16 bits before it
        // adds the bias (65 x 1000 x 129: 42 times the bound in bf16, 8 in fp16).
        let mut schemes = Scheme::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        if gemm.split_k && !gemm.epilogue.has_bias() {
            schemes |= Scheme::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        }
        preference.set(Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes)?;
    }
    Ok(preference)
}
