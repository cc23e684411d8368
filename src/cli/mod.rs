//! The command `hypatia-opt`: a TorchScript file in, an optimized one out.
//!
//! ```text
//! args ─▶ run ─▶ container (is it a TorchScript archive, and whole?)
//!          │  ─▶ bridge::archive (load, optimize, save, run)
//!          │  ─▶ output (a temporary file, renamed)
//!          └─▶ table, check ─▶ stdout
//! ```
//!
//! Every error is one sentence on stderr. Status 0: done; 1: the check failed;
//! 2: anything else. All but `run` is pure and needs no LibTorch.

pub mod args;
pub mod check;
pub mod container;
pub mod crc32;
pub mod failure;
pub mod input;
pub mod output;
pub mod progress;
#[cfg(feature = "libtorch")]
mod run;
pub mod table;

#[cfg(feature = "libtorch")]
pub use run::main;
