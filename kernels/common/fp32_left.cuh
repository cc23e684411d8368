// How fp32_gemm.cu's left operand comes from memory to the tensor cores: as
// fp32 through shared memory, then in three bf16 parts in registers.
//
// A tile is 128 rows by 32 of k. Thread (i, q) = (lane / 4, lane % 4) of a warp
// has two of its 16 rows, `row(warp, i, 0)` and `row(warp, i, 1)`, and reads
// eight values for each of a chunk's two products, in the tensor core's order.
#pragma once

#include "bulk_copy.cuh"
#include "split.cuh"

namespace hypatia {

// k contiguous: 128 rows of 128 bytes, swizzled. For product s a thread takes
// 16 bytes of a row, k = 8 q + 4 s and on: two rows then use all banks. A
// warp's rows are such that they make two groups of 8 of an image of the
// result.
struct Rows {
  static constexpr bool kMakesImages = true;

  static __device__ int row(int warp, int i, int lower) {
    return 32 * (warp / 2) + 8 * (i / 2) + 4 * (warp % 2) + 2 * lower + i % 2;
  }

  static __device__ void fetch(unsigned to, const TensorMap& map, int k,
                               int row, unsigned barrier) {
    copy_box(to, map, k, row, barrier);
  }

  static __device__ void read(float (&x)[8], unsigned tile, int warp, int i,
                              int q, int s) {
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
      const int r = row(warp, i, lower);
      const uint4 v =
          load_shared(tile + r * 128 + (((2 * q + s) ^ (r & 7)) << 4));
      x[2 * lower] = __uint_as_float(v.x);
      x[2 * lower + 1] = __uint_as_float(v.y);
      x[2 * lower + 4] = __uint_as_float(v.z);
      x[2 * lower + 5] = __uint_as_float(v.w);
    }
  }

  // Which k of a chunk is at place `i` of group `group` in the image.
  static __device__ int k_of(int group, int i) {
    return 8 * (i / 2) + 2 * group + i % 2;
  }
};

// Rows contiguous: four boxes of 32 k by 32 rows, swizzled; k in natural order.
struct Columns {
  static constexpr bool kMakesImages = false;

  static __device__ int row(int warp, int i, int lower) {
    return 16 * warp + i + 8 * lower;
  }

  static __device__ void fetch(unsigned to, const TensorMap& map, int k,
                               int row, unsigned barrier) {
    for (int i = 0; i < 4; i++) {
      copy_box(to + i * 4096, map, row + 32 * i, k, barrier);
    }
  }

  static __device__ void read(float (&x)[8], unsigned tile, int warp, int i,
                              int q, int s) {
#pragma unroll
    for (int at = 0; at < 8; at++) {
      const int r = row(warp, i, at / 2 % 2);
      const int k = 16 * s + 8 * (at / 4) + 2 * q + at % 2;
      const unsigned piece = (r % 32 / 4) ^ (k & 7);
      asm volatile(
          "ld.shared.f32 %0, [%1];"
          : "=f"(x[at])
          : "r"(tile + (r / 32) * 4096 + k * 128 + (piece << 4) + r % 4 * 4)
          : "memory");
    }
  }

  static __device__ int k_of(int group, int i) { return 8 * group + i; }
};

struct Fragment {
  unsigned high[4], middle[4], low[4];

  __device__ void split(const float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const Pair p(x[2 * i], x[2 * i + 1]);
      high[i] = p.high, middle[i] = p.middle, low[i] = p.low;
    }
  }
};

}  // namespace hypatia
