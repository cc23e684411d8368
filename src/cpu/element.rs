//! Element types and their conversions to and from fp32.

/// Element types of inputs, weights, biases and results; sums are always fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
}

impl Element {
    /// Bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The value of 16 bits, for the two types that have as many.
    #[must_use]
    #[inline(always)]
    pub fn widened(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16_widened(bits),
            _ => bf16_widened(bits),
        }
    }

    /// The nearest 16 bits, for the two types that have as many.
    #[must_use]
    #[inline(always)]
    pub fn rounded(self, value: f32) -> u16 {
        match self {
            Self::F16 => f16_rounded(value),
            _ => bf16_rounded(value),
        }
    }

    /// Whether one of `count` elements is infinite; null are LibTorch's zeros without
    /// memory.
    ///
    /// # Safety
    /// They can be read and are aligned for the type, or `data` is null.
    #[allow(unsafe_code)]
    #[must_use]
    pub unsafe fn any_infinite(self, data: *const u8, count: usize) -> bool {
        if data.is_null() {
            return false;
        }
        // No early end, so that compilers make vectors of it.
        let any16 = |infinity: u16| {
            // SAFETY: the caller's promise.
            let bits = unsafe { std::slice::from_raw_parts(data.cast::<u16>(), count) };
            bits.iter().fold(false, |any, bits| any | (bits & 0x7fff == infinity))
        };
        match self {
            Self::F32 => {
                // SAFETY: as above.
                let bits = unsafe { std::slice::from_raw_parts(data.cast::<u32>(), count) };
                bits.iter().fold(false, |any, bits| any | (bits & 0x7fff_ffff == 0x7f80_0000))
            }
            Self::F16 => any16(0x7c00),
            Self::Bf16 => any16(0x7f80),
        }
    }

    /// Reads one element.
    ///
    /// # Safety
    /// `at` is valid and aligned for the type.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub unsafe fn read(self, at: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::F32 => *at.cast::<f32>(),
                _ => self.widened(*at.cast::<u16>()),
            }
        }
    }
}

/// ReLU that keeps NaN, as LibTorch's does.
#[must_use]
#[inline(always)]
pub fn relu(value: f32) -> f32 {
    if value <= 0.0 {
        0.0
    } else {
        value
    }
}

/// A bfloat16 as fp32.
#[must_use]
#[inline(always)]
pub fn bf16_widened(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bfloat16, ties to even; NaN stays NaN.
#[must_use]
#[inline(always)]
pub fn bf16_rounded(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x40_0000;
    (if value.is_nan() { quiet } else { nearest } >> 16) as u16
}

/// A binary16 as fp32.
#[must_use]
pub fn f16_widened(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    if magnitude >= 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13);
    }
    // 2^112 puts the exponent right, for subnormal numbers too.
    let value = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(sign | value.to_bits())
}

/// The nearest binary16, ties to even; NaN stays NaN.
#[must_use]
pub fn f16_rounded(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16 & 0x8000) as u16;
    let bits = value.to_bits() & 0x7fff_ffff;
    if bits > 0x7f80_0000 {
        return sign | 0x7e00 | (bits >> 13 & 0x1ff) as u16;
    }
    if bits >= 0x4780_0000 {
        return sign | 0x7c00; // 65536 and more
    }
    if bits < 0x3880_0000 {
        // Subnormal: one addition rounds to multiples of 2^-24.
        let shifted = f32::from_bits(bits) + 0.5;
        return sign | (shifted.to_bits() - 0.5f32.to_bits()) as u16;
    }
    // The rounded exponent may carry into infinity, as it should.
    let rounded = bits + 0xfff + (bits >> 13 & 1);
    sign | ((rounded - (112 << 23)) >> 13) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_bfloat16() {
        // Halfway goes to even; above it goes up; overflow is infinite.
        for (bits, want) in [
            (0x3f80_8000, 0x3f80),
            (0x3f81_8000, 0x3f82),
            (0x3f80_8001, 0x3f81),
            (0xbf80_7fff, 0xbf80),
            (0x7f7f_ffff, 0x7f80),
            (0x7f80_0000, 0x7f80),
            (0x0000_0001, 0x0000),
        ] {
            assert_eq!(bf16_rounded(f32::from_bits(bits)), want, "{bits:#x}");
        }
        for bits in [0x7f80_0001, 0xffff_ffff, 0x7fff_8000] {
            assert!(bf16_widened(bf16_rounded(f32::from_bits(bits))).is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn every_binary16_survives_and_its_neighbours_round_to_it() {
        for bits in 0..=u16::MAX {
            let value = f16_widened(bits);
            if value.is_nan() {
                assert!(f16_widened(f16_rounded(value)).is_nan());
                continue;
            }
            assert_eq!(f16_rounded(value), bits, "{value}");
            let next = f16_widened(bits.wrapping_add(1));
            if bits & 0x7fff < 0x7bff {
                // Between two neighbours: the middle goes to the even one.
                let middle = (f64::from(value) + f64::from(next)) / 2.0;
                assert_eq!(f16_rounded(middle as f32), bits + (bits & 1), "{value}");
                let nearer = (3.0 * f64::from(value) + f64::from(next)) / 4.0;
                assert_eq!(f16_rounded(nearer as f32), bits, "{value}");
            }
        }
        assert_eq!(f16_rounded(65519.99), 0x7bff);
        assert_eq!(f16_rounded(65520.0), 0x7c00);
        assert_eq!(f16_rounded(-1e30), 0xfc00);
        assert_eq!(f16_rounded(1e-30), 0);
    }

    #[test]
    #[allow(unsafe_code)]
    fn finds_infinities() {
        let bytes = |element: Element, value: f32| match element {
            Element::F32 => value.to_ne_bytes().to_vec(),
            _ => element.rounded(value).to_ne_bytes().to_vec(),
        };
        for element in [Element::F32, Element::F16, Element::Bf16] {
            for (value, infinite) in [
                (f32::INFINITY, true),
                (f32::NEG_INFINITY, true),
                (f32::NAN, false),
                (60_000.0, false),
                (-0.0, false),
            ] {
                let mut data = bytes(element, 1.0).repeat(40);
                let size = element.size();
                data[37 * size..38 * size].copy_from_slice(&bytes(element, value));
                // SAFETY: in bounds; a Vec<u8> of this allocator is aligned.
                let any = unsafe { element.any_infinite(data.as_ptr(), 40) };
                assert_eq!(any, infinite, "{element:?} {value}");
            }
        }
    }

    #[test]
    fn relu_keeps_nan() {
        assert!(relu(f32::NAN).is_nan());
        assert_eq!(relu(-1.0), 0.0);
        assert_eq!(relu(2.0), 2.0);
    }
}
