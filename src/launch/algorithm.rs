//! One way to do a product: cuBLASLt's or our kernel's.

use std::fmt;

use super::cublaslt;
use crate::plan::kept::Choice;
use crate::plan::tensor_gemm::Tiling;

/// One way to do a product.
#[derive(Debug, Clone, Copy)]
pub enum Algorithm {
    /// cuBLASLt's, with the workspace it needs.
    Library(cublaslt::Found),
    /// `kernels/tensor_gemm.cu`.
    Own(Tiling),
}

impl Algorithm {
    /// Scratch bytes that it needs.
    pub fn workspace_bytes(&self) -> usize {
        match self {
            Self::Library(found) => found.workspace_bytes(),
            Self::Own(_) => 0,
        }
    }

    /// Whether it sums parts of k apart.
    pub fn splits_k(&self) -> bool {
        match self {
            Self::Library(found) => found.splits_k(),
            Self::Own(_) => false,
        }
    }

    /// What another process knows it by.
    pub fn choice(&self) -> Choice {
        match self {
            Self::Library(found) => {
                let workspace = found.workspace_bytes() as u64;
                Choice::Library { config: found.config, workspace }
            }
            Self::Own(Tiling { shape, overlaps, .. }) => {
                Choice::Own { shape: *shape, overlaps: *overlaps }
            }
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(_) => f.write_str("cuBLASLt's"),
            Self::Own(tiling) => write!(f, "{tiling}"),
        }
    }
}
