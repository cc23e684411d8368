//! One operator call: what is to run as plain data, the plans, then the
//! launches of all its layers behind one another.

use std::sync::Arc;

use cudarc::driver::sys::CUstream;

use super::call::Call;
use super::cluster_mlp::ClusterMlpKernels;
use super::device::{device, Device};
use super::lanes::Lanes;
use super::own_chain::OwnChain;
use super::product::{log_line, Product};
use super::relu_backward::ReluLaunch;
use super::replay::Recording;
use super::small_mlp::MlpLaunch;
use super::{replay, Outcome, Refusal, Scope, Workspace};
use crate::plan::layer::{Step, Work};
use crate::plan::replay::Verdict;

/// Does `work`, by replaying a recording if there is one.
///
/// # Safety
/// Every address is valid on the device for its shape until the stream has
/// passed this call, and no output is read by anything else meanwhile.
///
/// # Errors
/// When ATen should answer; nothing of the results counts then.
pub unsafe fn run(call: Call, work: Work) -> Result<Outcome, Refusal> {
    let device = device(call.settings.device)?;
    device.bind()?;
    let clusters = &device.modules.cluster_mlp;
    if work.lacks_hidden() && !ClusterMlpKernels::takes(clusters, call.settings, &work) {
        let small_mlp = &device.modules.small_mlp;
        if let Some(whole) = MlpLaunch::choose(small_mlp, call.settings, &work) {
            // SAFETY: forwarded.
            return Ok(unsafe { run_at_once(device, call, work, &whole) });
        }
        if device.modules.fp32.is_err() || !call.settings.is_strict_fp32() {
            return Ok(Outcome::NeedsHidden { failed: None });
        }
    }
    let (key, verdict) = replay::meet(call, work);
    if let Verdict::Replay(recording) = &verdict {
        // SAFETY: the addresses are those that were recorded (they are the
        // key), and valid by the caller's promise.
        unsafe { recording.launch(&call) }?;
        return Ok(Outcome::Done);
    }
    let mut failed = None;
    if let Some(chain) = OwnChain::choose(device, call.settings, &key.work) {
        let scratch = chain.scratch_bytes();
        if let Some(outcome) = missing_workspace(device, &call, scratch, false) {
            return Ok(outcome);
        }
        // SAFETY: forwarded; the workspace was checked.
        let launch = |call: &Call| unsafe { chain.launch(call) };
        // SAFETY: forwarded.
        match unsafe { launch_or_record(device, &call, &key, &verdict, launch) } {
            Ok(()) => return Ok(Outcome::Done),
            Err(Refusal { reason, .. }) => {
                // A capture that its owner has spoiled says nothing of the kernels.
                if !call.capturing() {
                    chain.give_up();
                }
                log_line(|| format!("{}: {reason}", chain.name()));
                failed = Some(reason);
            }
        }
    }
    if key.work.lacks_hidden() {
        return Ok(Outcome::NeedsHidden { failed });
    }
    let prepare = || -> Result<Vec<Launches>, Refusal> {
        let steps = key.work.steps(call.settings).map_err(Refusal::by_design)?;
        steps.into_iter().map(|step| Launches::prepare(device, &call, step)).collect()
    };
    let mut steps = prepare()?;
    // Asked for once, for the largest of each lane, before anything runs.
    let needed = scratch_bytes(&steps);
    let tuning = steps.iter().flat_map(Launches::products).any(Product::is_untuned);
    if let Some(outcome) = missing_workspace(device, &call, needed, tuning) {
        return Ok(outcome);
    }
    if matches!(verdict, Verdict::Keep) && !tuning {
        // SAFETY: as below; the steps are put on a stream that only records.
        let recorded = replay::record(device, &call, |call| unsafe { launch(steps, device, call) });
        let recording = replay::keep(key.clone(), recorded);
        if let Some(recording) = recording {
            // SAFETY: recorded from this very call.
            unsafe { recording.launch(&call) }?;
            return Ok(Outcome::Done);
        }
        steps = prepare()?;
    }
    // SAFETY: the context was bound above, the workspace checked; addresses
    // are the caller's promise.
    unsafe { launch(steps, device, &call) }?;
    Ok(Outcome::Done)
}

/// Scratch bytes of the main lane, of steps that follow each other.
fn main_bytes(steps: &[Launches]) -> usize {
    let bytes = steps.iter().map(Launches::main_bytes).max().unwrap_or(0);
    bytes.next_multiple_of(256)
}

/// Of both lanes, which may run at the same time.
fn scratch_bytes(steps: &[Launches]) -> usize {
    main_bytes(steps) + steps.iter().map(Launches::side_bytes).max().unwrap_or(0)
}

/// Does work without memory for hidden results in one launch, or asks for that
/// memory.
///
/// # Safety
/// As for [`run`], with the device's context current.
unsafe fn run_at_once(device: &Device, call: Call, work: Work, whole: &MlpLaunch) -> Outcome {
    // What the stream's other work needs is no part of this call.
    let call = Call { workspace: Workspace::NONE, ..call };
    let (key, verdict) = replay::meet(call, work);
    // SAFETY: forwarded.
    let launch = |call: &Call| unsafe { whole.launch(call) };
    // SAFETY: forwarded.
    match unsafe { launch_or_record(device, &call, &key, &verdict, launch) } {
        Ok(()) => Outcome::Done,
        Err(Refusal { reason, .. }) => {
            // A capture that its owner has spoiled says nothing of the kernel.
            if !call.capturing() {
                whole.give_up();
            }
            Outcome::NeedsHidden { failed: Some(reason) }
        }
    }
}

/// Replays, records and replays, or launches, as the verdict says.
///
/// # Safety
/// The device's context is current; `launch` may be called with a stream that only
/// records; what was recorded may run on the call's stream now.
unsafe fn launch_or_record(
    device: &Device,
    call: &Call,
    key: &Arc<replay::Key>,
    verdict: &Verdict<Recording>,
    launch: impl Fn(&Call) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let recording = match verdict {
        Verdict::Replay(recording) => Some(Arc::clone(recording)),
        Verdict::Keep => replay::keep(Arc::clone(key), replay::record(device, call, &launch)),
        Verdict::Pass => None,
    };
    match recording {
        // SAFETY: forwarded; it was recorded from a call with the same addresses
        // (they are the key).
        Some(recording) => unsafe { recording.launch(call) },
        None => launch(call),
    }
}

/// Puts steps on the call's stream, which orders them: they share buffers and
/// the workspace. In a capture what may run side by side is put there.
///
/// # Safety
/// The device's context is current, the workspace has the [`scratch_bytes`]
/// behind its tickets, addresses are valid as [`run`] says.
unsafe fn launch(steps: Vec<Launches>, device: &Device, call: &Call) -> Result<(), Refusal> {
    let branches =
        steps.iter().any(|step| step.products[1].as_ref().is_some_and(Product::is_small));
    let mut lanes = branches.then(|| Lanes::of(call.stream as CUstream)).flatten();
    let mut aside = *call;
    aside.workspace.data += main_bytes(&steps);
    for (index, step) in steps.into_iter().enumerate() {
        // Behind the first, which waits for whoever made the operands, a layer's
        // forward pass need not wait for the end of the one in front to begin.
        let overlaps = index > 0 && lanes.is_none() && step.is_forward();
        // SAFETY: forwarded.
        unsafe { step.run(device, call, &aside, lanes.as_mut(), overlaps) }?;
    }
    lanes.map_or(Ok(()), Lanes::join)
}

/// One step, ready to launch.
struct Launches {
    relu: Option<ReluLaunch>,
    products: [Option<Product>; 2],
}

impl Launches {
    fn prepare(device: &Device, call: &Call, step: Step) -> Result<Self, Refusal> {
        let relu = step.relu.map(|relu| ReluLaunch::new(device, relu)).transpose()?;
        let [first, second] = step.products.map(|product| {
            product.map(|stated| Product::prepare(device, call, stated)).transpose()
        });
        Ok(Self { relu, products: [first?, second?] })
    }

    fn products(&self) -> impl Iterator<Item = &Product> {
        self.products.iter().flatten()
    }

    /// Whether the second product goes beside the main lane in a capture.
    fn branches(&self) -> bool {
        self.products[1].as_ref().is_some_and(Product::is_small)
    }

    /// Whether it is one product alone, on the result of the step in front.
    fn is_forward(&self) -> bool {
        self.relu.is_none() && self.products[1].is_none()
    }

    /// Scratch bytes of what is always on the main lane.
    fn main_bytes(&self) -> usize {
        let mask = self.relu.as_ref().map_or(0, ReluLaunch::scratch_bytes);
        let products = if self.branches() { &self.products[..1] } else { &self.products };
        products.iter().flatten().map(Product::workspace_bytes).fold(mask, usize::max)
    }

    /// Scratch bytes of what may be beside it.
    fn side_bytes(&self) -> usize {
        let second = self.products[1].as_ref().filter(|_| self.branches());
        second.map_or(0, Product::workspace_bytes)
    }

    /// `aside` has scratch memory that the main lane does not use.
    ///
    /// # Safety
    /// As for [`launch`].
    unsafe fn run(
        self,
        device: &Device,
        call: &Call,
        aside: &Call,
        mut lanes: Option<&mut Lanes>,
        overlaps: bool,
    ) -> Result<(), Refusal> {
        let branches = self.branches();
        let mut masked = 0;
        if let Some(relu) = &self.relu {
            masked = relu.masked();
            if let Some(lanes) = &mut lanes {
                lanes.before_write(masked)?;
            }
            let _turn = call.workspace.turn();
            // SAFETY: forwarded.
            unsafe { relu.launch(call.workspace, call.stream as CUstream) }?;
        }
        let [first, second] = self.products;
        if let Some(second) = second {
            // SAFETY: forwarded; it comes behind the mask kernel, whose result
            // it reads, and the buffer is written again behind it.
            let launch = |call| unsafe { second.run(device, call, false) };
            match lanes {
                Some(lanes) if branches => lanes.aside(masked, || launch(aside))?,
                _ => launch(if branches { aside } else { call })?,
            }
        }
        // SAFETY: as above.
        first.map_or(Ok(()), |product| unsafe { product.run(device, call, overlaps) })
    }
}

/// A stream keeps scratch memory up to this; of more a call has its own.
const KEPT_BYTES: usize = 80 << 20;

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
    let bytes = Workspace::TICKET_BYTES + scratch;
    let scope = if call.capturing() || bytes > KEPT_BYTES {
        Scope::Call
    } else if tuning {
        Scope::Tuning
    } else {
        Scope::Stream
    };
    let private = scope != Scope::Stream;
    if call.workspace.bytes >= bytes && (call.workspace.private || !private) {
        return None;
    }
    // A stream's workspace is asked for as large as it can be needed; a capture's
    // stays in the graph for its life, so no larger than needed.
    let usual = device.gemm_workspace_limit + Workspace::TICKET_BYTES;
    let bytes = match scope {
        Scope::Call => bytes,
        _ if bytes <= usual => usual,
        _ => KEPT_BYTES,
    };
    Some(Outcome::NeedsWorkspace { bytes, scope })
}
