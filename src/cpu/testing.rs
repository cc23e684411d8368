//! What the kernels' tests share.

use super::isa::Isa;

/// A fixed sequence a seed.
pub struct Random(pub u64);

impl Random {
    /// Between -2 and 2.
    pub fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 2.0
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.next();
        (self.0 >> 33) as usize % n
    }

    /// `length` numbers.
    pub fn vector(&mut self, length: usize) -> Vec<f32> {
        (0..length).map(|_| self.next()).collect()
    }
}

/// Every instruction set that this CPU has.
pub fn available() -> Vec<Isa> {
    [Isa::Scalar, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| *isa <= Isa::best()).collect()
}

/// Whether this CPU has `vdpbf16ps`, however slow.
pub fn has_dot() -> bool {
    Isa::best() == Isa::Avx512 && super::isa::bf16().dot > 0.0
}
