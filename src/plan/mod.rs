//! Decisions, without CUDA and without LibTorch: what a call asks for
//! (`problem`), whether our kernels may answer it (`check`), which products a
//! chain of layers runs (`layer`) or which one launch does all of it
//! (`small_mlp`, `cluster_mlp` with `cluster_kind`), when strict fp32 goes to the tensor
//! cores layer by layer and how (`fp32`), how our own kernel may do a 16-bit product
//! (`tensor_gemm`) or a whole chain of them (`tensor_chain`), how the mask kernel covers its
//! matrix (`relu_grid`), how much is timed (`tuning`), where finished plans are kept
//! (`cache`; `kept` between processes) and which calls are kept whole (`replay`).
//! Everything here is plain data and runs on any machine.

pub mod cache;
pub mod check;
pub mod cluster_kind;
pub mod cluster_mlp;
pub mod format;
pub mod fp32;
pub mod kept;
pub mod layer;
pub mod operands;
pub mod pad;
pub mod padded;
pub mod policy;
pub mod problem;
pub mod relu_grid;
pub mod replay;
pub mod small_mlp;
pub mod tensor_chain;
pub mod tensor_gemm;
pub mod tuning;

/// `a / b`, rounded up; both are positive.
const fn div_ceil(a: i64, b: i64) -> i64 {
    (a + b - 1) / b
}
