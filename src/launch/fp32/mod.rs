//! Strict fp32 on the tensor cores (`plan::fp32`): the kernels of a device
//! (`kernels`) and the launches of a call (`chain`).

pub mod chain;
pub mod kernels;

pub use chain::ReadyChain;
pub use kernels::Fp32Kernels;
