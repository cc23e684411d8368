// An fp32 as the sum of three bf16, each the rounded rest of those before:
// h + m + l has all 24 bits.
//
// The image of a matrix [k, n] is what the products read from shared memory:
// for each 32 of k and each 8 columns 1536 bytes, 12 blocks of 128: part (high,
// middle, low), then 4 groups of 8 k; a block is 8 columns of 16 bytes of k.
// Columns are padded to 128, with zeros.
#pragma once

namespace hypatia {

constexpr int kImageDepth = 32;           // k of one run of blocks
constexpr int kBlockBytes = 128;          // of 8 columns by 8 k of one part
constexpr int kColumnBytes = 3 * 4 * 16;  // of one column in a run

// Columns of an image of `n` columns.
__device__ inline int padded(int n) { return (n + 127) / 128 * 128; }

// Two values as bf16, the first in the low half; they become what is left.
__device__ inline unsigned take_bf16(float& x, float& y) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(y), "f"(x));
  x -= __uint_as_float(both << 16);
  y -= __uint_as_float(both & 0xffff0000u);
  return both;
}

// Words of the three operands for two values; inf and NaN as inf - inf makes
// them, for operands whose origin is at hand.
struct Pair {
  unsigned high, middle, low;

  __device__ Pair(float x, float y) {
    high = take_bf16(x, y);
    middle = take_bf16(x, y);
    low = take_bf16(x, y);
  }

  // For images: high + middle + low is the value whatever it is, inf and NaN
  // too, but for bits below 2^-133.
  static __device__ Pair exact(float x, float y) {
    // Rounded up it would be inf.
    constexpr float kLargest = 3.3895313892515355e38f;
    const auto normal = [](float v) { return fabsf(v) <= kLargest; };
    Pair p(x, y);
    if (normal(x) && normal(y)) return p;
    const float high_x = rounded(x), high_y = rounded(y);
    float rest_x = high_x - high_x == 0.0f ? x - high_x : 0.0f;
    float rest_y = high_y - high_y == 0.0f ? y - high_y : 0.0f;
    p.high =
        __float_as_uint(high_x) >> 16 | (__float_as_uint(high_y) & 0xffff0000u);
    p.middle = take_bf16(rest_x, rest_y);
    p.low = take_bf16(rest_x, rest_y);
    return p;
  }

 private:
  // To bf16, towards zero where the nearest would be inf.
  static __device__ float rounded(float v) {
    float w = 0.0f;
    const float bits = v;
    const unsigned nearest = take_bf16(v, w) << 16;
    const bool cut = fabsf(bits) < __uint_as_float(0x7f800000u) &&
                     (nearest & 0x7f800000u) == 0x7f800000u;
    return __uint_as_float(cut ? __float_as_uint(bits) & 0xffff0000u : nearest);
  }
};

// An 8 x 8 block of bf16 in a warp, thread t with row t / 4 and columns 2 (t %
// 4) and the next, the other way round.
__device__ inline unsigned transposed(unsigned v) {
  unsigned r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

}  // namespace hypatia
