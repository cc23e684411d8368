// Results of a warpgroup that computes a tile with the weight as the left
// operand: 64 columns of the result (rows of the tensor core's) by kRows rows,
// on their way to shared memory row by row.
#pragma once

#include "convert.cuh"

namespace hypatia {

// Four blocks of 8 x 8 as accumulators lie, each transposed; lane i brings
// where row i % 8 of block i / 8 goes.
__device__ inline void store_turned(unsigned to, const unsigned (&words)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, "
      "%4};" ::"r"(to),
      "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
      : "memory");
}
__device__ inline void store_turned(unsigned to, const unsigned (&words)[2]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(
          to),
      "r"(words[0]), "r"(words[1])
      : "memory");
}

// Where 16 bytes `piece` of a row of a tile of results lie: blocks of kRows
// rows of 128 bytes, swizzled for the copy engine.
template <int kRows>
__device__ inline unsigned tile_at(int row, int piece) {
  return piece / 8 * (kRows * 128) + row * 128 + ((piece % 8 ^ (row & 7)) << 4);
}

// Two numbers as a pair of elements; ReLU keeps NaN.
template <bool kRelu>
__device__ inline unsigned pair_of(float x, float y, __nv_bfloat16) {
  unsigned pair;
  if (kRelu) {
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  }
  return pair;
}
template <bool kRelu>
__device__ inline unsigned pair_of(float x, float y, __half) {
  unsigned pair;
  if (kRelu) {
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  }
  return pair;
}

// Sums of 64 columns (as the tensor core's rows) by kRows rows, as elements by
// rows.
template <typename T, int kRows>
struct Turned {
  // Where a thread's part of a tile begins.
  static __device__ unsigned place(int warp, int lane) {
    const int row = lane % 8 + (kRows > 8 ? lane / 16 * 8 : 0);
    return tile_at<kRows>(row, 2 * warp + lane / 8 % 2);
  }
  template <bool kRelu>
  static __device__ void put(unsigned to, const float (&sums)[kRows / 2]) {
    unsigned words[kRows / 4];
#pragma unroll
    for (int i = 0; i < kRows / 4; i++) {
      words[i] = pair_of<kRelu>(sums[2 * i], sums[2 * i + 1], T());
    }
    if constexpr (kRows == 8) {
      store_turned(to, words);
    } else {
#pragma unroll
      for (int j = 0; j < kRows / 16; j++) {
        const unsigned four[4] = {words[4 * j], words[4 * j + 1],
                                  words[4 * j + 2], words[4 * j + 3]};
        store_turned(to + j * 16 * 128, four);
      }
    }
  }
};
template <int kRows>
struct Turned<float, kRows> {
  static __device__ unsigned place(int warp, int lane) {
    const int col = 16 * warp + lane / 4;
    return tile_at<kRows>(2 * (lane % 4), col / 4) + col % 4 * 4;
  }
  template <bool kRelu>
  static __device__ void put(unsigned to, const float (&sums)[kRows / 2]) {
#pragma unroll
    for (int i = 0; i < kRows / 2; i++) {
      float x = sums[i];
      if (kRelu) asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(x));
      // The next row, and eight columns further, are other places of the same
      // blocks of 16 bytes by 8: swizzled apart by 1 and by 2.
      const unsigned at = (to ^ (i % 2 * 16) ^ (i / 2 % 2 * 32)) + i % 2 * 128;
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + i / 4 * 1024), "f"(x)
                   : "memory");
    }
  }
};

}  // namespace hypatia
