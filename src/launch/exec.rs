//! One operator call: plans from the cache (or made now), then the launches.

use std::sync::{Arc, LazyLock, OnceLock};

use cudarc::driver::result::stream as streams;
use cudarc::driver::sys::{CUstream, CUstreamCaptureStatus};

use super::device::{device, Device};
use super::gemm::{GemmData, GemmPlan};
use super::relu_backward::{ReluBackward, ReluLaunch};
use super::{tune, Outcome, Refusal, Scope, Workspace};
use crate::plan::cache::PlanCache;
use crate::plan::check::{gemm, Matrix, Settings};
use crate::plan::problem::{Epilogue, Gemm};

/// Plans kept at a time; each is about 2 KiB.
const PLANS: usize = 4096;

/// A plan and whether its algorithm is final.
struct Entry {
    plan: GemmPlan,
    settled: bool,
}

static PLANS_BY_GEMM: LazyLock<PlanCache<Gemm, Entry>> = LazyLock::new(|| PlanCache::new(PLANS));

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

/// Matrices of a backward call; 0 for a result that nobody wants.
#[derive(Debug, Clone, Copy)]
pub struct Backward {
    /// `[M, N]` gradient of the result, any strides.
    pub grad_output: Matrix,
    /// `[M, K]`; counts only for `grad_weight`.
    pub input: Matrix,
    /// `[N, K]`; counts only for `grad_input`.
    pub weight: Matrix,
    /// `[M, N]`, dense: the forward result.
    pub output: usize,
    /// `[M, N]`, dense: scratch for the masked gradient, needed for either of
    /// the next two.
    pub masked: usize,
    /// `[M, K]`, dense.
    pub grad_input: usize,
    /// `[N, K]`, dense.
    pub grad_weight: usize,
    /// `[N]`.
    pub grad_bias: usize,
}

/// `output[M, N] = relu(input[M, K] · weight[N, K]ᵀ + bias[N])`.
///
/// # Safety
/// Every address is valid on the device for its shape until the stream has
/// passed this call, and `output` is not read by anything else meanwhile.
///
/// # Errors
/// When ATen should answer; nothing of the result counts then.
pub unsafe fn linear_relu(
    call: Call,
    input: Matrix,
    weight: Matrix,
    bias: Option<usize>,
    output: usize,
) -> Result<Outcome, Refusal> {
    let epilogue = if bias.is_some() { Epilogue::ReluBias } else { Epilogue::Relu };
    let right = weight.transpose();
    let stated =
        gemm(call.settings, input, right, output, bias, epilogue).map_err(Refusal::by_design)?;
    let device = device(call.settings.device)?;
    device.bind()?;
    let data =
        GemmData { a: weight.data, b: input.data, d: output, bias: bias.unwrap_or_default() };
    let product = Product::prepare(device, &call, stated, data)?;
    if let Some(outcome) =
        missing_workspace(device, &call, product.workspace_bytes(), product.is_untuned())
    {
        return Ok(outcome);
    }
    // SAFETY: the context was bound above, the workspace checked; addresses
    // are the caller's promise.
    unsafe { product.run(device, &call) }?;
    Ok(Outcome::Done)
}

/// Gradients of [`linear_relu`]: the masked gradient and its column sums in
/// one pass, then a product for each gradient that is wanted.
///
/// # Safety
/// As for [`linear_relu`].
///
/// # Errors
/// When ATen should answer.
pub unsafe fn linear_relu_backward(call: Call, b: Backward) -> Result<Outcome, Refusal> {
    let device = device(call.settings.device)?;
    device.bind()?;
    let relu = ReluLaunch::new(
        device,
        ReluBackward {
            grad: b.grad_output,
            output: b.output,
            masked: b.masked,
            bias_grad: b.grad_bias,
            dtype: call.settings.dtype,
        },
    )?;
    let masked = Matrix::dense(b.masked, b.grad_output.rows, b.grad_output.cols);
    let prepare = |left: Matrix, right: Matrix, out: usize| {
        if out == 0 {
            return Ok(None);
        }
        let stated = gemm(call.settings, left, right, out, None, Epilogue::None)
            .map_err(Refusal::by_design)?;
        let data = GemmData { a: right.data, b: left.data, d: out, bias: 0 };
        Product::prepare(device, &call, stated, data).map(Some)
    };
    let products = [
        prepare(masked, b.weight, b.grad_input)?,
        prepare(masked.transpose(), b.input, b.grad_weight)?,
    ];
    let needed = products
        .iter()
        .flatten()
        .map(Product::workspace_bytes)
        .fold(relu.scratch_bytes(), usize::max);
    let tuning = products.iter().flatten().any(Product::is_untuned);
    if let Some(outcome) = missing_workspace(device, &call, needed, tuning) {
        return Ok(outcome);
    }
    // SAFETY: as in `linear_relu`; the stream orders the products, which read
    // `masked` and share the workspace, behind the kernel.
    unsafe {
        relu.launch(call.workspace, call.stream as CUstream)?;
        for product in products.into_iter().flatten() {
            product.run(device, &call)?;
        }
    }
    Ok(Outcome::Done)
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
    fn capturing(&self) -> bool {
        // SAFETY: LibTorch's current stream, live for the call.
        let status = unsafe { streams::is_capturing(self.stream as CUstream) };
        status != Ok(CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }
}

/// A product with its plan: from the cache, or new and not tuned yet.
struct Product {
    gemm: Gemm,
    data: GemmData,
    plan: Plan,
}

enum Plan {
    Cached(Arc<Entry>),
    /// To be timed before its first run.
    Untuned(Box<GemmPlan>),
}

impl Product {
    fn prepare(device: &Device, call: &Call, gemm: Gemm, data: GemmData) -> Result<Self, Refusal> {
        let cached = PLANS_BY_GEMM.get(&gemm);
        if let Some(entry) = &cached {
            if entry.settled {
                let plan = Plan::Cached(Arc::clone(entry));
                return Ok(Self { gemm, data, plan });
            }
        }
        let timing = tune::enabled(&gemm) && !call.capturing();
        let plan = match cached {
            // Made during a capture, and this is one too.
            Some(entry) if !timing => Plan::Cached(entry),
            _ => {
                let plan = GemmPlan::new(device, &gemm, data)?;
                if timing {
                    Plan::Untuned(Box::new(plan))
                } else {
                    let settled = !tune::enabled(&gemm);
                    log(&gemm, &plan, &[]);
                    Plan::Cached(PLANS_BY_GEMM.insert(gemm, Entry { plan, settled }))
                }
            }
        };
        Ok(Self { gemm, data, plan })
    }

    fn is_untuned(&self) -> bool {
        matches!(self.plan, Plan::Untuned(_))
    }

    fn workspace_bytes(&self) -> usize {
        match &self.plan {
            Plan::Cached(entry) => entry.plan.algorithm.workspaceSize,
            Plan::Untuned(plan) => {
                plan.candidates.iter().map(|candidate| candidate.workspaceSize).max().unwrap_or(0)
            }
        }
    }

    /// # Safety
    /// As for [`GemmPlan::launch`], with a workspace of `workspace_bytes`.
    unsafe fn run(self, device: &Device, call: &Call) -> Result<(), Refusal> {
        let stream = call.stream as CUstream;
        let workspace = call.workspace.data + Workspace::TICKET_BYTES;
        let entry = match self.plan {
            Plan::Cached(entry) => entry,
            Plan::Untuned(mut plan) => {
                // SAFETY: forwarded; `prepare` saw that nothing is captured.
                let timed = unsafe { tune::fastest(device, &plan, self.data, workspace, stream) };
                let times = match timed {
                    Ok((rank, times)) => {
                        plan.algorithm = plan.candidates[rank];
                        plan.rank = rank;
                        times
                    }
                    Err(refusal) => {
                        log_line(|| format!("{}: {}", self.gemm, refusal.reason));
                        vec![]
                    }
                };
                log(&self.gemm, &plan, &times);
                plan.candidates = vec![];
                PLANS_BY_GEMM.insert(self.gemm, Entry { plan: *plan, settled: true })
            }
        };
        // SAFETY: forwarded; a chosen algorithm needs no more workspace than
        // the largest candidate.
        unsafe { entry.plan.launch(device, &entry.plan.algorithm, self.data, workspace, stream) }
    }
}

/// Plans kept now, for `build_info`.
pub fn plans_kept() -> usize {
    PLANS_BY_GEMM.len()
}

/// With `HYPATIA_LOG=plan`, one line on stderr for each plan made.
fn log(gemm: &Gemm, plan: &GemmPlan, times: &[f32]) {
    log_line(|| {
        let timed = match (times.first(), times.get(plan.rank)) {
            (Some(first), Some(chosen)) => {
                format!("{chosen:.2} us, first guess {first:.2} us, all {times:.2?}")
            }
            _ => "not timed".to_owned(),
        };
        let workspace = plan.algorithm.workspaceSize;
        format!("{gemm}: algorithm {} ({timed}), workspace {workspace} B", plan.rank)
    });
}

fn log_line(text: impl FnOnce() -> String) {
    static WANTED: OnceLock<bool> = OnceLock::new();
    if *WANTED.get_or_init(|| std::env::var("HYPATIA_LOG").is_ok_and(|value| value == "plan")) {
        eprintln!("hypatia: {}", text());
    }
}
