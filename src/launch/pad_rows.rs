//! Launches `kernels/pad_rows.cu`.

use cudarc::driver::result;
use cudarc::driver::sys::{CUfunction, CUstream};

use super::kernel::{asked, Shape};
use super::modules::Module;
use super::params::PadRowsParams;
use super::Refusal;
use crate::plan::pad::{Pad, Unpad, THREADS};
use crate::plan::policy::Policy;

/// The functions of one device.
pub struct PadRows {
    /// For elements of two and four bytes.
    functions: [CUfunction; 2],
    /// The way back.
    back: [CUfunction; 2],
    /// Whether kernels can begin while the one in front ends.
    overlap: bool,
    /// `HYPATIA_PAD_ROWS=1`: wherever rows or results are not aligned.
    pub policy: Policy,
}

// SAFETY: a CUfunction is a handle into a module that is never unloaded, and
// launching it is thread-safe (CUDA driver API, thread safety).
unsafe impl Send for PadRows {}
// SAFETY: as above.
unsafe impl Sync for PadRows {}

impl PadRows {
    /// Loads them; the device's context must be current.
    ///
    /// # Errors
    /// Why there are none: no image for the device, `HYPATIA_PAD_ROWS=0`.
    pub fn load(capability: u32) -> Result<Self, String> {
        let policy = asked("HYPATIA_PAD_ROWS")?;
        let module = Module::load("pad_rows", capability)?;
        let functions = |name: &str| -> Result<_, String> {
            let function = |size| module.function(format!("{name}_{size}"));
            Ok([function(2)?, function(4)?])
        };
        let (functions, back) = (functions("pad_rows")?, functions("unpad_rows")?);
        Ok(Self { functions, back, overlap: capability >= 90, policy })
    }

    /// Puts a copy on `stream`, into the scratch memory at `scratch`; with `follows`
    /// right behind another copy, beside which it may run.
    ///
    /// # Safety
    /// The device's context is current; the source is valid on it until the stream has
    /// passed this point, and so are [`Pad::bytes`] at the copy's place.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(
        &self,
        pad: &Pad,
        scratch: usize,
        stream: CUstream,
        follows: bool,
    ) -> Result<(), Refusal> {
        let mut params = PadRowsParams {
            from: pad.from.data as u64,
            to: (scratch + pad.to) as u64,
            row_stride: pad.from.row_stride,
            rows: pad.rows as i32,
            from_rows: pad.from.rows as i32,
            cols: pad.from.cols as i32,
            ld: pad.ld as i32,
        };
        let function = self.functions[usize::from(pad.size == 4)];
        let (grid, threads) = ((pad.blocks as u32, 1), THREADS as u32);
        let arguments = [(&raw mut params).cast()];
        // SAFETY: the parameter block is the one the kernel declares (params.rs is held
        // to params.h by a test); the caller vouches for the addresses in it; the grid
        // covers the copy (plan::pad).
        unsafe {
            if follows && self.overlap {
                let shape = Shape {
                    grid,
                    threads,
                    cluster: 1,
                    shared: 0,
                    overlaps: true,
                    cooperates: false,
                };
                shape.launch(function, stream, arguments)
            } else {
                let (grid, block) = ((grid.0, grid.1, 1), (threads, 1, 1));
                result::launch_kernel(function, grid, block, 0, stream, &mut { arguments })
            }
        }
        .map_err(|error| Refusal::driver("launching pad_rows", error))
    }

    /// Puts the way back on `stream`, behind the product that made the result.
    ///
    /// # Safety
    /// The device's context is current; [`Unpad::bytes`] at the result's place in the
    /// scratch memory at `scratch`, and where it goes, are valid on it until the stream
    /// has passed this point.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch_back(
        &self,
        unpad: &Unpad,
        scratch: usize,
        stream: CUstream,
    ) -> Result<(), Refusal> {
        let mut params = PadRowsParams {
            from: (scratch + unpad.from) as u64,
            to: unpad.to.data as u64,
            row_stride: unpad.ld,
            rows: unpad.to.rows as i32,
            from_rows: unpad.to.rows as i32,
            cols: unpad.to.cols as i32,
            ld: unpad.to.cols as i32,
        };
        let function = self.back[usize::from(unpad.size == 4)];
        let (grid, block) = ((unpad.blocks as u32, 1, 1), (THREADS as u32, 1, 1));
        // SAFETY: as above.
        unsafe {
            let arguments = &mut [(&raw mut params).cast()];
            result::launch_kernel(function, grid, block, 0, stream, arguments)
        }
        .map_err(|error| Refusal::driver("launching unpad_rows", error))
    }
}
