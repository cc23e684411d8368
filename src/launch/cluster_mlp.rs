//! Launches `kernels/cluster_mlp.cu`: a whole forward pass of few rows at once.

use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{CUfunction, CUstream};

use super::call::Call;
use super::kernel::{allow, asked, Shape};
use super::modules::Module;
use super::params::{ChainMaps, ClusterMlpLayer, ClusterMlpParams};
use super::product::{log_line, logging};
use super::tensor_map::of_chain;
use super::{Refusal, Workspace};
use crate::plan::check::{Matrix, Settings};
use crate::plan::cluster_mlp::{self, ClusterMlp, Clusters, CLUSTER_SIZES, ROWS, THREADS};
use crate::plan::format::Format;
use crate::plan::layer::{Layer, Work};
use crate::plan::policy::Policy;
use crate::plan::small_mlp::SHARED_BYTES;

/// Rows of a weight in a box, `kCols` of the kernel.
const WEIGHT_ROWS: i64 = 64;

/// The functions of one device.
pub struct ClusterMlpKernels {
    functions: [[CUfunction; ROWS.len()]; Format::ALL.len()],
    at_once: Clusters,
    policy: Policy,
    /// A launch failed.
    failed: AtomicBool,
}

// SAFETY: a CUfunction is a handle into a module that is never unloaded, and
// launching it is thread-safe (CUDA driver API, thread safety).
unsafe impl Send for ClusterMlpKernels {}
// SAFETY: as above.
unsafe impl Sync for ClusterMlpKernels {}

impl ClusterMlpKernels {
    /// Loads them and asks how many clusters run at a time; the device's context must
    /// be current.
    ///
    /// # Errors
    /// Why there are none: other devices, an old driver, `HYPATIA_CLUSTER_MLP=0`, or
    /// `HYPATIA_ONE_LAUNCH=0`, which is of every small MLP.
    pub fn load(capability: u32) -> Result<Self, String> {
        asked("HYPATIA_ONE_LAUNCH")?;
        let policy = asked("HYPATIA_CLUSTER_MLP")?;
        let module = Module::load("cluster_mlp", capability)?;
        let mut functions = [[std::ptr::null_mut(); ROWS.len()]; Format::ALL.len()];
        let mut at_once = [[i64::MAX; CLUSTER_SIZES.len()]; ROWS.len()];
        for (functions, format) in functions.iter_mut().zip(Format::ALL) {
            for ((function, rows), at_once) in functions.iter_mut().zip(ROWS).zip(&mut at_once) {
                *function = module.function(format!("cluster_mlp_{}_{rows}", format.name()))?;
                allow(*function, SHARED_BYTES)?;
                for (count, cluster) in at_once.iter_mut().zip(CLUSTER_SIZES) {
                    let shape = shape(cluster, 1, i64::from(SHARED_BYTES));
                    *count = (*count).min(shape.clusters_at_once(*function).into());
                }
            }
        }
        Ok(Self { functions, at_once, policy, failed: AtomicBool::new(false) })
    }

    /// How it does `work`, or why another way is better; `None` where it cannot be had.
    fn plan(
        kernels: &Result<Self, String>,
        settings: Settings,
        work: &Work,
    ) -> Option<Result<ClusterMlp, &'static str>> {
        let kernels = kernels.as_ref().ok()?;
        if kernels.failed.load(Ordering::Relaxed) {
            return None;
        }
        Some(cluster_mlp::choose(settings, work, &kernels.at_once, kernels.policy))
    }

    /// Whether it does `work`: asked at every call without memory for hidden results.
    pub fn takes(kernels: &Result<Self, String>, settings: Settings, work: &Work) -> bool {
        Self::plan(kernels, settings, work).is_some_and(|chosen| chosen.is_ok())
    }
}

fn shape(cluster: i64, clusters: i64, shared: i64) -> Shape {
    Shape {
        grid: ((cluster * clusters) as u32, 1),
        threads: THREADS,
        cluster: cluster as u32,
        shared: shared as u32,
        overlaps: false,
        cooperates: false,
    }
}

/// One launch that does a chain, decided but not made.
pub struct ClusterMlpLaunch<'a> {
    kernels: &'a ClusterMlpKernels,
    plan: ClusterMlp,
    format: Format,
    input: Matrix,
    layers: &'a [Layer],
}

impl<'a> ClusterMlpLaunch<'a> {
    /// `None` if another way is better.
    pub fn choose(
        kernels: &'a Result<ClusterMlpKernels, String>,
        settings: Settings,
        work: &'a Work,
    ) -> Option<Self> {
        let chosen = ClusterMlpKernels::plan(kernels, settings, work)?;
        if let (true, Err(reason)) = (logging(), &chosen) {
            log_line(|| format!("not by clusters: {reason}"));
        }
        let plan = chosen.ok()?;
        let Work::Forward(input, layers) = work else { return None };
        let format = Format::of(settings.dtype, settings.math)?;
        Some(Self { kernels: kernels.as_ref().ok()?, plan, format, input: *input, layers })
    }

    /// Scratch bytes behind the tickets.
    pub fn scratch_bytes(&self) -> usize {
        self.plan.scratch_bytes as usize
    }

    /// Puts it on the call's stream.
    ///
    /// # Safety
    /// The device's context is current; the addresses of the work are valid on it
    /// for their shapes until the stream has passed this point; the call's
    /// workspace has [`Self::scratch_bytes`] behind its tickets.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(&self, call: &Call) -> Result<(), Refusal> {
        log_line(|| format!("{} in one launch: {}", self.format.name(), self.plan));
        let maps = self.maps(call.workspace.data + Workspace::TICKET_BYTES)?;
        let params = self.params();
        let arguments =
            [(&raw const maps).cast_mut().cast(), (&raw const params).cast_mut().cast()];
        let ClusterMlp { kernel, cluster, clusters, memory, .. } = &self.plan;
        let function = self.kernels.functions[self.format as usize][*kernel];
        // SAFETY: the parameter blocks are those the kernel declares (params.rs is
        // held to params.h by a test) and are only read; the caller vouches for the
        // addresses; extents, alignment and shared memory are those the kernel takes
        // (plan::cluster_mlp).
        unsafe {
            shape(*cluster, *clusters, memory.bytes).launch(
                function,
                call.stream as CUstream,
                arguments,
            )
        }
        .map_err(|error| Refusal::driver("launching cluster_mlp", error))
    }

    /// A launch failed: from now on the device does without.
    pub fn give_up(&self) {
        self.kernels.failed.store(true, Ordering::Relaxed);
    }

    /// `scratch` is where hidden results without a place begin.
    fn maps(&self, scratch: usize) -> Result<ChainMaps, Refusal> {
        let plan = &self.plan;
        let described =
            self.layers.iter().zip(&plan.layers).enumerate().map(|(i, (layer, tiled))| {
                let hidden = i + 1 < self.layers.len();
                let data = if hidden && layer.output == 0 {
                    scratch + tiled.scratch as usize
                } else {
                    layer.output
                };
                let result = Matrix::dense(data, plan.rows, tiled.n);
                (layer.weight, WEIGHT_ROWS, (hidden || plan.by_map).then_some(result))
            });
        of_chain(self.format, ROWS[plan.kernel], self.input, described)
    }

    fn params(&self) -> ClusterMlpParams {
        let ClusterMlp { rows, memory, by_map, .. } = &self.plan;
        let mut params = ClusterMlpParams {
            d: self.layers.last().map_or(0, |layer| layer.output) as u64,
            m: *rows as i32,
            layers: self.layers.len() as i32,
            by_map: (*by_map).into(),
            stages: memory.stages as i32,
            even_bytes: memory.even as i32,
            odd_bytes: memory.odd as i32,
            even_blocks: memory.even_blocks as i32,
            ..ClusterMlpParams::default()
        };
        for (to, (layer, tiled)) in
            params.layer.iter_mut().zip(self.layers.iter().zip(&self.plan.layers))
        {
            *to = ClusterMlpLayer {
                bias: layer.bias.unwrap_or_default() as u64,
                n: tiled.n as i32,
                chunks: tiled.chunks as i32,
                tiles: tiled.tiles as i32,
                relu: layer.relu.into(),
            };
        }
        params
    }
}
