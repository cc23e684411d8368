//! Launches `kernels/cluster_mlp.cu` and `cluster_fp32.cu`: a whole forward pass of few
//! rows at once.

use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{CUfunction, CUstream};

use super::call::Call;
use super::kernel::{allow, asked, asked_of_fp32, Shape};
use super::modules::Module;
use super::params::{ChainMaps, ClusterFp32Operands, ClusterMlpLayer, ClusterMlpParams};
use super::product::{log_line, logging};
use super::tensor_map::{of_chain, Elements};
use super::{Refusal, Workspace};
use crate::plan::check::{Matrix, Settings};
use crate::plan::cluster_kind::{Kind, KERNELS};
use crate::plan::cluster_mlp::{self, ClusterMlp, Clusters};
use crate::plan::format::Format;
use crate::plan::layer::{Layer, Work};
use crate::plan::policy::Policy;
use crate::plan::small_mlp::SHARED_BYTES;

/// The functions of one device.
pub struct ClusterMlpKernels {
    functions: [[CUfunction; KERNELS]; Kind::ALL.len()],
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
        let tensor = Module::load("cluster_mlp", capability)?;
        let fp32 = Module::load("cluster_fp32", capability)?;
        let mut functions = [[std::ptr::null_mut(); KERNELS]; Kind::ALL.len()];
        let mut at_once = Clusters::default();
        for kind in Kind::ALL {
            let module = if kind == Kind::Fp32 { &fp32 } else { &tensor };
            for kernel in 0..kind.rows().len() {
                let function = module.function(kind.name(kernel))?;
                allow(function, SHARED_BYTES)?;
                functions[kind.index()][kernel] = function;
                let at_once = &mut at_once[kind.index()][kernel];
                for (count, cluster) in at_once.iter_mut().zip(kind.cluster_sizes()) {
                    let shape = shape(kind, cluster, 1, i64::from(SHARED_BYTES));
                    *count = shape.clusters_at_once(function).into();
                }
            }
        }
        if asked_of_fp32().is_err() {
            at_once[Kind::Fp32.index()] = Default::default();
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

fn shape(kind: Kind, cluster: i64, clusters: i64, shared: i64) -> Shape {
    Shape {
        grid: ((cluster * clusters) as u32, 1),
        threads: kind.threads(),
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
        Some(Self { kernels: kernels.as_ref().ok()?, plan, input: *input, layers })
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
    /// workspace, whose turn is the caller's, has [`Self::scratch_bytes`] behind its
    /// tickets.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(&self, call: &Call) -> Result<(), Refusal> {
        let ClusterMlp { kind, kernel, cluster, clusters, memory, .. } = &self.plan;
        log_line(|| format!("{} in one launch: {}", kind.mode(), self.plan));
        let maps = self.maps(call.workspace.data + Workspace::TICKET_BYTES)?;
        let (params, operands) = (self.params(), self.operands());
        // The driver takes as many as the kernel declares; strict fp32 has the last.
        let arguments = [
            (&raw const maps).cast_mut().cast(),
            (&raw const params).cast_mut().cast(),
            (&raw const operands).cast_mut().cast(),
        ];
        let function = self.kernels.functions[kind.index()][*kernel];
        // SAFETY: the parameter blocks are those the kernel declares (params.rs is
        // held to params.h by a test) and are only read; the caller vouches for the
        // addresses; extents, alignment and shared memory are those the kernel takes
        // (plan::cluster_mlp).
        unsafe {
            shape(*kind, *cluster, *clusters, memory.bytes).launch(
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
        let (plan, kind) = (&self.plan, self.plan.kind);
        let tf32 = kind == Kind::Tensor(Format::Tf32);
        let described =
            self.layers.iter().zip(&plan.layers).enumerate().map(|(i, (layer, tiled))| {
                let hidden = i + 1 < self.layers.len();
                let data = if hidden && layer.output == 0 {
                    scratch + tiled.scratch as usize
                } else {
                    layer.output
                };
                let result = Matrix::dense(data, plan.rows, tiled.n);
                (layer.weight, kind.cols(), (hidden || plan.by_map).then_some(result))
            });
        let elements = Elements { dtype: kind.dtype(), tf32 };
        of_chain(elements, kind.rows()[plan.kernel], self.input, described)
    }

    fn operands(&self) -> ClusterFp32Operands {
        let mut operands = ClusterFp32Operands {
            input: self.input.data as u64,
            input_ld: self.input.row_stride as i32,
            ..ClusterFp32Operands::default()
        };
        for (i, layer) in self.layers.iter().enumerate() {
            operands.weight[i] = layer.weight.data as u64;
            operands.weight_ld[i] = layer.weight.row_stride as i32;
            operands.k[i] = layer.weight.cols as i32;
        }
        operands
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
