//! What the tensor cores read as it is in memory.

use super::problem::{Dtype, Math};

/// An element type and how it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// fp32, rounded to TF32 by the copy engine.
    Tf32,
}

impl Format {
    /// In the order of the kernels.
    pub const ALL: [Self; 3] = [Self::F16, Self::Bf16, Self::Tf32];

    /// That of a product with sums in fp32; `None` for strict fp32, which they do not
    /// read, and for sums in fp16.
    #[must_use]
    pub const fn of(dtype: Dtype, math: Math) -> Option<Self> {
        match (dtype, math) {
            (Dtype::F16, Math::Strict) => Some(Self::F16),
            (Dtype::Bf16, Math::Strict) => Some(Self::Bf16),
            (Dtype::F32, Math::Tf32) => Some(Self::Tf32),
            _ => None,
        }
    }

    /// In a kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
        }
    }

    /// As it is stored.
    #[must_use]
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::Tf32 => Dtype::F32,
        }
    }

    /// Elements of 128 bytes: of a run of a box, and k of a chunk.
    #[must_use]
    pub const fn run(self) -> u32 {
        128 / self.dtype().size() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_fp32_and_sums_in_fp16_have_none() {
        assert_eq!(Format::of(Dtype::F32, Math::Strict), None);
        assert_eq!(Format::of(Dtype::F16, Math::Fp16Accumulate), None);
        assert_eq!(Format::of(Dtype::Bf16, Math::Tf32), None);
        for format in Format::ALL {
            let math = if format == Format::Tf32 { Math::Tf32 } else { Math::Strict };
            assert_eq!(Format::of(format.dtype(), math), Some(format));
            assert_eq!(u64::from(format.run()) * format.dtype().size(), 128);
        }
    }
}
