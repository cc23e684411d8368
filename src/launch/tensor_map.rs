//! How the copy engine finds tiles of a matrix.

use cudarc::driver::sys::{
    self, CUtensorMapDataType as DataType, CUtensorMapFloatOOBfill as Fill,
    CUtensorMapInterleave as Interleave, CUtensorMapL2promotion as Promotion,
    CUtensorMapSwizzle as Swizzle,
};

use super::params::{ChainMaps, TensorMap};
use super::Refusal;
use crate::plan::check::Matrix;
use crate::plan::format::Format;
use crate::plan::problem::Dtype;

/// What a matrix is made of, for boxes of 128 bytes of a row.
#[derive(Debug, Clone, Copy)]
pub struct Elements {
    /// As they are stored.
    pub dtype: Dtype,
    /// As [`Boxes::tf32`].
    pub tf32: bool,
}

impl From<Format> for Elements {
    fn from(format: Format) -> Self {
        Self { dtype: format.dtype(), tf32: format == Format::Tf32 }
    }
}

/// A matrix as runs of contiguous elements, and the boxes it is read in.
#[derive(Debug, Clone, Copy)]
pub struct Boxes {
    /// Address.
    pub data: usize,
    /// Of the elements.
    pub dtype: Dtype,
    /// fp32 is rounded to TF32 where it is read (not where it is stored; seen on
    /// sm_90, `tests/gpu/test_tensor_chain.py`).
    pub tf32: bool,
    /// Elements of a run.
    pub run: i64,
    /// How many runs.
    pub runs: i64,
    /// Elements from one to the next.
    pub ld: i64,
    /// Elements of a run and runs of a box; 64 or 128 bytes of a run, in which it
    /// is swizzled.
    pub size: [u32; 2],
}

impl Boxes {
    /// A matrix by rows, `rows` of a box: what the tensor cores read, or will.
    pub fn of_rows(Elements { dtype, tf32 }: Elements, m: Matrix, rows: i64) -> Self {
        let (run, runs, ld) = (m.cols, m.rows, m.row_stride);
        let size = [128 / dtype.size() as u32, rows as u32];
        Self { data: m.data, dtype, tf32, run, runs, ld, size }
    }

    /// The driver's description; what lies outside of the matrix reads as zero.
    ///
    /// # Errors
    /// For what the driver does not take.
    pub fn encode(&self) -> Result<TensorMap, Refusal> {
        let data_type = match self.dtype {
            Dtype::F32 if self.tf32 => DataType::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
            Dtype::F32 => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            Dtype::F16 => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Dtype::Bf16 => DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let swizzle = if u64::from(self.size[0]) * self.dtype.size() == 64 {
            Swizzle::CU_TENSOR_MAP_SWIZZLE_64B
        } else {
            Swizzle::CU_TENSOR_MAP_SWIZZLE_128B
        };
        let mut map = TensorMap::default();
        let sizes = [self.run as u64, self.runs as u64];
        // With one run it is not used, but must be as others are.
        let ld = if self.runs == 1 { (self.run + 15) / 16 * 16 } else { self.ld };
        let strides = [ld as u64 * self.dtype.size()];
        let steps = [1, 1];
        // SAFETY: writes one map, as large and aligned as the driver's own type
        // (asserted below); the arrays have as many entries as dimensions say.
        // The address is not followed.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                data_type,
                2,
                self.data as *mut std::ffi::c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                self.size.as_ptr(),
                steps.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|error| Refusal::driver("describing a matrix to the copy engine", error))?;
        Ok(map)
    }
}

/// A chain as its kernels see it: the input, then of each layer the weight with the
/// rows of its boxes, and the result, if the copy engine stores it. `rows` are those of
/// an activation's box.
///
/// # Errors
/// For what the driver does not take.
pub fn of_chain(
    elements: Elements,
    rows: i64,
    input: Matrix,
    layers: impl Iterator<Item = (Matrix, i64, Option<Matrix>)>,
) -> Result<ChainMaps, Refusal> {
    let mut maps = ChainMaps::default();
    maps.activation[0] = Boxes::of_rows(elements, input, rows).encode()?;
    for (i, (weight, weight_rows, result)) in layers.enumerate() {
        maps.weight[i] = Boxes::of_rows(elements, weight, weight_rows).encode()?;
        if let Some(result) = result {
            maps.activation[i + 1] = Boxes::of_rows(elements, result, rows).encode()?;
        }
    }
    Ok(maps)
}

const _: () = assert!(size_of::<TensorMap>() == size_of::<sys::CUtensorMap>());
