//! One product of a call: its plan from the cache or made now, timed on its
//! first run.

use std::sync::{Arc, LazyLock, OnceLock};

use cudarc::driver::sys::CUstream;

use super::call::Call;
use super::device::Device;
use super::gemm::{Algorithm, GemmPlan};
use super::{tune, Refusal, Workspace};
use crate::plan::cache::PlanCache;
use crate::plan::layer::Stated;
use crate::plan::problem::Gemm;

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
        let Stated { gemm, data } = stated;
        let cached = PLANS_BY_GEMM.get(&gemm);
        if let Some(entry) = &cached {
            if entry.settled {
                let plan = Plan::Cached(Arc::clone(entry));
                return Ok(Self { stated, plan });
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
        Ok(Self { stated, plan })
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
        match &self.plan {
            Plan::Cached(entry) => entry.plan.algorithm.workspace_bytes(),
            Plan::Untuned(plan) => {
                plan.candidates.iter().map(Algorithm::workspace_bytes).max().unwrap_or(0)
            }
        }
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
        let workspace = call.workspace.data + Workspace::TICKET_BYTES;
        let Stated { gemm, data } = self.stated;
        let entry = match self.plan {
            Plan::Cached(entry) => entry,
            Plan::Untuned(mut plan) => {
                // Another layer of the same shape, or another thread, may have
                // timed it meanwhile: timed twice it could be chosen otherwise.
                if let Some(entry) = PLANS_BY_GEMM.get(&gemm).filter(|entry| entry.settled) {
                    let _turn = call.workspace.turn();
                    let GemmPlan { algorithm, .. } = &entry.plan;
                    // SAFETY: forwarded; its algorithm was among `plan`'s candidates.
                    return unsafe {
                        entry.plan.launch(device, algorithm, data, workspace, stream, overlaps)
                    };
                }
                // SAFETY: forwarded; `prepare` saw that nothing is captured.
                let timed = unsafe { tune::fastest(device, &plan, data, workspace, stream) };
                let times = match timed {
                    Ok((rank, times)) => {
                        plan.algorithm = plan.candidates[rank];
                        plan.rank = rank;
                        times
                    }
                    Err(refusal) => {
                        log_line(|| format!("{gemm}: {}", refusal.reason));
                        vec![]
                    }
                };
                log(&gemm, &plan, &times);
                plan.candidates = vec![];
                PLANS_BY_GEMM.insert(gemm, Entry { plan: *plan, settled: true })
            }
        };
        let _turn = call.workspace.turn();
        // SAFETY: forwarded; a chosen algorithm needs no more workspace than
        // the largest candidate.
        unsafe {
            let GemmPlan { algorithm, .. } = &entry.plan;
            entry.plan.launch(device, algorithm, data, workspace, stream, overlaps)
        }
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
        let workspace = plan.algorithm.workspace_bytes();
        let (rank, algorithm) = (plan.rank, plan.algorithm);
        format!("{gemm}: {algorithm} algorithm {rank} ({timed}), workspace {workspace} B")
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
