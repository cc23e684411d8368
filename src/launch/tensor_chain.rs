//! Launches `kernels/tensor_chain.cu`: a whole forward pass at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cudarc::driver::sys::{CUfunction, CUstream};

use super::call::Call;
use super::kernel::{allow, asked, Shape};
use super::modules::Module;
use super::params::{ChainMaps, TensorChainLayer, TensorChainParams, CHAIN_COUNTS, CHAIN_SLOTS};
use super::product::{log_line, logging};
use super::tensor_map::of_chain;
use super::Refusal;
use crate::plan::check::{Matrix, Settings};
use crate::plan::format::Format;
use crate::plan::layer::{Layer, Work};
use crate::plan::policy::Policy;
use crate::plan::tensor_chain::{self, TensorChain, BOX_ROWS, PAIR, SHARED_BYTES, THREADS};

/// The functions of one device.
pub struct TensorChainKernels {
    functions: [CUfunction; Format::ALL.len()],
    /// Blocks that run at a time.
    at_once: i64,
    policy: Policy,
    /// A launch failed.
    failed: AtomicBool,
    counts: Counts,
}

/// `tensor_chain_counts`: zero, and zero again behind each launch.
struct Counts {
    data: u64,
    taken: AtomicUsize,
}

impl Counts {
    /// For a captured launch that needs that many, for good: its graph may be
    /// replayed at any time. `None` if all are taken.
    fn take(&self, needed: i64) -> Option<u64> {
        if needed > CHAIN_COUNTS as i64 || self.taken.load(Ordering::Relaxed) >= CHAIN_SLOTS {
            return None;
        }
        let slot = self.taken.fetch_add(1, Ordering::Relaxed);
        let bytes = CHAIN_COUNTS * size_of::<u32>();
        (slot < CHAIN_SLOTS).then(|| self.data + (slot * bytes) as u64)
    }
}

// SAFETY: a CUfunction is a handle into a module that is never unloaded, and
// launching it is thread-safe (CUDA driver API, thread safety).
unsafe impl Send for TensorChainKernels {}
// SAFETY: as above.
unsafe impl Sync for TensorChainKernels {}

impl TensorChainKernels {
    /// Loads them and asks how many blocks run at a time; the device's context must
    /// be current.
    ///
    /// # Errors
    /// Why there are none: other devices, an old driver, `HYPATIA_TENSOR_CHAIN=0`.
    pub fn load(capability: u32) -> Result<Self, String> {
        let policy = asked("HYPATIA_TENSOR_CHAIN")?;
        let module = Module::load("tensor_chain", capability)?;
        let mut functions = [std::ptr::null_mut(); Format::ALL.len()];
        let mut at_once = i64::MAX;
        for (function, format) in functions.iter_mut().zip(Format::ALL) {
            *function = module.function(format!("tensor_chain_{}", format.name()))?;
            allow(*function, SHARED_BYTES)?;
            let clusters = shape(PAIR).clusters_at_once(*function);
            at_once = at_once.min(i64::from(clusters) * PAIR);
        }
        let bytes = CHAIN_SLOTS * CHAIN_COUNTS * size_of::<u32>();
        let data = module.variable(c"tensor_chain_counts", bytes)?;
        let counts = Counts { data, taken: AtomicUsize::new(0) };
        Ok(Self { functions, at_once, policy, failed: AtomicBool::new(false), counts })
    }
}

fn shape(blocks: i64) -> Shape {
    Shape {
        grid: (blocks as u32, 1),
        threads: THREADS,
        cluster: PAIR as u32,
        shared: SHARED_BYTES,
        overlaps: false,
        // Its blocks wait for one another.
        cooperates: true,
    }
}

/// One launch that does a chain, decided but not made.
pub struct TensorChainLaunch<'a> {
    kernels: &'a TensorChainKernels,
    chain: TensorChain,
    format: Format,
    maps: ChainMaps,
    params: TensorChainParams,
}

impl<'a> TensorChainLaunch<'a> {
    /// `None` if the layers run one by one.
    pub fn choose(
        kernels: &'a Result<TensorChainKernels, String>,
        settings: Settings,
        work: &Work,
    ) -> Option<Self> {
        let kernels = kernels.as_ref().ok()?;
        let Work::Forward(input, layers) = work else { return None };
        let format = Format::of(settings.dtype, settings.math)?;
        if kernels.failed.load(Ordering::Relaxed) {
            return None;
        }
        let chain = tensor_chain::choose(settings, work, kernels.at_once, kernels.policy);
        if let (true, Err(reason)) = (logging(), &chain) {
            log_line(|| format!("layer by layer: {reason}"));
        }
        let chain = chain.ok()?;
        let maps = maps(&chain, format, *input, layers).ok()?;
        let params = params(&chain, layers);
        Some(Self { kernels, chain, format, maps, params })
    }

    /// Puts it on the call's stream.
    ///
    /// # Safety
    /// The device's context is current; the addresses of the work are valid on it
    /// for their shapes until the stream has passed this point; the call's
    /// workspace, whose turn is the caller's, has its tickets.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(&self, call: &Call) -> Result<(), Refusal> {
        log_line(|| format!("{} in one launch: {}", self.format.name(), self.chain));
        let stream = call.stream as CUstream;
        let workspace = &call.workspace;
        let own = workspace.private.then(|| self.kernels.counts.take(self.chain.counts()));
        let done = if let Some(counts) = own.flatten() {
            counts
        } else {
            // SAFETY: the caller vouches for the ticket area.
            unsafe { workspace.clear_if_private(stream) }?;
            workspace.data as u64
        };
        let params = TensorChainParams { done, ..self.params };
        let arguments =
            [(&raw const self.maps).cast_mut().cast(), (&raw const params).cast_mut().cast()];
        let function = self.kernels.functions[self.format as usize];
        // SAFETY: the parameter blocks are those the kernel declares (params.rs is
        // held to params.h by a test) and are only read; the caller vouches for the
        // addresses; extents, alignment and tickets are those the kernel takes
        // (plan::tensor_chain).
        unsafe { shape(self.chain.blocks).launch(function, stream, arguments) }
            .map_err(|error| Refusal::driver("launching tensor_chain", error))
    }

    /// A launch failed: from now on the device's layers run one by one.
    pub fn give_up(&self) {
        self.kernels.failed.store(true, Ordering::Relaxed);
    }
}

fn maps(
    chain: &TensorChain,
    format: Format,
    input: Matrix,
    layers: &[Layer],
) -> Result<ChainMaps, Refusal> {
    let described = layers.iter().zip(&chain.layers).enumerate().map(|(i, (layer, tiled))| {
        let stored = i + 1 < layers.len() || chain.by_map;
        let result = Matrix::dense(layer.output, chain.rows, tiled.n);
        (layer.weight, tiled.cols / PAIR, stored.then_some(result))
    });
    of_chain(format.into(), BOX_ROWS, input, described)
}

fn params(chain: &TensorChain, layers: &[Layer]) -> TensorChainParams {
    let mut params = TensorChainParams {
        d: layers.last().map_or(0, |layer| layer.output) as u64,
        done: 0,
        m: chain.rows as i32,
        layers: layers.len() as i32,
        row_tiles: chain.row_tiles as i32,
        by_map: chain.by_map.into(),
        ..TensorChainParams::default()
    };
    for (to, (layer, tiled)) in params.layer.iter_mut().zip(layers.iter().zip(&chain.layers)) {
        *to = TensorChainLayer {
            bias: layer.bias.unwrap_or_default() as u64,
            n: tiled.n as i32,
            k: tiled.k as i32,
            relu: layer.relu.into(),
            cols: tiled.cols as i32,
            col_tiles: tiled.col_tiles as i32,
            reserved: 0,
        };
    }
    params
}
