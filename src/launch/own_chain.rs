//! A whole piece of work by kernels of ours: strict fp32 on the tensor cores, or a
//! forward pass in one launch.

use super::call::Call;
use super::cluster_mlp::ClusterMlpLaunch;
use super::device::Device;
use super::fp32::ReadyChain;
use super::tensor_chain::TensorChainLaunch;
use super::Refusal;
use crate::plan::check::Settings;
use crate::plan::layer::Work;

/// Decided but not launched.
pub enum OwnChain<'a> {
    /// `kernels/fp32_*.cu`.
    Fp32(ReadyChain<'a>),
    /// `kernels/cluster_mlp.cu` or `cluster_fp32.cu`.
    Cluster(ClusterMlpLaunch<'a>),
    /// `kernels/tensor_chain.cu`.
    Tensor(Box<TensorChainLaunch<'a>>),
}

impl<'a> OwnChain<'a> {
    /// `None` if the layers run one by one.
    pub fn choose(device: &'a Device, settings: Settings, work: &'a Work) -> Option<Self> {
        let modules = &device.modules;
        let chosen = ClusterMlpLaunch::choose(&modules.cluster_mlp, settings, work);
        if chosen.is_some() {
            return chosen.map(Self::Cluster);
        }
        if settings.is_strict_fp32() {
            let chosen = ReadyChain::choose(modules, settings, work, device.multiprocessors);
            return chosen.map(Self::Fp32);
        }
        if work.lacks_hidden() {
            return None;
        }
        let chosen = TensorChainLaunch::choose(&modules.tensor_chain, settings, work);
        chosen.map(|launch| Self::Tensor(Box::new(launch)))
    }

    /// For messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fp32(_) => "fp32 on the tensor cores",
            Self::Cluster(_) => "all layers in clusters",
            Self::Tensor(_) => "all layers in one launch",
        }
    }

    /// Scratch bytes behind the tickets; where there are any, the tickets are used.
    pub fn scratch_bytes(&self) -> usize {
        match self {
            Self::Fp32(chain) => chain.scratch_bytes(),
            Self::Cluster(launch) => launch.scratch_bytes(),
            Self::Tensor(_) => 256,
        }
    }

    /// Puts all of it on the call's stream.
    ///
    /// # Safety
    /// The device's context is current; the addresses of the work are valid on it
    /// for their shapes until the stream has passed this point; the call's
    /// workspace has [`Self::scratch_bytes`] behind its tickets.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(&self, call: &Call) -> Result<(), Refusal> {
        // What they keep in scratch memory must not come between the two kernels of
        // another thread's split product, nor that between theirs.
        let _turn = call.workspace.turn();
        // SAFETY: forwarded.
        unsafe {
            match self {
                Self::Fp32(chain) => chain.launch(call),
                Self::Cluster(launch) => launch.launch(call),
                Self::Tensor(launch) => launch.launch(call),
            }
        }
    }

    /// A launch failed: from now on the device does without.
    pub fn give_up(&self) {
        match self {
            Self::Fp32(chain) => chain.give_up(),
            Self::Cluster(launch) => launch.give_up(),
            Self::Tensor(launch) => launch.give_up(),
        }
    }
}
