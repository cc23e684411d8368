//! The graph optimizer, pure: one TorchScript block comes as flat records and
//! leaves as a list of steps that build its replacement. No LibTorch, no GPU.
//!
//! ```text
//! records ─ import ─▶ e-graph ─ saturate (rules) ─▶ select (cost, extract) ─ rewrite ─▶ steps
//! ```
//!
//! What a value *is* (shape, dtype, constness) is decided from facts that hold
//! in every run; what was merely recorded in one run only feeds costs.

pub mod cost;
pub mod draw;
pub mod explain;
pub mod extract;
pub mod facts;
pub mod import;
pub mod language;
pub mod memory;
pub mod ops;
pub mod profile;
pub mod records;
pub mod report;
pub mod rewrite;
pub mod rules;
pub mod saturate;
pub mod select;
pub mod session;
#[cfg(test)]
mod tests;
pub mod total;
