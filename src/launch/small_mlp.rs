//! Launches `kernels/fused_mlp.cu`: a whole chain of layers at once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use cudarc::driver::sys::{CUfunction, CUstream};

use super::call::Call;
use super::kernel::{allow, asked, Shape};
use super::modules::Module;
use super::params::{MlpLayer, MlpParams, MLP_LAYERS};
use super::product::{log_line, logging};
use super::Refusal;
use crate::plan::check::{Matrix, Settings};
use crate::plan::layer::{Layer, Work};
use crate::plan::small_mlp::{self, Choice, Clusters, Variant, CLUSTER_SIZES, SHARED_BYTES};

/// The functions of one device.
pub struct SmallMlp {
    functions: [CUfunction; Variant::ALL.len()],
    clusters: Clusters,
    /// A launch failed.
    failed: AtomicBool,
}

// SAFETY: a CUfunction is a handle into a module that is never unloaded, and
// launching it is thread-safe (CUDA driver API, thread safety).
unsafe impl Send for SmallMlp {}
// SAFETY: as above.
unsafe impl Sync for SmallMlp {}

impl SmallMlp {
    /// Loads every variant and asks how many clusters run at a time; the
    /// device's context must be current.
    ///
    /// # Errors
    /// Why there are none: other devices, an old driver, `HYPATIA_ONE_LAUNCH=0`.
    pub fn load(capability: u32) -> Result<Self, String> {
        asked("HYPATIA_ONE_LAUNCH")?;
        let module = Module::load("fused_mlp", capability)?;
        let mut functions = [std::ptr::null_mut(); Variant::ALL.len()];
        let mut clusters = Clusters::default();
        for variant in Variant::ALL {
            let function = module.function(variant.name())?;
            allow(function, SHARED_BYTES)?;
            functions[variant.index()] = function;
            for (count, size) in clusters[variant.index()].iter_mut().zip(CLUSTER_SIZES) {
                *count = shape(variant, size, 1, SHARED_BYTES).clusters_at_once(function);
            }
        }
        Ok(Self { functions, clusters, failed: AtomicBool::new(false) })
    }
}

fn shape(variant: Variant, cluster: u32, clusters: u32, shared: u32) -> Shape {
    let grid = (cluster * clusters, 1);
    Shape { grid, threads: variant.threads(), cluster, shared, overlaps: false, cooperates: false }
}

/// One launch that does a chain, decided but not made.
pub struct MlpLaunch<'a> {
    kernel: &'a SmallMlp,
    choice: Choice,
    params: MlpParams,
}

impl<'a> MlpLaunch<'a> {
    /// The launch for work that brings no memory for hidden results; `None` if
    /// layer by layer is better, or all that works.
    pub fn choose(
        kernel: &'a Result<SmallMlp, String>,
        settings: Settings,
        work: &Work,
    ) -> Option<Self> {
        let Work::Forward(input, layers) = work else { return None };
        let choice = match kernel {
            Err(reason) => Err(reason.as_str()),
            Ok(kernel) if kernel.failed.load(Ordering::Relaxed) => Err("a launch failed"),
            Ok(kernel) => small_mlp::choose(settings, *input, layers, &kernel.clusters),
        };
        if logging() {
            log(settings, *input, layers, &choice);
        }
        let (choice, kernel) = (choice.ok()?, kernel.as_ref().ok()?);
        let params = params(&choice, *input, layers);
        Some(Self { kernel, choice, params })
    }

    /// Puts it on the call's stream.
    ///
    /// # Safety
    /// The device's context is current; the addresses of the work are valid on
    /// it for their shapes until the stream has passed this point.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(&self, call: &Call) -> Result<(), Refusal> {
        let Choice { variant, cluster, clusters, shared_bytes, .. } = self.choice;
        let shape = shape(variant, cluster, clusters, shared_bytes);
        let function = self.kernel.functions[variant.index()];
        let arguments = [(&raw const self.params).cast_mut().cast()];
        // SAFETY: the parameter block is the one the kernel declares (params.rs
        // is held to params.h by a test) and is only read; the caller vouches
        // for the addresses in it; extents are those the kernel takes
        // (plan::small_mlp).
        unsafe { shape.launch(function, call.stream as CUstream, arguments) }
            .map_err(|error| Refusal::driver("launching fused_mlp", error))
    }

    /// A launch failed: from now on the device's chains run layer by layer.
    pub fn give_up(&self) {
        self.kernel.failed.store(true, Ordering::Relaxed);
    }
}

fn params(choice: &Choice, input: Matrix, layers: &[Layer]) -> MlpParams {
    let mut layer = [MlpLayer::default(); MLP_LAYERS];
    for (to, (stated, tiling)) in layer.iter_mut().zip(layers.iter().zip(&choice.tilings)) {
        *to = MlpLayer {
            weight: stated.weight.data as u64,
            bias: stated.bias.unwrap_or_default() as u64,
            n: tiling.n,
            k: tiling.k,
            ld: tiling.ld,
            chunks: tiling.chunks,
            tiles: tiling.tiles,
            groups: tiling.groups,
            shift: tiling.shift,
            dense: tiling.dense.into(),
        };
    }
    let last = layers.last();
    MlpParams {
        input: input.data as u64,
        output: last.map_or(0, |layer| layer.output) as u64,
        rows: choice.rows,
        layers: layers.len() as i32,
        input_ld: choice.input_ld,
        output_ld: choice.tilings.last().map_or(0, |tiling| tiling.n),
        relu_last: last.is_some_and(|layer| layer.relu).into(),
        input_dense: choice.input_dense.into(),
        slots: choice.slots,
        act_bytes: choice.act_bytes,
        layer,
    }
}

/// With `HYPATIA_LOG=plan`, one line on stderr for each new problem.
fn log(settings: Settings, input: Matrix, layers: &[Layer], choice: &Result<Choice, &str>) {
    static SEEN: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    let widths: Vec<_> = layers.iter().map(|layer| layer.weight.rows).collect();
    let Settings { device, dtype, math, .. } = settings;
    let chosen = match choice {
        Ok(choice) => format!(
            "one launch, {} with {} clusters of {}, {} slots, {} B shared",
            choice.variant.name(),
            choice.clusters,
            choice.cluster,
            choice.slots,
            choice.shared_bytes
        ),
        Err(reason) => format!("layer by layer: {reason}"),
    };
    let (rows, cols) = (input.rows, input.cols);
    let line = format!("mlp {rows}x{cols} {widths:?} {dtype:?} {math:?} cuda:{device}: {chosen}");
    if SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(line.clone()) {
        log_line(|| line);
    }
}
