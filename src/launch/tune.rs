//! Times cuBLASLt's algorithms and our kernels for a problem on its first call.
//!
//! The heuristic's first guess is up to 2.35 times slower than its best on
//! small TF32 products and 1.4 times on small fp32 ones (docs/performance.md).
//! Each algorithm is captured a few times over into a CUDA graph, so that the
//! figure is GPU time and not the host's launch rate, and replayed on a stream
//! of our own. `HYPATIA_TUNE=0` keeps the first guess, `all` times more algorithms
//! and longer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::result::{event, graph, stream as streams};
use cudarc::driver::sys::{
    self as driver, CUevent, CUevent_flags, CUevent_wait_flags, CUgraph, CUgraphExec,
    CUgraphInstantiate_flags, CUstream, CUstreamCaptureMode,
};
use cudarc::driver::DriverError;

use super::device::Device;
use super::gemm::GemmPlan;
use super::{notice, Refusal};
use crate::plan::layer::GemmData;
use crate::plan::problem::Gemm;
use crate::plan::tuning::Tuning;

/// The first guess is replaced only by something this much faster. Timing has
/// its operands in L2, a large network has not: at 2 % TF32 chains of
/// 1024x2048x2048 became 4 % slower (docs/performance.md). More replays do not
/// mend that, so it is the same for `HYPATIA_TUNE=all`.
const CLEARLY_FASTER: f32 = 0.95;
/// What takes longer, in µs, is timed by one launch, whose own cost is nothing then.
const SLOW_US: f32 = 1000.0;
/// So many times the budget while all are that slow: a first guess was seen that is 270
/// times slower than the fourth (65,536 rows of 256 and 63 columns, the gradient of a
/// weight in bf16).
const PATIENCE: f32 = 5.0;
/// Wall time for all problems of the process: a server that meets a new batch
/// size at every call must not time algorithms for ever. Not for `HYPATIA_TUNE=all`.
const PROCESS_BUDGET: Duration = Duration::from_secs(5);

/// Wall time spent so far, in µs.
static SPENT_US: AtomicU64 = AtomicU64::new(0);

/// What `HYPATIA_TUNE` says.
pub fn wanted() -> Tuning {
    static WANTED: OnceLock<Tuning> = OnceLock::new();
    *WANTED.get_or_init(|| {
        let value = std::env::var_os("HYPATIA_TUNE");
        Tuning::parse(value.as_deref()).unwrap_or_else(|| {
            let got = value.unwrap_or_default();
            notice::add(format!(
                "expected HYPATIA_TUNE to be 0, 1 or all, got {got:?}; it counts as 1"
            ));
            Tuning::FirstUse
        })
    })
}

/// Why no algorithms are timed for a product, if so. Deterministic mode does not: two
/// runs of a program could choose differently.
pub fn refusal(gemm: &Gemm) -> Option<&'static str> {
    let spent = u128::from(SPENT_US.load(Ordering::Relaxed)) >= PROCESS_BUDGET.as_micros();
    match wanted() {
        _ if gemm.deterministic => Some("deterministic mode"),
        Tuning::Off => Some("HYPATIA_TUNE=0"),
        Tuning::FirstUse if spent => Some("the 5 s of this process are spent"),
        Tuning::FirstUse | Tuning::All => None,
    }
}

/// Rank of the fastest candidate.
///
/// # Safety
/// As for [`GemmPlan::launch`], with a workspace for the largest candidate that
/// belongs to this call alone (the timing runs beside `stream`); `stream` is
/// not being captured.
///
/// # Errors
/// When timing itself fails; the first guess is as good as ever then.
pub unsafe fn fastest(
    device: &Device,
    plan: &GemmPlan,
    data: GemmData,
    workspace: usize,
    stream: CUstream,
) -> Result<(usize, Vec<f32>), Refusal> {
    if plan.candidates.len() < 2 {
        return Ok((0, vec![]));
    }
    let failed = |error| Refusal::driver("timing cuBLASLt's algorithms", error);
    // One at a time: two timings at once would time each other.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let _clock = Clock(Instant::now());
    let _relaxed = RelaxedCapture::new().map_err(failed)?;
    let bench = Bench::new(stream).map_err(failed)?;
    let effort = wanted().effort();

    let mut times: Vec<f32> = vec![];
    let mut spent = 0.0;
    // Of a graph; 0 until the first that is not slow.
    let mut launches = 0;
    for (rank, candidate) in plan.candidates.iter().enumerate() {
        // Layers of a chain follow each other, as the launches of a graph do.
        let overlaps = plan.is_forward();
        let launch = || {
            // SAFETY: forwarded from the caller; `bench.stream` runs behind
            // everything that was on `stream` (`Bench::new`).
            unsafe { plan.launch(device, candidate, data, workspace, bench.stream, overlaps) }
        };
        // Once outside the graph: loads the kernel, and shows what it refuses.
        if launch().is_err() {
            if rank == 0 {
                return Err(Refusal::failure("cuBLASLt's first algorithm does not run"));
            }
            times.push(f32::INFINITY);
            continue;
        }
        let once = bench.once(&launch)?;
        spent += 2.0 * once;
        let slow = once > SLOW_US;
        let mut time = once;
        if !slow {
            time = bench.time(launches.max(1), effort.replays, &launch)?;
            if launches == 0 {
                let fitting = (effort.replay_us / time.max(1.0)) as usize;
                launches = fitting.clamp(1, effort.launches);
                if launches > 1 {
                    time = bench.time(launches, effort.replays, &launch)?;
                }
            }
            spent += time * (launches * (effort.replays + 1)) as f32;
        }
        times.push(time);
        let best = times.iter().copied().fold(f32::INFINITY, f32::min);
        let most = if best > SLOW_US { PATIENCE * effort.budget_us } else { effort.budget_us };
        if spent > most {
            break;
        }
    }
    let best = (1..times.len()).min_by(|&i, &j| times[i].total_cmp(&times[j]));
    let rank = best.filter(|&i| times[i] < CLEARLY_FASTER * times[0]).unwrap_or(0);
    Ok((rank, times))
}

/// Adds its life to the time spent.
struct Clock(Instant);

impl Drop for Clock {
    fn drop(&mut self) {
        let spent = u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX);
        SPENT_US.fetch_add(spent, Ordering::Relaxed);
    }
}

/// Lets this thread make calls that a capture in another thread would forbid;
/// none of ours touches that capture.
struct RelaxedCapture(CUstreamCaptureMode);

impl RelaxedCapture {
    fn new() -> Result<Self, DriverError> {
        let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: swaps a mode of this thread with the value behind the pointer.
        unsafe { driver::cuThreadExchangeStreamCaptureMode(&mut mode) }.result()?;
        Ok(Self(mode))
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // SAFETY: as in `new`; puts back what it returned.
        let _ = unsafe { driver::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}

/// A stream of our own with two events.
struct Bench {
    stream: CUstream,
    start: CUevent,
    end: CUevent,
}

impl Bench {
    /// The stream waits for everything on `before`.
    fn new(before: CUstream) -> Result<Self, DriverError> {
        let mut bench = Self {
            stream: streams::create(streams::StreamKind::NonBlocking)?,
            start: std::ptr::null_mut(),
            end: std::ptr::null_mut(),
        };
        bench.start = event::create(CUevent_flags::CU_EVENT_DEFAULT)?;
        bench.end = event::create(CUevent_flags::CU_EVENT_DEFAULT)?;
        // SAFETY: both streams and the event are live.
        unsafe {
            event::record(bench.start, before)?;
            let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            streams::wait_event(bench.stream, bench.start, flags)?;
        }
        Ok(bench)
    }

    /// µs of one launch.
    fn once(&self, launch: &impl Fn() -> Result<(), Refusal>) -> Result<f32, Refusal> {
        let failed = |error| Refusal::driver("timing cuBLASLt's algorithms", error);
        // SAFETY: stream and events are live and ours.
        unsafe {
            event::record(self.start, self.stream).map_err(failed)?;
            launch()?;
            event::record(self.end, self.stream).map_err(failed)?;
            event::synchronize(self.end).map_err(failed)?;
            Ok(event::elapsed(self.start, self.end).map_err(failed)? * 1e3)
        }
    }

    /// µs of one launch when `launches` follow each other; the best of a few.
    fn time(
        &self,
        launches: usize,
        replays: usize,
        launch: &impl Fn() -> Result<(), Refusal>,
    ) -> Result<f32, Refusal> {
        let failed = |error| Refusal::driver("timing cuBLASLt's algorithms", error);
        let graph = self.capture(launches, launch)?;
        let mut best = f32::INFINITY;
        // SAFETY: stream, events and graph are live and ours.
        unsafe {
            graph::launch(graph.exec, self.stream).map_err(failed)?;
            for _ in 0..replays {
                event::record(self.start, self.stream).map_err(failed)?;
                graph::launch(graph.exec, self.stream).map_err(failed)?;
                event::record(self.end, self.stream).map_err(failed)?;
                event::synchronize(self.end).map_err(failed)?;
                best = best.min(event::elapsed(self.start, self.end).map_err(failed)?);
            }
        }
        Ok(best * 1e3 / launches as f32)
    }

    fn capture(
        &self,
        launches: usize,
        launch: &impl Fn() -> Result<(), Refusal>,
    ) -> Result<Graph, Refusal> {
        let failed = |error| Refusal::driver("capturing a timing graph", error);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is ours and no capture is open on it; the capture
        // is ended whatever `launch` returns.
        unsafe {
            streams::begin_capture(self.stream, mode).map_err(failed)?;
            let launched = (0..launches).try_for_each(|_| launch());
            let graph = streams::end_capture(self.stream).map_err(failed)?;
            let mut graph = Graph { graph, exec: std::ptr::null_mut() };
            launched?;
            graph.exec =
                graph::instantiate(graph.graph, CUgraphInstantiate_flags(0)).map_err(failed)?;
            Ok(graph)
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed here only; the stream is drained
        // first, because its work uses the caller's memory.
        unsafe {
            let _ = streams::synchronize(self.stream);
            for handle in [self.start, self.end] {
                if !handle.is_null() {
                    let _ = event::destroy(handle);
                }
            }
            let _ = streams::destroy(self.stream);
        }
    }
}

struct Graph {
    graph: CUgraph,
    exec: CUgraphExec,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made in `Bench::capture`, destroyed here only; the driver
        // keeps a launched graph alive until it has run.
        unsafe {
            if !self.exec.is_null() {
                let _ = graph::exec_destroy(self.exec);
            }
            let _ = graph::destroy(self.graph);
        }
    }
}
