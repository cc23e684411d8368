//! What an operator call brings besides its matrices.

use cudarc::driver::result::stream as streams;
use cudarc::driver::sys::{CUstream, CUstreamCaptureStatus};

use super::Workspace;
use crate::plan::check::Settings;

/// Where and how a call runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Call {
    /// Device, dtype and switches.
    pub settings: Settings,
    /// LibTorch's current stream on that device.
    pub stream: usize,
    /// Scratch memory for that stream.
    pub workspace: Workspace,
}

impl Call {
    /// Whether the stream is being captured. If the driver cannot say (another
    /// thread's capture forbids the question) it counts as captured.
    pub(super) fn capturing(&self) -> bool {
        // SAFETY: LibTorch's current stream, live for the call.
        let status = unsafe { streams::is_capturing(self.stream as CUstream) };
        status != Ok(CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }
}
