//! Where kernels of ours are used that have an alternative.

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Where they were measured, or are predicted, to be faster.
    WhereFaster,
    /// Wherever they work.
    Always,
}
