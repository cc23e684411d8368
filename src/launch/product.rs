//! One product of a call: its plan from the cache, from what another process timed, or
//! made now and timed on its first run.

use std::sync::{Arc, LazyLock, OnceLock};

use cudarc::driver::sys::CUstream;

use super::algorithm::Algorithm;
use super::call::Call;
use super::device::Device;
use super::gemm::GemmPlan;
use super::pad_rows::PadRows;
use super::{kept_plans, tune, Refusal, Workspace};
use crate::plan::cache::PlanCache;
use crate::plan::layer::{GemmData, Stated};
use crate::plan::padded::{padded, Padded};
use crate::plan::problem::Gemm;
use crate::plan::tensor_gemm;
use crate::plan::tuning::Tuning;

/// Plans kept at a time; each is about 2 KiB.
const PLANS: usize = 4096;

/// A plan and whether its algorithm is final.
struct Entry {
    plan: GemmPlan,
    settled: bool,
}

static PLANS_BY_GEMM: LazyLock<PlanCache<Gemm, Entry>> = LazyLock::new(|| PlanCache::new(PLANS));

/// A product with its plan: from the cache, or new and not tuned yet.
pub struct Product {
    stated: Stated,
    plan: Plan,
    /// Operands that are copied first, a result that is copied last; `stated` is on the
    /// copies.
    copies: Option<Padded>,
}

enum Plan {
    Cached(Arc<Entry>),
    /// To be timed before its first run.
    Untuned(Box<GemmPlan>),
}

impl Product {
    /// Finds the plan, or makes one.
    ///
    /// # Errors
    /// When cuBLASLt has no algorithm.
    pub fn prepare(device: &Device, call: &Call, stated: Stated) -> Result<Self, Refusal> {
        let copies = copies_of(device, call, &stated);
        let stated = copies.map_or(stated, |copies| copies.stated);
        let Stated { gemm, data } = stated;
        let cached = PLANS_BY_GEMM.get(&gemm);
        if let Some(entry) = &cached {
            if entry.settled {
                let plan = Plan::Cached(Arc::clone(entry));
                return Ok(Self { stated, plan, copies });
            }
        }
        let never = tune::refusal(&gemm);
        let untimed = never.or(call.capturing().then_some("its stream is being captured"));
        let plan = match (cached, untimed) {
            // Made during a capture, and this is one too.
            (Some(entry), Some(_)) => Plan::Cached(entry),
            (_, untimed) => match (new_plan(device, &gemm, data)?, untimed) {
                (Plan::Untuned(plan), Some(why)) => {
                    log(&gemm, &plan, || format!("not timed: {why}"));
                    let entry = Entry { plan: *plan, settled: never.is_some() };
                    Plan::Cached(PLANS_BY_GEMM.insert(gemm, entry))
                }
                (plan, _) => plan,
            },
        };
        Ok(Self { stated, plan, copies })
    }

    /// Whether the first run times algorithms.
    pub fn is_untuned(&self) -> bool {
        matches!(self.plan, Plan::Untuned(_))
    }

    /// Whether it leaves room on the device for another beside it. On an H200
    /// pairs of 0.3 GFLOP gain up to 19 % of a training step, pairs of 4 lose 4.
    pub fn is_small(&self) -> bool {
        const FLOP: f64 = 1e9;
        let Gemm { m, n, k, .. } = self.stated.gemm;
        2.0 * m as f64 * n as f64 * k as f64 <= FLOP
    }

    /// Scratch bytes that a run may need.
    pub fn workspace_bytes(&self) -> usize {
        let plan = match &self.plan {
            Plan::Cached(entry) => entry.plan.algorithm.workspace_bytes(),
            Plan::Untuned(plan) => {
                plan.candidates.iter().map(Algorithm::workspace_bytes).max().unwrap_or(0)
            }
        };
        plan + self.copies.map_or(0, |copies| copies.bytes)
    }

    /// Puts the product on the call's stream; with `overlaps` it may begin while the
    /// kernel in front ends, which must not write the weights.
    ///
    /// # Safety
    /// As for [`GemmPlan::launch`], with a workspace of `workspace_bytes`.
    ///
    /// # Errors
    /// When cuBLASLt reports one.
    pub unsafe fn run(self, device: &Device, call: &Call, overlaps: bool) -> Result<(), Refusal> {
        let stream = call.stream as CUstream;
        let Self { stated, plan, copies } = self;
        // Copies are at the beginning, the rest is the algorithm's.
        let scratch = call.workspace.data + Workspace::TICKET_BYTES;
        let workspace = scratch + copies.map_or(0, |copies| copies.bytes);
        let Stated { gemm, data } = copies.map_or(stated, |copies| copies.at(scratch));
        // A copy of the weights is written by the kernel in front.
        let overlaps = overlaps && copies.is_none();
        let copy = || match (&copies, &device.modules.pad_rows) {
            // SAFETY: sources are operands, copies have their place in the workspace.
            (Some(copies), Ok(rows)) => unsafe { copies_first(rows, copies, scratch, stream) },
            _ => Ok(()),
        };
        let copy_back = || match (copies.and_then(|copies| copies.result), &device.modules.pad_rows)
        {
            // SAFETY: the product put it there, where it lies is the caller's result.
            (Some(result), Ok(rows)) => unsafe { rows.launch_back(&result, scratch, stream) },
            _ => Ok(()),
        };
        let launch = |entry: &Entry| {
            let _turn = call.workspace.turn();
            copy()?;
            let GemmPlan { algorithm, .. } = &entry.plan;
            // SAFETY: forwarded; the algorithm is the plan's own, or was among its
            // candidates: it needs no more workspace than the largest of them.
            unsafe { entry.plan.launch(device, algorithm, data, workspace, stream, overlaps) }?;
            copy_back()
        };
        let entry = match plan {
            Plan::Cached(entry) => entry,
            Plan::Untuned(mut plan) => {
                // Another layer of the same shape, or another thread, may have
                // timed it meanwhile: timed twice it could be chosen otherwise.
                if let Some(entry) = PLANS_BY_GEMM.get(&gemm).filter(|entry| entry.settled) {
                    return launch(&entry);
                }
                copy()?;
                // SAFETY: forwarded; `prepare` saw that nothing is captured.
                let timed = unsafe { tune::fastest(device, &plan, data, workspace, stream) };
                match timed {
                    Ok((rank, times)) => {
                        plan.choose(rank);
                        log(&gemm, &plan, || timed_text(rank, &times));
                        let us = times.get(rank).copied();
                        kept_plans::keep(device, &gemm, &plan.algorithm, us);
                    }
                    Err(Refusal { reason, .. }) => {
                        log(&gemm, &plan, || format!("not timed: {reason}"))
                    }
                }
                plan.candidates = vec![];
                PLANS_BY_GEMM.insert(gemm, Entry { plan: *plan, settled: true })
            }
        };
        launch(&entry)
    }
}

/// Copies that the product is better on. Our kernel is known to be once it has been timed.
fn copies_of(device: &Device, call: &Call, stated: &Stated) -> Option<Padded> {
    let (modules, multiprocessors) = (&device.modules, device.multiprocessors);
    let policy = modules.pad_rows.as_ref().ok()?.policy;
    let timed = |gemm: &Gemm| PLANS_BY_GEMM.get(gemm).is_some_and(|entry| entry.settled);
    padded(stated, policy, multiprocessors, |gemm| {
        modules.tensor_gemm.is_ok()
            && !tensor_gemm::candidates(gemm, multiprocessors).is_empty()
            && (timed(gemm) || tune::refusal(gemm).is_none() && !call.capturing())
    })
}

/// Puts the copies of a product's operands on `stream`.
///
/// # Safety
/// As for [`PadRows::launch`].
unsafe fn copies_first(
    rows: &PadRows,
    copies: &Padded,
    scratch: usize,
    stream: CUstream,
) -> Result<(), Refusal> {
    log_line(|| {
        let result = if copies.result.is_some() { ", its result too" } else { "" };
        format!("{}: on copies in rows of 16 bytes{result}", copies.stated.gemm)
    });
    for (i, pad) in copies.pads.iter().flatten().enumerate() {
        // SAFETY: forwarded.
        unsafe { rows.launch(pad, scratch, stream, i > 0) }?;
    }
    Ok(())
}

/// A plan that follows what another process timed, else one to be timed.
fn new_plan(device: &Device, gemm: &Gemm, data: GemmData) -> Result<Plan, Refusal> {
    let plan_of = |tuning: Tuning| GemmPlan::new(device, gemm, data, &tuning.effort());
    let mut plan = plan_of(tune::wanted())?;
    let Some((kept, file)) = kept_plans::hint(device, gemm) else {
        return Ok(Plan::Untuned(Box::new(plan)));
    };
    let shown = file.display();
    if !plan.take(&kept.choice) {
        // It may be further down the lists, where only `HYPATIA_TUNE=all` looks.
        let mut longer = plan_of(Tuning::All)?;
        if !longer.take(&kept.choice) {
            log_line(|| format!("{gemm}: none of its algorithms is the one in {shown}"));
            return Ok(Plan::Untuned(Box::new(plan)));
        }
        plan = longer;
    }
    kept_plans::count_taken();
    log(gemm, &plan, || {
        let us = kept.us.map_or_else(|| "the only one".to_owned(), |us| format!("{us:.2} us"));
        format!("{us} when it was timed, from {shown}")
    });
    plan.candidates = vec![];
    Ok(Plan::Cached(PLANS_BY_GEMM.insert(*gemm, Entry { plan, settled: true })))
}

/// Plans kept now, for `build_info`.
pub fn plans_kept() -> usize {
    PLANS_BY_GEMM.len()
}

/// Why the candidate at `rank` was chosen.
fn timed_text(rank: usize, times: &[f32]) -> String {
    let (Some(first), Some(chosen)) = (times.first(), times.get(rank)) else {
        return "the only one".to_owned();
    };
    let best = times.iter().copied().fold(f32::INFINITY, f32::min);
    let kept = if best < *chosen { ", which none beats clearly" } else { "" };
    format!("{chosen:.2} us, first guess {first:.2} us{kept}, all {times:.2?}")
}

/// With `HYPATIA_LOG=plan`, one line on stderr for each plan made, and why.
fn log(gemm: &Gemm, plan: &GemmPlan, why: impl FnOnce() -> String) {
    log_line(|| {
        let (rank, algorithm) = (plan.rank, plan.algorithm);
        let (why, workspace) = (why(), algorithm.workspace_bytes());
        format!("{gemm}: {algorithm} algorithm {rank} ({why}), workspace {workspace} B")
    });
}

/// Whether `HYPATIA_LOG=plan` is set.
pub(super) fn logging() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var("HYPATIA_LOG").is_ok_and(|value| value == "plan"))
}

/// A line on stderr if that is wanted.
pub(super) fn log_line(text: impl FnOnce() -> String) {
    if logging() {
        eprintln!("hypatia: {}", text());
    }
}
