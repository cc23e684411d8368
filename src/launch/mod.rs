//! Runs plans on CUDA through cudarc. A call: `call` (where it runs), `exec` (all of
//! it), `own_chain` (whether kernels of ours do it as a whole), `product` (one product
//! with its plan), `replay` (calls recorded as CUDA graphs), `lanes` (branches in a
//! captured graph). Products by the library: `cublaslt` (its functions), `gemm` (plans),
//! `algorithm` (what a plan chooses), `tune` (timing), `kept_plans` and `plan_file`
//! (plans that outlive the process). Kernels of ours: `modules` (embedded images),
//! `kernel` (launches), `params`, `tensor_map` (matrices as the copy engine sees them),
//! `relu_backward`, `small_mlp`, `cluster_mlp`, `tensor_gemm`, `tensor_chain`, `fp32`. Below them: `device`
//! (context, handles, properties), `notice` (warnings).
//! Memory and streams belong to LibTorch; nothing here allocates device
//! memory or synchronises after the first call of a problem.
#![allow(unsafe_code)] // The one CUDA layer; every block says why it is sound.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::result::memset_d8_async;
use cudarc::driver::sys::CUstream;

use crate::plan::relu_grid;

pub mod algorithm;
pub mod call;
pub mod cluster_mlp;
pub mod cublaslt;
pub mod device;
pub mod exec;
pub mod fp32;
pub mod gemm;
pub mod kept_plans;
pub mod kernel;
pub mod lanes;
pub mod modules;
pub mod notice;
pub mod own_chain;
mod pad_rows;
pub mod params;
pub mod plan_file;
pub mod product;
pub mod relu_backward;
pub mod replay;
pub mod small_mlp;
pub mod tensor_chain;
pub mod tensor_gemm;
mod tensor_map;
pub mod tune;

/// Why our CUDA path does not answer a call; ATen does instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A phrase for people.
    pub reason: String,
    /// The user should hear of it (once): something is missing or failed, as
    /// opposed to a case that is ATen's by design.
    pub warn: bool,
}

impl Refusal {
    /// A case that is ATen's by design.
    pub fn by_design(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), warn: false }
    }

    /// Something is missing or failed.
    pub fn failure(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), warn: true }
    }

    /// A driver call failed.
    pub(crate) fn driver(what: &str, error: cudarc::driver::DriverError) -> Self {
        Self::failure(format!("{what} failed: {error:?}"))
    }
}

/// Scratch memory of one stream, from LibTorch's allocator.
///
/// The first [`Workspace::TICKET_BYTES`] are tickets of reductions and are
/// zero between launches; the rest is anyone's within a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Workspace {
    /// Device address; 256-byte aligned.
    pub data: usize,
    /// Size; 0 for none.
    pub bytes: usize,
    /// Belongs to this call alone and was not zeroed.
    pub private: bool,
}

impl Workspace {
    /// For work that needs none.
    pub const NONE: Self = Self { data: 0, bytes: 0, private: false };
    /// Size of the ticket area.
    pub const TICKET_BYTES: usize = relu_grid::TICKETS as usize * size_of::<u32>();

    /// Zeroes the tickets of one that was not.
    ///
    /// # Safety
    /// The device's context is current; the workspace has its tickets.
    pub(crate) unsafe fn clear_if_private(&self, stream: CUstream) -> Result<(), Refusal> {
        if !self.private {
            return Ok(());
        }
        // SAFETY: the caller vouches for the ticket area.
        unsafe { memset_d8_async(self.data as u64, 0, Self::TICKET_BYTES, stream) }
            .map_err(|error| Refusal::driver("clearing tickets", error))
    }

    /// Held while one piece of work that uses the scratch memory is put on the
    /// stream: a split-K product is two kernels, and another thread's work on
    /// the same stream must not come between them.
    pub(crate) fn turn(&self) -> Option<MutexGuard<'static, ()>> {
        const LOCKS: usize = 64;
        static TURNS: [Mutex<()>; LOCKS] = [const { Mutex::new(()) }; LOCKS];
        // Workspaces are megabytes apart.
        let lock = &TURNS[(self.data >> 20) % LOCKS];
        let shared = self.bytes > 0 && !self.private;
        shared.then(|| lock.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The work is on the stream.
    Done,
    /// Nothing was launched: call again with a workspace like this.
    NeedsWorkspace {
        /// At least this large.
        bytes: usize,
        /// For whom.
        scope: Scope,
    },
    /// The same, with memory for the hidden results of a chain.
    NeedsHidden {
        /// Why one launch, which would not need it, failed.
        failed: Option<String>,
    },
}

/// Who may use a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every call on the stream, for good.
    Stream,
    /// This call, which times algorithms beside the stream; later calls will
    /// want one of the same size for the stream.
    Tuning,
    /// This call: the stream is being captured, and a replay must not share
    /// scratch memory with whatever runs beside it; or too much of it to keep.
    Call,
}
