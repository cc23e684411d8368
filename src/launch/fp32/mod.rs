//! Strict fp32 on the tensor cores (`plan::fp32`): the kernels of a device
//! (`kernels`), what the copy engine is told (`tensor_map`), and the launches of a
//! call (`chain`).

pub mod chain;
pub mod kernels;
mod tensor_map;

pub use chain::ReadyChain;
pub use kernels::Fp32Kernels;
