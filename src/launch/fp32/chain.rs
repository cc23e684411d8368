//! The launches of a chain.

use cudarc::driver::sys::CUstream;

use super::super::call::Call;
use super::super::kernel::Shape;
use super::super::modules::Modules;
use super::super::pad_rows::PadRows;
use super::super::params::{Fp32GemmParams, Fp32PackParams, Fp32ReluBackwardParams};
use super::super::product::{log_line, logging};
use super::super::tensor_map::Boxes;
use super::super::{Refusal, Workspace};
use super::kernels::SHARED_BYTES;
use super::Fp32Kernels;
use crate::plan::check::Settings;
use crate::plan::fp32::jobs::{Gemm, Pack, ReluBackward};
use crate::plan::fp32::tiling::{DEPTH, ROWS, THREADS};
use crate::plan::fp32::{self, Chain, Job, Order};
use crate::plan::layer::Work;
use crate::plan::pad::Pad;
use crate::plan::problem::Dtype;

/// A chain that is decided but not launched.
pub struct ReadyChain<'a> {
    kernels: &'a Fp32Kernels,
    pad_rows: Result<&'a PadRows, &'a String>,
    chain: Chain,
}

/// Columns and k of a block of `fp32_pack`, and threads of the small kernels.
const PACK_COLS: i64 = 64;
const SMALL_THREADS: u32 = 256;

impl<'a> ReadyChain<'a> {
    /// `None` if cuBLASLt does the work.
    pub fn choose(
        modules: &'a Modules,
        settings: Settings,
        work: &Work,
        multiprocessors: i64,
    ) -> Option<Self> {
        let kernels = modules.fp32.as_ref().ok().filter(|kernels| !kernels.gave_up())?;
        let pad_rows = modules.pad_rows.as_ref();
        let chain = fp32::choose(settings, work, multiprocessors, kernels.policy);
        if let (true, Err(reason)) = (logging(), &chain) {
            log_line(|| format!("fp32 by cuBLASLt: {reason}"));
        }
        let chain = chain.ok()?;
        let pads = chain.jobs.iter().any(|job| matches!(job, Job::Pad(_)));
        if let (true, Err(reason)) = (pads, pad_rows) {
            log_line(|| format!("fp32 by cuBLASLt: rows are not aligned, {reason}"));
            return None;
        }
        Some(Self { kernels, pad_rows, chain })
    }

    /// Scratch bytes behind the tickets.
    pub fn scratch_bytes(&self) -> usize {
        self.chain.scratch_bytes
    }

    /// Puts all of it on the call's stream.
    ///
    /// # Safety
    /// The device's context is current; the addresses of the work are valid on it
    /// for their shapes until the stream has passed this point; the call's
    /// workspace, whose turn is the caller's, has [`Self::scratch_bytes`] behind its
    /// tickets.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(&self, call: &Call) -> Result<(), Refusal> {
        log_line(|| format!("fp32 on the tensor cores: {}", self.chain));
        // SAFETY: the caller vouches for the ticket area.
        unsafe { call.workspace.clear_if_private(call.stream as CUstream) }?;
        for (index, job) in self.chain.jobs.iter().enumerate() {
            // The first waits for whatever made the operands.
            let on = On { ready: self, call, overlaps: index > 0 };
            // SAFETY: forwarded.
            unsafe {
                match job {
                    Job::Pad(pad) => on.pad(pad),
                    Job::Pack(pack) => on.pack(pack),
                    Job::Gemm(gemm) => on.gemm(gemm),
                    Job::ReluBackward(relu) => on.relu_backward(relu),
                }
            }?;
        }
        Ok(())
    }

    /// A launch failed: from now on cuBLASLt does the device's products.
    pub fn give_up(&self) {
        self.kernels.give_up();
    }
}

/// Where one job goes.
struct On<'a> {
    ready: &'a ReadyChain<'a>,
    call: &'a Call,
    overlaps: bool,
}

impl On<'_> {
    /// Address of a place in scratch memory.
    fn place(&self, offset: usize) -> u64 {
        (self.call.workspace.data + Workspace::TICKET_BYTES + offset) as u64
    }

    fn small(&self, grid: (i64, i64)) -> Shape {
        let grid = (grid.0 as u32, grid.1 as u32);
        Shape {
            grid,
            threads: SMALL_THREADS,
            cluster: 1,
            shared: 0,
            overlaps: self.overlaps,
            cooperates: false,
        }
    }

    /// # Safety
    /// As for [`ReadyChain::launch`].
    unsafe fn pad(&self, pad: &Pad) -> Result<(), Refusal> {
        let rows = self.ready.pad_rows.map_err(|reason| Refusal::by_design(reason.clone()))?;
        let (scratch, stream) = (self.place(0) as usize, self.call.stream as CUstream);
        // SAFETY: the caller vouches for the matrix; the copy has its place in the
        // workspace.
        unsafe { rows.launch(pad, scratch, stream, self.overlaps) }
    }

    /// # Safety
    /// As for [`ReadyChain::launch`].
    unsafe fn pack(&self, pack: &Pack) -> Result<(), Refusal> {
        let right = pack.right;
        let params = Fp32PackParams {
            right: right.data as u64,
            image: self.place(pack.image),
            k_stride: right.row_stride,
            col_stride: right.col_stride,
            k: right.rows as i32,
            n: right.cols as i32,
        };
        let cols = fp32::tiling::padded(right.cols) / PACK_COLS;
        let shape = self.small((cols, (right.rows + DEPTH - 1) / DEPTH));
        let arguments = [(&raw const params).cast_mut().cast()];
        // SAFETY: the parameter block is the one the kernel declares (params.rs
        // is held to params.h by a test); the caller vouches for the matrix, and
        // the image has its place in the workspace (plan::fp32::chain).
        unsafe {
            shape.launch(
                self.ready.kernels.pack(pack.order),
                self.call.stream as CUstream,
                arguments,
            )
        }
        .map_err(|error| Refusal::driver("launching fp32_pack", error))
    }

    /// # Safety
    /// As for [`ReadyChain::launch`].
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), Refusal> {
        let (left, tiling) = (gemm.left, gemm.tiling);
        let data = if gemm.padded { self.place(left.data) as usize } else { left.data };
        let (m, k) = (left.rows, left.cols);
        let (run, runs, size) = match gemm.order {
            Order::Rows => (k, m, [DEPTH as u32, ROWS as u32]),
            Order::Columns => (m, k, [DEPTH as u32, DEPTH as u32]),
        };
        let (dtype, ld) = (Dtype::F32, gemm.ld);
        let map = Boxes { data, dtype, tf32: false, run, runs, ld, size }.encode()?;
        let params = Fp32GemmParams {
            image: self.place(gemm.image),
            bias: gemm.bias.unwrap_or_default() as u64,
            d: gemm.output as u64,
            image_out: gemm.image_out.map_or(0, |image| self.place(image)),
            left: data as u64,
            partial: self.place(self.ready.chain.partial),
            tickets: self.call.workspace.data as u64,
            left_row: left.row_stride,
            left_k: left.col_stride,
            d_col: m,
            m: m as i32,
            n: gemm.n as i32,
            k: k as i32,
            relu: gemm.relu.into(),
            row_tiles: tiling.row_tiles as i32,
            col_tiles: tiling.col_tiles as i32,
            splits: tiling.splits as i32,
            // Weights and saved activations, or copies of them; the first job in
            // front of it that is no copy waited for those who made them.
            early: self.overlaps.into(),
            parts: tiling.parts as i32,
            reserved: 0,
        };
        let shape = Shape {
            grid: ((tiling.clusters * tiling.blocks) as u32, 1),
            threads: THREADS,
            cluster: tiling.blocks as u32,
            shared: SHARED_BYTES,
            overlaps: self.overlaps,
            cooperates: false,
        };
        let function = self.ready.kernels.gemm(gemm.order, tiling.shape);
        let arguments = [(&raw const map).cast_mut().cast(), (&raw const params).cast_mut().cast()];
        // SAFETY: as in `pack`; extents and alignment are those the kernel takes
        // (plan::fp32), shared memory what its ring needs (kernels.rs).
        unsafe { shape.launch(function, self.call.stream as CUstream, arguments) }
            .map_err(|error| Refusal::driver("launching fp32_gemm", error))
    }

    /// # Safety
    /// As for [`ReadyChain::launch`].
    unsafe fn relu_backward(&self, relu: &ReluBackward) -> Result<(), Refusal> {
        let grad = relu.grad;
        let image = |offset: Option<usize>| offset.map_or(0, |offset| self.place(offset));
        let params = Fp32ReluBackwardParams {
            grad: grad.data as u64,
            output: relu.output as u64,
            over_cols: image(relu.over_cols),
            over_rows: image(relu.over_rows),
            bias_grad: relu.bias_grad as u64,
            partial: self.place(self.ready.chain.partial),
            tickets: self.call.workspace.data as u64,
            grad_row_stride: grad.row_stride,
            grad_col_stride: grad.col_stride,
            rows_per_split: relu.rows_per_split,
            rows: grad.rows as i32,
            cols: grad.cols as i32,
        };
        let arguments = [(&raw const params).cast_mut().cast()];
        let (function, stream) = (self.ready.kernels.relu_backward, self.call.stream as CUstream);
        // SAFETY: as in `pack`; the grid covers rows and columns (plan::fp32::chain).
        unsafe { self.small(relu.grid).launch(function, stream, arguments) }
            .map_err(|error| Refusal::driver("launching fp32_relu_backward", error))
    }
}
