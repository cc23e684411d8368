// What the kernels of 16-bit products share: depth of a chunk, element types,
// and results on their way to shared memory.
#pragma once

#include "convert.cuh"
#include "wgmma.cuh"

namespace hypatia {

constexpr int kDepth = 64;  // k of a chunk: 128 bytes

template <typename T>
struct Tag;
template <>
struct Tag<__nv_bfloat16> : Bf16Tag {};
template <>
struct Tag<__half> : F16Tag {};

template <typename T>
__device__ inline unsigned pair_of(float x, float y) {
  const Pack<T, 2> pair = {from_float<T>(x), from_float<T>(y)};
  unsigned word;
  memcpy(&word, &pair, sizeof word);
  return word;
}

// The larger of two pairs, element by element; NaN stays NaN.
template <typename T>
__device__ inline unsigned max_pair(unsigned x, unsigned y);
template <>
__device__ inline unsigned max_pair<__nv_bfloat16>(unsigned x, unsigned y) {
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(x) : "r"(x), "r"(y));
  return x;
}
template <>
__device__ inline unsigned max_pair<__half>(unsigned x, unsigned y) {
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(x) : "r"(x), "r"(y));
  return x;
}

// A pair of -inf.
template <typename T>
__device__ inline unsigned least_pair() {
  const float least = -__int_as_float(0x7f800000);
  return pair_of<T>(least, least);
}

// Four blocks of 8 x 8 that a warp holds as accumulators lie; lane i brings
// where row i % 8 of block i / 8 goes.
__device__ inline void store_blocks(unsigned to, const unsigned (&words)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
          to),
      "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
      : "memory");
}

}  // namespace hypatia
