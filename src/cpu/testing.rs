//! What the kernels' tests share.

use std::ops::{Deref, DerefMut};

use super::isa::Isa;

/// Bytes at an address that suits every element.
pub struct Bytes {
    words: Vec<u64>,
    length: usize,
}

impl Bytes {
    /// So many of one value.
    pub fn filled(value: u8, length: usize) -> Self {
        let words = vec![u64::from_ne_bytes([value; 8]); length.div_ceil(8)];
        Self { words, length }
    }
}

impl FromIterator<u8> for Bytes {
    fn from_iter<I: IntoIterator<Item = u8>>(bytes: I) -> Self {
        let bytes: Vec<u8> = bytes.into_iter().collect();
        let mut all = Self::filled(0, bytes.len());
        all.copy_from_slice(&bytes);
        all
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `filled` made words for so many bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.length) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.length) }
    }
}

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
