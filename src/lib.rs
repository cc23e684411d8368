//! Hypatia: fused linear+ReLU operators for LibTorch.
//!
//! The library registers its operators with LibTorch's dispatcher when it is
//! loaded; Python, C++ and TorchScript programs need nothing else. A Rust
//! program links this crate and, with the feature `tch`, calls
//! [`fused_linear_relu`] on its tensors. C and other languages use the C ABI
//! of `include/hypatia/hypatia.h`, implemented in [`capi`].
//!
//! # How a call travels
//!
//! ```text
//! dispatcher → cpp/{autograd,autocast,cuda,cpu,meta}.cpp → bridge
//!            → plan::layer, plan::check → Gemm → plan::cache → launch::exec
//!            → the stream
//! ```
//!
//! C++ checks arguments, allocates with LibTorch's allocator and names the
//! current stream. Rust decides (`plan`, plain data, testable anywhere) and
//! launches (`launch`, the only CUDA code, through cudarc). What Rust refuses,
//! ATen computes.
//!
//! # Module map
//!
//! | module | what |
//! |---|---|
//! | [`error`] | the one error type; its text is user interface |
//! | [`plan`] | problems, checks, layers, grids, the plan cache; no CUDA, no LibTorch |
//! | [`cpu`] | kernels on the CPU and how work is divided; no LibTorch |
//! | [`graph`] | the optimizer of TorchScript graphs: records in, steps out |
//! | [`launch`] | cuBLASLt and our kernels on LibTorch's stream |
//! | [`bridge`] | the cxx bridge to `cpp/` |
//! | [`build_info`] | what this build is |
//! | [`capi`] | the C ABI |
//! | [`cli`] | the command `hypatia-opt` |
//!
//! Dependencies go one way: `error ← plan ← launch ← bridge ← capi, cli`,
//! and `cpu ← bridge`.

#[cfg(feature = "libtorch")]
pub mod bridge;
#[cfg(feature = "libtorch")]
pub mod build_info;
#[cfg(feature = "libtorch")]
pub mod capi;
pub mod cli;
pub mod cpu;
pub mod error;
pub mod graph;
#[cfg(feature = "libtorch")]
pub mod launch;
pub mod plan;
#[cfg(feature = "tch")]
mod tch_api;

pub use error::Error;
#[cfg(feature = "tch")]
pub use tch_api::{fused_linear_relu, fused_linear_relu_backward, fused_mlp};

/// Version of the C ABI: changes when a function changes or goes.
pub const ABI_VERSION: u32 = 1;
