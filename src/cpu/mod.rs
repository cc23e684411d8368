//! Layers on the CPU in kernels of ours. Pure: addresses and sizes in, no LibTorch
//! and no threads of its own; the caller brings as many threads as it likes, and
//! their number changes no bit of a result.

pub mod balance;
mod caches;
pub mod element;
pub mod isa;
pub mod schedule;

// Addresses of whoever calls: every function says what it relies on.
#[allow(unsafe_code)]
pub mod amx;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
#[allow(unsafe_code)]
pub mod backward;
#[allow(unsafe_code)]
pub mod few_rows;
#[allow(unsafe_code)]
pub mod finish;
#[allow(unsafe_code)]
pub mod forward;
#[allow(unsafe_code)]
mod pages;
#[allow(unsafe_code)]
pub mod panels;
#[allow(unsafe_code)]
mod pool;
#[allow(unsafe_code)]
pub mod results;
pub mod scratch;
#[allow(unsafe_code)]
pub mod tile;

#[cfg(test)]
#[allow(unsafe_code)]
mod testing;
