//! Launches `kernels/relu_backward.cu`.

use cudarc::driver::result;
use cudarc::driver::sys::{CUfunction, CUstream};

use super::device::Device;
use super::params::ReluBackwardParams;
use super::{Refusal, Workspace};
use crate::plan::check::{alignment, Matrix};
use crate::plan::layer::ReluBackward;
use crate::plan::relu_grid::{self, ReluGrid, ReluShape};

/// A launch that is decided but not made.
pub struct ReluLaunch {
    call: ReluBackward,
    grid: ReluGrid,
    function: CUfunction,
}

impl ReluLaunch {
    /// Chooses variant and grid.
    ///
    /// # Errors
    /// When the kernel was not built for the device.
    pub fn new(device: &Device, call: ReluBackward) -> Result<Self, Refusal> {
        let width = 16 / call.dtype.size() as i64;
        let aligned = call.grad.col_stride == 1
            && call.grad.cols % width == 0
            && call.grad.row_stride % width == 0
            && [call.grad.data, call.output, call.masked].iter().all(|&a| alignment(a) >= 16);
        let grid = relu_grid::choose(ReluShape {
            rows: call.grad.rows,
            cols: call.grad.cols,
            dtype: call.dtype,
            aligned,
            multiprocessors: device.multiprocessors,
        })
        .ok_or_else(|| Refusal::by_design("more columns than a grid has blocks"))?;
        let function = device
            .modules
            .relu_backward(call.dtype, grid.vectorized)
            .ok_or_else(|| Refusal::failure(device.modules.missing.clone().unwrap_or_default()))?;
        Ok(Self { call, grid, function })
    }

    /// Where the masked gradient goes; 0 for nowhere.
    pub fn masked(&self) -> usize {
        self.call.masked
    }

    /// Scratch bytes behind the tickets.
    pub fn scratch_bytes(&self) -> usize {
        if self.call.bias_grad == 0 {
            0
        } else {
            self.grid.scratch_bytes(self.call.grad.cols)
        }
    }

    /// Puts the kernel on `stream`.
    ///
    /// # Safety
    /// The device's context is current; every address is valid on it for the
    /// shapes of the call until the stream has passed this point; `workspace`
    /// has the tickets and [`Self::scratch_bytes`] behind them if that is not 0.
    pub unsafe fn launch(&self, workspace: Workspace, stream: CUstream) -> Result<(), Refusal> {
        let failed = |error| Refusal::driver("launching relu_backward", error);
        if self.scratch_bytes() > 0 {
            // SAFETY: the caller vouches for the ticket area.
            unsafe { workspace.clear_if_private(stream) }?;
        }
        let Matrix { data, rows, cols, row_stride, col_stride } = self.call.grad;
        let mut params = ReluBackwardParams {
            grad: data as u64,
            output: self.call.output as u64,
            masked: self.call.masked as u64,
            bias_grad: self.call.bias_grad as u64,
            partial: (workspace.data + Workspace::TICKET_BYTES) as u64,
            tickets: workspace.data as u64,
            rows,
            cols,
            grad_row_stride: row_stride,
            grad_col_stride: col_stride,
            rows_per_split: self.grid.rows_per_split,
        };
        let grid = (self.grid.strips, self.grid.splits, 1);
        let block = (relu_grid::THREADS as u32, 1, 1);
        // SAFETY: the parameter block is the one the kernel declares
        // (params.rs is held to params.h by a test); the caller vouches for
        // the addresses in it; the grid covers rows and columns (relu_grid).
        unsafe {
            let mut arguments = [(&raw mut params).cast()];
            result::launch_kernel(self.function, grid, block, 0, stream, &mut arguments)
        }
        .map_err(failed)
    }
}
