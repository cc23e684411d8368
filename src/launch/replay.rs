//! Calls that come again with the same addresses, recorded as CUDA graphs: one
//! launch for all their kernels. On an H200's host a cuBLASLt call takes 6 us of
//! CPU time, the launch of a graph of five kernels less than 4.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::result::{graph, stream as streams};
use cudarc::driver::sys::{
    self, CUgraphExec, CUgraphInstantiate_flags, CUstream, CUstreamCaptureMode,
};

use super::call::Call;
use super::device::Device;
use super::product::log_line;
use super::Refusal;
use crate::plan::layer::Work;
use crate::plan::replay::{Replays, Verdict};

/// Recordings kept at a time, of all devices and streams; one is some tens of
/// kilobytes.
const RECORDINGS: usize = 256;

/// A call with everything that its launches depend on: plans are final once
/// they are timed, and untimed ones are not recorded.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Settings, stream and workspace.
    pub call: Call,
    /// Shapes, strides and addresses.
    pub work: Work,
}

/// One recorded call.
#[derive(Debug)]
pub struct Recording {
    // Launching is not thread-safe for one graph (CUDA driver API, "Graph
    // Object Thread Safety").
    graph: Mutex<CUgraphExec>,
}

// SAFETY: a handle of the primary context, used under the lock only; CUDA's
// handles belong to the process, not to a thread.
unsafe impl Send for Recording {}
// SAFETY: as above.
unsafe impl Sync for Recording {}

static REPLAYS: LazyLock<Mutex<Replays<Key, Recording>>> =
    LazyLock::new(|| Mutex::new(Replays::new(RECORDINGS)));

static MADE: AtomicUsize = AtomicUsize::new(0);

// A panic while the lock was held cannot have left a half-written entry.
fn replays() -> MutexGuard<'static, Replays<Key, Recording>> {
    REPLAYS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `HYPATIA_REPLAY=0` turns recordings off.
fn enabled() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var("HYPATIA_REPLAY").map_or(true, |value| value != "0"))
}

/// A call comes in. While its stream is being captured (by the user) it goes
/// into that graph as it is.
pub fn meet(call: Call, work: Work) -> (Arc<Key>, Verdict<Recording>) {
    let key = Arc::new(Key { call, work });
    if !enabled() || call.workspace.private || call.capturing() {
        return (key, Verdict::Pass);
    }
    let verdict = replays().meet(&key);
    (key, verdict)
}

/// Keeps what [`record`] made of a call; one that cannot be recorded will not
/// be tried again, and runs launch by launch.
pub fn keep(key: Arc<Key>, recorded: Result<Recording, Refusal>) -> Option<Arc<Recording>> {
    if let Err(refusal) = &recorded {
        log_line(|| format!("not replayed: {}", refusal.reason));
    }
    let recording = recorded.ok().map(Arc::new);
    if recording.is_some() {
        MADE.fetch_add(1, Ordering::Relaxed);
    }
    replays().keep(key, recording.clone());
    recording
}

/// Recordings made so far, for `build_info`.
pub fn recordings_made() -> usize {
    MADE.load(Ordering::Relaxed)
}

/// Records what `launch` puts on the stream of the call that it is given.
///
/// # Errors
/// When something in it cannot be captured.
pub fn record(
    device: &Device,
    call: &Call,
    launch: impl FnOnce(&Call) -> Result<(), Refusal>,
) -> Result<Recording, Refusal> {
    let failed = |error| Refusal::driver("recording a call", error);
    let _relaxed = Relaxed::enter();
    let turn = device.recording_stream();
    let stream = turn.0;
    // SAFETY: a stream of the device's context, which the caller has bound,
    // used by nobody else while its lock is held.
    unsafe { streams::begin_capture(stream, Relaxed::MODE) }.map_err(failed)?;
    let launched = launch(&Call { stream: stream as usize, ..*call });
    // SAFETY: the capture was begun above; it is ended whatever came of it.
    let captured = unsafe { streams::end_capture(stream) }.map_err(failed);
    launched?;
    let captured = captured?;
    // SAFETY: the graph was just made; an executable one does not need it.
    let executable = unsafe {
        let executable = graph::instantiate(captured, CUgraphInstantiate_flags(0));
        let _ = graph::destroy(captured); // A failure leaks it.
        executable
    };
    Ok(Recording { graph: Mutex::new(executable.map_err(failed)?) })
}

impl Recording {
    /// Puts the recorded launches on the call's stream.
    ///
    /// # Safety
    /// The device's context is current; what was recorded may run on that
    /// stream now: its addresses are valid until the stream has passed it.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(&self, call: &Call) -> Result<(), Refusal> {
        // What the graph has in the workspace must not come between another
        // thread's two kernels.
        let _turn = call.workspace.turn();
        let graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: live until dropped; the rest is forwarded.
        unsafe { graph::launch(*graph, call.stream as CUstream) }
            .map_err(|error| Refusal::driver("replaying a call", error))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let graph = *self.graph.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made by `record`, destroyed here only; CUDA frees one that
        // still runs when it is done. A failure leaks it.
        let _ = unsafe { graph::exec_destroy(graph) };
    }
}

/// While it lives, this thread's calls are not forbidden by the captures of
/// others, nor do they spoil them.
struct Relaxed(CUstreamCaptureMode);

impl Relaxed {
    const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;

    fn enter() -> Self {
        let mut mode = Self::MODE;
        Self::exchange(&mut mode);
        Self(mode)
    }

    /// Swaps `mode` with the thread's.
    fn exchange(mode: &mut CUstreamCaptureMode) {
        // SAFETY: reads and writes one mode. It cannot fail with a valid one.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(mode) };
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        Self::exchange(&mut self.0);
    }
}
