//! CPU kernels, for what LibTorch's libraries do slowly: layers on few rows
//! (`few_rows`), where a matrix product is a matrix-vector product and its set-up
//! costs as much as its work. Threads are LibTorch's: each call here does a range
//! of columns, and which range it is never changes a result.
#![allow(unsafe_code)] // Vector instructions on raw memory; every block says why it is sound.

pub mod few_rows;
