//! cuBLASLt: from a [`Gemm`] to a ready-made call.

use std::ffi::c_void;

use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;

use super::device::Device;
use super::Refusal;
use crate::plan::problem::{Dtype, Epilogue, Gemm, Math};

/// Addresses of one call.
#[derive(Debug, Clone, Copy)]
pub struct GemmData {
    /// Left operand (column-major notation).
    pub a: usize,
    /// Right operand.
    pub b: usize,
    /// Result.
    pub d: usize,
    /// Bias, or 0.
    pub bias: usize,
}

/// Algorithms asked of the heuristic.
const CANDIDATES: usize = 16;

/// Everything about a product that does not change from call to call.
pub struct GemmPlan {
    // A value, not a handle: each call sets its bias on a copy of its own, so
    // threads share a plan without a lock.
    description: sys::cublasLtMatmulDescOpaque_t,
    a: Layout,
    b: Layout,
    d: Layout,
    one: Scalar,
    zero: Scalar,
    fused_bias: bool,
    /// The algorithm in use.
    pub algorithm: sys::cublasLtMatmulHeuristicResult_t,
    /// Its rank in the heuristic's list.
    pub rank: usize,
    /// The list, best guess first; kept until the plan is tuned.
    pub candidates: Vec<sys::cublasLtMatmulHeuristicResult_t>,
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

/// An owned matrix layout.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: sys::cudaDataType, rows: i64, cols: i64, ld: i64) -> Result<Self, Refusal> {
        lt::create_matrix_layout(dtype, rows as u64, cols as u64, ld)
            .map(Self)
            .map_err(|error| Refusal::cublaslt("cublasLtMatrixLayoutCreate", error))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed here only. A failure leaks 64 bytes.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// An owned search preference.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, Refusal> {
        lt::create_matmul_pref()
            .map(Self)
            .map_err(|error| Refusal::cublaslt("cublasLtMatmulPreferenceCreate", error))
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> Result<(), Refusal> {
        // SAFETY: `value` lives through the call and its size goes with it.
        unsafe {
            lt::set_matmul_pref_attribute(
                self.0,
                attribute,
                (&raw const value).cast(),
                size_of::<T>(),
            )
        }
        .map_err(|error| Refusal::cublaslt("cublasLtMatmulPreferenceSetAttribute", error))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed here only.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

fn set<T>(
    description: &mut sys::cublasLtMatmulDescOpaque_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: T,
) -> Result<(), Refusal> {
    // SAFETY: `description` was initialised by cublasLtMatmulDescInit (in
    // `GemmPlan::new`) or is a copy of one; `value` lives through the call.
    unsafe {
        lt::set_matmul_desc_attribute(
            description,
            attribute,
            (&raw const value).cast(),
            size_of::<T>(),
        )
    }
    .map_err(|error| Refusal::cublaslt("cublasLtMatmulDescSetAttribute", error))
}

const fn data_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
        Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

impl GemmPlan {
    /// Builds the descriptors and asks the heuristic for algorithms; the best
    /// guess is in use until `tune` knows better. `data` counts only for its
    /// alignment.
    ///
    /// # Errors
    /// When cuBLASLt has no algorithm.
    pub fn new(device: &Device, gemm: &Gemm, data: GemmData) -> Result<Self, Refusal> {
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        use sys::cublasLtMatmulPreferenceAttributes_t as Pref;

        let dtype = data_type(gemm.dtype);
        let (compute, scale, one) = match gemm.math {
            Math::Strict => (
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType::CUDA_R_32F,
                1.0f32.to_bits(),
            ),
            Math::Tf32 => (
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
                sys::cudaDataType::CUDA_R_32F,
                1.0f32.to_bits(),
            ),
            Math::Fp16Accumulate => (
                sys::cublasComputeType_t::CUBLAS_COMPUTE_16F,
                sys::cudaDataType::CUDA_R_16F,
                0x3C00,
            ),
        };
        let mut description = sys::cublasLtMatmulDescOpaque_t { data: [0; 32] };
        // SAFETY: the storage is as large as said; the call fills all of it.
        unsafe {
            sys::cublasLtMatmulDescInit_internal(
                &mut description,
                size_of::<sys::cublasLtMatmulDescOpaque_t>(),
                compute,
                scale,
            )
        }
        .result()
        .map_err(|error| Refusal::cublaslt("cublasLtMatmulDescInit", error))?;
        // cublasOperation_t: CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        let op = i32::from;
        set(&mut description, Desc::CUBLASLT_MATMUL_DESC_TRANSA, op(gemm.a.transposed))?;
        set(&mut description, Desc::CUBLASLT_MATMUL_DESC_TRANSB, op(gemm.b.transposed))?;
        let epilogue = match gemm.epilogue {
            Epilogue::None => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            Epilogue::Relu => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_RELU,
            Epilogue::ReluBias => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_RELU_BIAS,
        };
        set(&mut description, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        let fused_bias = gemm.epilogue == Epilogue::ReluBias;
        if fused_bias {
            set(&mut description, Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, data.bias as u64)?;
        }

        // Stored sizes: a transposed operand lies in memory the other way round.
        let stored = |transposed, rows, cols| if transposed { (cols, rows) } else { (rows, cols) };
        let (rows, cols) = stored(gemm.a.transposed, gemm.m, gemm.k);
        let a = Layout::new(dtype, rows, cols, gemm.a.ld)?;
        let (rows, cols) = stored(gemm.b.transposed, gemm.k, gemm.n);
        let b = Layout::new(dtype, rows, cols, gemm.b.ld)?;
        let d = Layout::new(dtype, gemm.m, gemm.n, gemm.ldd)?;

        let preference = Preference::new()?;
        let limit = device.gemm_workspace_limit;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, limit)?;
        for (attribute, alignment) in [
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, gemm.a.alignment),
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, gemm.b.alignment),
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, gemm.d_alignment),
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, gemm.d_alignment),
        ] {
            preference.set(attribute, alignment)?;
        }
        if gemm.dtype != Dtype::F32 && !gemm.reduced_precision_reduction {
            let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32
                | sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
            preference.set(Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes)?;
        }
        let candidates =
            candidates(device, &mut description, [&a, &b, &d], &preference).map_err(|error| {
                // Not a failure: some shapes have no fused algorithm.
                Refusal::by_design(format!("cuBLASLt has no algorithm ({:?}) for {gemm}", error.0))
            })?;
        let algorithm = candidates[0];
        Ok(Self {
            description,
            a,
            b,
            d,
            one: Scalar(one),
            zero: Scalar(0),
            fused_bias,
            algorithm,
            rank: 0,
            candidates,
        })
    }

    /// Puts the product on `stream`.
    ///
    /// # Safety
    /// The device's context is current; every address is valid on it for the
    /// shapes of the plan until the stream has passed this point; `workspace`
    /// has at least `algorithm.workspaceSize` bytes.
    pub unsafe fn launch(
        &self,
        device: &Device,
        algorithm: &sys::cublasLtMatmulHeuristicResult_t,
        data: GemmData,
        workspace: usize,
        stream: CUstream,
    ) -> Result<(), Refusal> {
        let mut description = self.description;
        if self.fused_bias {
            set(
                &mut description,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                data.bias as u64,
            )?;
        }
        let address = |a: usize| a as *mut c_void;
        // SAFETY: the caller vouches for addresses and workspace; descriptors
        // are this plan's own; beta is 0, so D is written without being read
        // and C may be the same memory.
        unsafe {
            lt::matmul(
                device.lt(),
                &mut description,
                (&raw const self.one).cast(),
                (&raw const self.zero).cast(),
                address(data.a),
                self.a.0,
                address(data.b),
                self.b.0,
                address(data.d),
                self.d.0,
                address(data.d),
                self.d.0,
                &algorithm.algo,
                address(workspace),
                algorithm.workspaceSize,
                stream.cast(),
            )
        }
        .map_err(|error| Refusal::cublaslt("cublasLtMatmul", error))
    }
}

fn candidates(
    device: &Device,
    description: &mut sys::cublasLtMatmulDescOpaque_t,
    [a, b, d]: [&Layout; 3],
    preference: &Preference,
) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>, lt::CublasError> {
    let empty = sys::cublasLtMatmulHeuristicResult_t {
        algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        workspaceSize: 0,
        state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
        wavesCount: 0.0,
        reserved: [0; 4],
    };
    let mut found = vec![empty; CANDIDATES];
    let mut count = 0;
    // SAFETY: descriptors and preference are live; the array has as many
    // entries as the call is told.
    unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            device.lt(),
            description,
            a.0,
            b.0,
            d.0,
            d.0,
            preference.0,
            CANDIDATES as i32,
            found.as_mut_ptr(),
            &mut count,
        )
    }
    .result()?;
    found.truncate(usize::try_from(count).unwrap_or(0));
    found.retain(|candidate| candidate.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
    if found.is_empty() {
        return Err(lt::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
    }
    Ok(found)
}
