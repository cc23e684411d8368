// What one warp of fused_mlp adds up in registers.
#pragma once

#include "mma.cuh"

namespace hypatia {

// Accumulators of one warp: R rows, up to four tiles of eight columns.
template <typename P, int R>
struct Sums {
  float at[R / 16][4][4] = {};

  template <int kTiles>
  __device__ void add(const uint4 (&x)[R / 8], const uint4 (&w)[4]) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const unsigned b0 = P::operand(s ? w[j].z : w[j].x);
        const unsigned b1 = P::operand(s ? w[j].w : w[j].y);
        const unsigned b[2] = {b0, b1};
#pragma unroll
        for (int i = 0; i < R / 16; ++i) {
          const uint4 &u = x[2 * i], &v = x[2 * i + 1];
          const unsigned a[4] = {s ? u.z : u.x, s ? v.z : v.x, s ? u.w : u.y,
                                 s ? v.w : v.y};
          P::mma(at[i][j], a, b);
        }
      }
    }
  }
  __device__ void finish() {}
};

template <int R>
struct Sums<F32, R> {
  float at[R / 16][4][4] = {};
  float rest[R / 16][4][4] = {};  // products with a small half

  template <int kTiles>
  __device__ void add(const uint4 (&x)[R / 8], const uint4 (&w)[4]) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      unsigned big[R / 16][4], small[R / 16][4];
#pragma unroll
      for (int i = 0; i < R / 16; ++i) {
        const uint4 &u = x[2 * i], &v = x[2 * i + 1];
        const unsigned a[4] = {s ? u.z : u.x, s ? v.z : v.x, s ? u.w : u.y,
                               s ? v.w : v.y};
#pragma unroll
        for (int e = 0; e < 4; ++e) split(a[e], big[i][e], small[i][e]);
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        unsigned b_big[2], b_small[2];
        split(s ? w[j].z : w[j].x, b_big[0], b_small[0]);
        split(s ? w[j].w : w[j].y, b_big[1], b_small[1]);
        float sum[R / 16][4] = {};
#pragma unroll
        for (int i = 0; i < R / 16; ++i) Tf32::mma(sum[i], big[i], b_big);
#pragma unroll
        for (int i = 0; i < R / 16; ++i) Tf32::mma(rest[i][j], small[i], b_big);
#pragma unroll
        for (int i = 0; i < R / 16; ++i) Tf32::mma(rest[i][j], big[i], b_small);
#pragma unroll
        for (int i = 0; i < R / 16; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) at[i][j][e] += sum[i][e];
        }
      }
    }
  }

  __device__ void finish() {
#pragma unroll
    for (int i = 0; i < R / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) at[i][j][e] += rest[i][j][e];
      }
    }
  }
};

}  // namespace hypatia
// It used, from common/mma.cuh of then (7fffffff gives big = -0, but small =
// NaN):
//   big = (x + 0x1000) & 0xffffe000;
//   small = __float_as_uint(__uint_as_float(x) - __uint_as_float(big));
