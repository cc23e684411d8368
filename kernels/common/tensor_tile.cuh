// What the kernels of products in the tensor cores' own formats share (bf16,
// fp16, and float read as TF32): depth of a chunk, and results on their way to
// shared memory.
#pragma once

#include "convert.cuh"
#include "wgmma.cuh"

namespace hypatia {

template <typename T>
constexpr int kRun = 128 / sizeof(T);  // elements of 128 bytes: k of a chunk

template <typename T>
struct Tag;
template <>
struct Tag<__nv_bfloat16> : Bf16Tag {};
template <>
struct Tag<__half> : F16Tag {};
template <>
struct Tag<float> : Tf32Tag {};

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

// Where 16 bytes `piece` of a row of 64 rows of results lie: blocks of 128
// bytes a row, or of 64 where a row has no more, swizzled for the copy engine.
template <int kRowBytes>
__device__ inline unsigned result_at(int row, int piece) {
  if (kRowBytes < 128) return row * 64 + ((piece ^ (row / 2 & 3)) << 4);
  return piece / 8 * 8192 + row * 128 + ((piece % 8 ^ (row & 7)) << 4);
}

template <typename T>
__device__ inline T load_shared(unsigned from) {
  T x;
  if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.b32 %0, [%1];"
                 : "=r"(reinterpret_cast<unsigned&>(x))
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ld.shared.b16 %0, [%1];"
                 : "=h"(reinterpret_cast<unsigned short&>(x))
                 : "r"(from)
                 : "memory");
  }
  return x;
}

// A warpgroup's sums of 64 rows by 2 R columns, as elements; ReLU, which keeps
// NaN, where it is asked for.
template <typename T>
struct Results {
  template <int R>
  static __device__ void put(unsigned results, const float (&sums)[R],
                             bool relu) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const unsigned least = relu ? 0u : least_pair<T>();
    const int row = 16 * warp + lane % 16;
#pragma unroll
    for (int j = 0; j < R / 8; j++) {  // four blocks of 8 x 8 at a time
      unsigned words[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = 8 * j + 4 * (i / 2) + 2 * (i % 2);
        words[i] = max_pair<T>(pair_of<T>(sums[at], sums[at + 1]), least);
      }
      const int piece = 2 * j + lane / 16;
      store_blocks(results + result_at<4 * R>(row, piece), words);
    }
  }
};
template <>
struct Results<float> {
  template <int R>
  static __device__ void put(unsigned results, const float (&sums)[R],
                             bool relu) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const float least = relu ? 0.0f : -__int_as_float(0x7f800000);
#pragma unroll
    for (int i = 0; i < R / 2; i++) {
      float x, y;
      asm("max.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(sums[2 * i]), "f"(least));
      asm("max.NaN.f32 %0, %1, %2;"
          : "=f"(y)
          : "f"(sums[2 * i + 1]), "f"(least));
      const int row = 16 * warp + lane / 4 + 8 * (i % 2);
      const int piece = 2 * (i / 2) + lane % 4 / 2;
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(
                       results + result_at<8 * R>(row, piece) + lane % 2 * 8),
                   "f"(x), "f"(y)
                   : "memory");
    }
  }
};

}  // namespace hypatia
