// What one warp of fused_mlp adds up in registers.
#pragma once

#include "mlp_ring.cuh"
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
};

// The same sums for the same lane without tensor cores: rows g and g + 8,
// columns 2 * q and 2 * q + 1 of each tile.
template <int R>
struct Sums<F32, R> {
  static_assert(R == 16, "one tile of rows");
  float at[1][4][4] = {};

  static __device__ void dot(float& sum, const uint4& a, const uint4& b) {
    sum = fmaf(__uint_as_float(a.x), __uint_as_float(b.x), sum);
    sum = fmaf(__uint_as_float(a.y), __uint_as_float(b.y), sum);
    sum = fmaf(__uint_as_float(a.z), __uint_as_float(b.z), sum);
    sum = fmaf(__uint_as_float(a.w), __uint_as_float(b.w), sum);
  }

  // u and v: four values of K of the two rows; w: address of the same of the
  // first column.
  __device__ void add(const uint4& u, const uint4& v, unsigned w, int tiles) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < tiles) {
        const uint4 b = load_shared(w + 8 * j * kSlotRow);
        const uint4 c = load_shared(w + (8 * j + 1) * kSlotRow);
        dot(at[0][j][0], u, b);
        dot(at[0][j][1], u, c);
        dot(at[0][j][2], v, b);
        dot(at[0][j][3], v, c);
      }
    }
  }
};

}  // namespace hypatia
