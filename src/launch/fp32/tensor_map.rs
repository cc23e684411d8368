//! How the copy engine finds tiles of a matrix.

use cudarc::driver::sys::{
    self, CUtensorMapDataType as DataType, CUtensorMapFloatOOBfill as Fill,
    CUtensorMapInterleave as Interleave, CUtensorMapL2promotion as Promotion,
    CUtensorMapSwizzle as Swizzle,
};
use cudarc::driver::DriverError;

use super::super::params::TensorMap;

/// Boxes of `box_size` of an fp32 matrix with `runs` runs of `run` contiguous
/// elements, `ld` elements apart; swizzled for rows of 128 bytes, zero outside.
///
/// # Errors
/// The driver's, for what it does not take.
pub fn encode(
    data: usize,
    run: i64,
    runs: i64,
    ld: i64,
    box_size: [u32; 2],
) -> Result<TensorMap, DriverError> {
    let mut map = TensorMap::default();
    let sizes = [run as u64, runs as u64];
    let strides = [ld as u64 * size_of::<f32>() as u64];
    let steps = [1, 1];
    // SAFETY: writes one map, as large and aligned as the driver's own type
    // (asserted below); the arrays have as many entries as dimensions say. The
    // address is not followed.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            (&raw mut map).cast(),
            DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            2,
            data as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            box_size.as_ptr(),
            steps.as_ptr(),
            Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(map)
}

const _: () = assert!(size_of::<TensorMap>() == size_of::<sys::CUtensorMap>());
