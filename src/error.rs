//! The one error type. Its `Display` is what a user reads in Python, C++ and
//! Rust alike: `hypatia::op: expected …, got …`.

use std::fmt;

/// What went wrong in one operator call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An argument is not what the operator takes.
    Argument {
        /// Operator name without the namespace.
        op: &'static str,
        /// What would have been right.
        expected: String,
        /// What came.
        got: String,
    },
    /// LibTorch reported an error; the text is its own, first line only.
    LibTorch(String),
    /// A bug in Hypatia: a panic that was caught at the language boundary.
    Internal {
        /// Operator name without the namespace.
        op: &'static str,
        /// The panic's message.
        message: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument { op, expected, got } => {
                write!(f, "hypatia::{op}: expected {expected}, got {got}")
            }
            Self::LibTorch(text) => f.write_str(text),
            Self::Internal { op, message } => {
                write!(f, "hypatia::{op}: expected no internal failure, got a panic: {message}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// Runs `body`; a panic becomes `Error::Internal` instead of unwinding into
/// C++ (which would abort the host process).
#[cfg_attr(not(feature = "libtorch"), allow(dead_code))]
pub(crate) fn guarded<T>(
    op: &'static str,
    body: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    // The closures passed here only read shared state or own what they touch,
    // and the caches behind locks recover from poisoning themselves.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(payload) => {
            let message = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_owned());
            Err(Error::Internal { op, message })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sentence_with_op_expected_got() {
        let error = Error::Argument {
            op: "fused_linear_relu",
            expected: "a weight of shape [N, 3]".into(),
            got: "[4, 5]".into(),
        };
        assert_eq!(
            error.to_string(),
            "hypatia::fused_linear_relu: expected a weight of shape [N, 3], got [4, 5]"
        );
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let result: Result<(), Error> = guarded("op", || panic!("boom {}", 1));
        assert_eq!(
            result.unwrap_err().to_string(),
            "hypatia::op: expected no internal failure, got a panic: boom 1"
        );
    }
}
