//! One operator call: what is to run as plain data, the plans, then the
//! launches of all its layers behind one another.

use cudarc::driver::result::stream as streams;
use cudarc::driver::sys::{CUstream, CUstreamCaptureStatus};

use super::device::{device, Device};
use super::product::Product;
use super::relu_backward::ReluLaunch;
use super::{Outcome, Refusal, Scope, Workspace};
use crate::plan::check::{Matrix, Settings};
use crate::plan::layer::{self, Layer, LayerBackward, StepBackward};

/// What every call brings besides its matrices.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Device, dtype and switches.
    pub settings: Settings,
    /// LibTorch's current stream on that device.
    pub stream: usize,
    /// Scratch memory for that stream.
    pub workspace: Workspace,
}

/// Runs `layers` on `input`, each on the result of the one before.
///
/// # Safety
/// Every address is valid on the device for its shape until the stream has
/// passed this call, and no output is read by anything else meanwhile.
///
/// # Errors
/// When ATen should answer; nothing of the results counts then.
pub unsafe fn forward(call: Call, input: Matrix, layers: &[Layer]) -> Result<Outcome, Refusal> {
    let stated = layer::forward(call.settings, input, layers).map_err(Refusal::by_design)?;
    let device = device(call.settings.device)?;
    device.bind()?;
    let products = stated
        .into_iter()
        .map(|stated| Product::prepare(device, &call, stated))
        .collect::<Result<Vec<_>, _>>()?;
    // Asked for once, for the largest, before anything runs.
    let needed = products.iter().map(Product::workspace_bytes).max().unwrap_or(0);
    let tuning = products.iter().any(Product::is_untuned);
    if let Some(outcome) = missing_workspace(device, &call, needed, tuning) {
        return Ok(outcome);
    }
    for product in products {
        // SAFETY: the context was bound above, the workspace checked; addresses
        // are the caller's promise. The stream orders the products, which share
        // the workspace.
        unsafe { product.run(device, &call) }?;
    }
    Ok(Outcome::Done)
}

/// Gradients of `layers`, last layer first: for each the masked gradient and
/// its column sums in one pass, then a product for each gradient that is wanted.
///
/// # Safety
/// As for [`forward`].
///
/// # Errors
/// When ATen should answer.
pub unsafe fn backward(
    call: Call,
    grad_output: Matrix,
    layers: &[LayerBackward],
) -> Result<Outcome, Refusal> {
    let stated = layer::backward(call.settings, grad_output, layers).map_err(Refusal::by_design)?;
    let device = device(call.settings.device)?;
    device.bind()?;
    let steps = stated
        .into_iter()
        .map(|stated| Step::prepare(device, &call, stated))
        .collect::<Result<Vec<_>, _>>()?;
    let needed = steps.iter().map(Step::scratch_bytes).max().unwrap_or(0);
    let tuning = steps.iter().flat_map(Step::products).any(Product::is_untuned);
    if let Some(outcome) = missing_workspace(device, &call, needed, tuning) {
        return Ok(outcome);
    }
    for step in steps {
        // SAFETY: as in `forward`.
        unsafe { step.run(device, &call) }?;
    }
    Ok(Outcome::Done)
}

/// One layer's backward, ready to launch.
struct Step {
    relu: Option<ReluLaunch>,
    products: [Option<Product>; 2],
}

impl Step {
    fn prepare(device: &Device, call: &Call, stated: StepBackward) -> Result<Self, Refusal> {
        let relu = stated.relu.map(|relu| ReluLaunch::new(device, relu)).transpose()?;
        let [input, weight] = stated.products.map(|product| {
            product.map(|stated| Product::prepare(device, call, stated)).transpose()
        });
        Ok(Self { relu, products: [input?, weight?] })
    }

    fn products(&self) -> impl Iterator<Item = &Product> {
        self.products.iter().flatten()
    }

    fn scratch_bytes(&self) -> usize {
        let mask = self.relu.as_ref().map_or(0, ReluLaunch::scratch_bytes);
        self.products().map(Product::workspace_bytes).fold(mask, usize::max)
    }

    /// # Safety
    /// The device's context is current, the workspace has `scratch_bytes`
    /// behind its tickets, addresses are valid as [`forward`] says.
    unsafe fn run(self, device: &Device, call: &Call) -> Result<(), Refusal> {
        // SAFETY: forwarded; the stream orders the products, which read the
        // masked gradient and share the workspace, behind the kernel.
        unsafe {
            if let Some(relu) = self.relu {
                let _turn = call.workspace.turn();
                relu.launch(call.workspace, call.stream as CUstream)?;
            }
            for product in self.products.into_iter().flatten() {
                product.run(device, call)?;
            }
        }
        Ok(())
    }
}

/// What the caller must bring first, if anything.
fn missing_workspace(
    device: &Device,
    call: &Call,
    scratch: usize,
    tuning: bool,
) -> Option<Outcome> {
    if scratch == 0 {
        return None;
    }
    let scope = if call.capturing() {
        Scope::Capture
    } else if tuning {
        Scope::Tuning
    } else {
        Scope::Stream
    };
    let private = scope != Scope::Stream;
    let bytes = Workspace::TICKET_BYTES + scratch;
    if call.workspace.bytes >= bytes && (call.workspace.private || !private) {
        return None;
    }
    // A stream's workspace is asked for once, as large as it can be needed;
    // a capture's stays in the graph for its life, so no larger than needed.
    let limit = device.gemm_workspace_limit.max(scratch) + Workspace::TICKET_BYTES;
    let bytes = if scope == Scope::Capture { bytes } else { limit };
    Some(Outcome::NeedsWorkspace { bytes, scope })
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
