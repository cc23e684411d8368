//! An element as a sum of bfloat16, largest first. Three make up an fp32 with all of its
//! 24 bits, two a binary16 with its 11. What a bfloat16 cannot hold is lost: bits below
//! 2^-133; and AMX takes those below 2^-126 for zero.

use super::super::element::Element;

/// Planes of an element type.
#[must_use]
pub const fn count(element: Element) -> usize {
    match element {
        Element::Bf16 => 1,
        Element::F16 => 2,
        Element::F32 => 3,
    }
}

/// The planes of one number, as fp32 whose lower halves are zero. inf and NaN are the
/// first alone.
#[must_use]
pub fn of(value: f32) -> [f32; 3] {
    const LARGEST: f32 = f32::from_bits(0x7f7f_0000);
    let nearest = |v: f32| f32::from_bits(v.to_bits().wrapping_add(0x8000) & 0xffff_0000);
    if value.is_nan() {
        return [f32::from_bits(0x7fc0_0000), 0.0, 0.0];
    }
    if value.is_infinite() {
        return [value, 0.0, 0.0];
    }
    let first = if value.abs() > LARGEST {
        f32::from_bits(value.to_bits() & 0xffff_0000)
    } else {
        nearest(value)
    };
    let second = nearest(value - first);
    [first, second, f32::from_bits((value - first - second).to_bits() & 0xffff_0000)]
}

#[cfg(target_arch = "x86_64")]
pub use x86::store;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    /// Writes the first `P` planes of two numbers a lane, `apart` bytes from each other,
    /// the lower one's in the lower halves. One plane is the numbers themselves, bfloat16
    /// already.
    ///
    /// # Safety
    /// There is room for a vector at each place, aligned to 64 bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn store<const P: usize>(lower: __m512, upper: __m512, to: *mut u8, apart: usize) {
        let (mut low, mut high) = (lower, upper);
        for plane in 0..P {
            let last = plane + 1 == P;
            let (a, b) = if last { (low, high) } else { (nearest(low), nearest(high)) };
            // SAFETY: the caller's promise.
            unsafe { _mm512_store_si512(to.add(plane * apart).cast(), paired(a, b)) };
            if !last {
                (low, high) = (_mm512_sub_ps(low, a), _mm512_sub_ps(high, b));
            }
        }
        // What is infinite, or rounds to it, or is no number, leaves NaN behind.
        if P > 1 && _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(low, high) != 0 {
            // SAFETY: as above.
            unsafe { special::<P>(lower, upper, to, apart) }
        }
    }

    /// The same, one by one.
    ///
    /// # Safety
    /// As for [`store`].
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f")]
    unsafe fn special<const P: usize>(lower: __m512, upper: __m512, to: *mut u8, apart: usize) {
        let lanes = |vector: __m512| {
            let mut lanes = [0.0f32; 16];
            // SAFETY: room for sixteen.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), vector) };
            lanes.map(super::of)
        };
        for (lane, (lower, upper)) in lanes(lower).iter().zip(&lanes(upper)).enumerate() {
            for plane in 0..P {
                // SAFETY: the caller's promise.
                unsafe {
                    *to.add(plane * apart).cast::<u32>().add(lane) =
                        lower[plane].to_bits() >> 16 | upper[plane].to_bits();
                }
            }
        }
    }

    /// The nearest bfloat16; halves go away from zero, which the rest makes good.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn nearest(value: __m512) -> __m512 {
        let up = _mm512_add_epi32(_mm512_castps_si512(value), _mm512_set1_epi32(0x8000));
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        _mm512_castsi512_ps(_mm512_and_si512(up, upper))
    }

    /// The upper halves of both, the first's in the lower halves. In assembly, because
    /// compilers make one slow permutation of it.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn paired(lower: __m512, upper: __m512) -> __m512i {
        let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let pairs;
        // SAFETY: registers alone.
        unsafe {
            asm!(
                "vpsrld {pairs}, {lower}, 16",
                // pairs | (upper & mask)
                "vpternlogd {pairs}, {upper}, {mask}, 0xf8",
                pairs = out(zmm_reg) pairs,
                lower = in(zmm_reg) lower,
                upper = in(zmm_reg) upper,
                mask = in(zmm_reg) mask,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        pairs
    }
}
