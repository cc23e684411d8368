//! Launches `kernels/tensor_gemm.cu`: a product of our own in a format that the tensor
//! cores read.

use cudarc::driver::sys::{CUfunction, CUstream};

use super::kernel::{allow, Shape as LaunchShape};
use super::modules::Module;
use super::params::{TensorGemmParams, TensorMap};
use super::tensor_map::Boxes;
use super::Refusal;
use crate::plan::format::Format;
use crate::plan::layer::GemmData;
use crate::plan::problem::{Epilogue, Gemm};
use crate::plan::tensor_gemm::{Layout, Shape, Tiling};

/// The functions of one device, by format, layout and shape.
pub struct TensorGemm {
    functions: [[[CUfunction; Shape::ALL.len()]; Layout::ALL.len()]; Format::ALL.len()],
    /// `HYPATIA_TENSOR_GEMM=1`: wherever it works, not only where it is faster.
    pub always: bool,
}

// SAFETY: a CUfunction is a handle into a module that is never unloaded, and
// launching it is thread-safe (CUDA driver API, thread safety).
unsafe impl Send for TensorGemm {}
// SAFETY: as above.
unsafe impl Sync for TensorGemm {}

/// Rows of a box of results: a warpgroup's.
const STORED_ROWS: u32 = 64;

impl TensorGemm {
    /// Loads every kernel; the device's context must be current.
    ///
    /// # Errors
    /// Why there are none: other devices, an old driver, `HYPATIA_TENSOR_GEMM=0`.
    pub fn load(capability: u32) -> Result<Self, String> {
        let wanted = std::env::var("HYPATIA_TENSOR_GEMM").unwrap_or_default();
        if wanted == "0" {
            return Err("HYPATIA_TENSOR_GEMM=0".to_owned());
        }
        let module = Module::load("tensor_gemm", capability)?;
        let null = std::ptr::null_mut();
        let mut functions = [[[null; Shape::ALL.len()]; Layout::ALL.len()]; Format::ALL.len()];
        for (format, by_layout) in Format::ALL.into_iter().zip(&mut functions) {
            for (layout, by_shape) in Layout::ALL.into_iter().zip(by_layout) {
                for (shape, function) in Shape::ALL.into_iter().zip(by_shape) {
                    if layout.is_for(format) && shape.is_for(layout) {
                        let Shape { groups, cols } = shape;
                        let (format, layout) = (format.name(), layout.name());
                        let name = format!("tensor_gemm_{format}_{groups}x{cols}_{layout}");
                        *function = module.function(name)?;
                        allow(*function, shape.shared_bytes())?;
                    }
                }
            }
        }
        Ok(Self { functions, always: wanted == "1" })
    }

    fn function(&self, format: Format, tiling: &Tiling) -> CUfunction {
        let shape = Shape::ALL.iter().position(|shape| *shape == tiling.shape).unwrap_or(0);
        self.functions[format as usize][tiling.layout as usize][shape]
    }

    /// Puts the product on `stream`; with `overlaps` it may begin while the kernel
    /// in front ends, which must not write the weights (`data.a`).
    ///
    /// # Safety
    /// The device's context is current; every address is valid on it for the
    /// shapes of the product until the stream has passed this point; `tiling` is
    /// one of the product's candidates.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(
        &self,
        gemm: &Gemm,
        tiling: &Tiling,
        data: GemmData,
        stream: CUstream,
        overlaps: bool,
    ) -> Result<(), Refusal> {
        // Row-major notation: the right operand of column-major is our left one.
        let Gemm { m: cols, n: rows, k, dtype, math, .. } = *gemm;
        let Tiling { layout, shape, .. } = *tiling;
        let format = Format::of(dtype, math)
            .ok_or_else(|| Refusal::failure(format!("tensor_gemm was planned for {gemm}")))?;
        let (run_of_box, tf32) = (format.run(), format == Format::Tf32);
        let overlaps = overlaps && tiling.overlaps;
        let operand = |data, k_first: bool, other, ld, box_runs| {
            let (run, runs) = if k_first { (k, other) } else { (other, k) };
            let size = [run_of_box, if k_first { box_runs } else { run_of_box }];
            Boxes { data, dtype, tf32, run, runs, ld, size }.encode()
        };
        let left = operand(data.b, layout != Layout::Tt, rows, gemm.b.ld, shape.rows() as u32)?;
        let right = operand(data.a, layout == Layout::Nn, cols, gemm.a.ld, shape.cols as u32)?;
        let by_map = (gemm.ldd as u64 * dtype.size()).is_multiple_of(16) && gemm.d_alignment >= 16;
        let size = [run_of_box.min(shape.cols as u32), STORED_ROWS];
        let d =
            Boxes { data: data.d, dtype, tf32: false, run: cols, runs: rows, ld: gemm.ldd, size };
        let d = if by_map { d.encode()? } else { TensorMap::default() };
        let params = TensorGemmParams {
            bias: if gemm.epilogue.has_bias() { data.bias as u64 } else { 0 },
            d: data.d as u64,
            m: rows as i32,
            n: cols as i32,
            k: k as i32,
            relu: matches!(gemm.epilogue, Epilogue::Relu | Epilogue::ReluBias).into(),
            row_tiles: tiling.row_tiles as i32,
            early: overlaps.into(),
            by_map: by_map.into(),
            reserved: 0,
        };
        let launch = LaunchShape {
            grid: ((tiling.row_tiles * tiling.col_tiles) as u32, 1),
            threads: shape.threads(),
            cluster: 1,
            shared: shape.shared_bytes(),
            overlaps,
            cooperates: false,
        };
        let arguments = [
            (&raw const left).cast_mut().cast(),
            (&raw const right).cast_mut().cast(),
            (&raw const d).cast_mut().cast(),
            (&raw const params).cast_mut().cast(),
        ];
        // SAFETY: the parameter block is the one the kernel declares (params.rs is
        // held to params.h by a test); the caller vouches for the addresses;
        // extents and alignment are those the kernel takes (plan::tensor_gemm).
        unsafe { launch.launch(self.function(format, tiling), stream, arguments) }
            .map_err(|error| Refusal::driver("launching tensor_gemm", error))
    }
}
