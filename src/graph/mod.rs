//! The graph optimizer: plain data, no CUDA, no LibTorch.

pub mod extract;
