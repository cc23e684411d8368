// What fp32_gemm.cu does with its sums: adds up splits of k, mends what is not
// finite, adds the bias, applies the ReLU, and stores fp32 and the next image.
//
// A thread has two rows of d and columns col, col + 1, col + 8, ...:
// total[4 j + 2 r + e] is (rows[r], col + 8 j + e).
#pragma once

#include "../params.h"
#include "fp32_left.cuh"

namespace hypatia {

struct Place {
  int upper, lower;  // rows
  int col;           // the first column
  __device__ int row(int i) const { return i & 2 ? lower : upper; }
};

// Waits for the 128 threads of this half of the block; barriers 1 and 2.
__device__ inline void meet(int half) {
  if (half == 0) {
    asm volatile("bar.sync 1, 128;" ::: "memory");
  } else {
    asm volatile("bar.sync 2, 128;" ::: "memory");
  }
}

// Puts a split's sums where the last one finds them; true for that, with all of
// them added up.
template <int N>
__device__ inline bool reduce(const Fp32GemmParams& p, int tile, int split,
                              int half, float (&total)[N]) {
  constexpr int kPart = N / 4 * 128;  // float4 of a split
  const int thread = threadIdx.x % 128;
  float4* const all = reinterpret_cast<float4*>(p.partial) + thread +
                      (2ll * tile + half) * p.splits * kPart;
#pragma unroll
  for (int i = 0; i < N / 4; i++) {
    all[split * kPart + i * 128] = make_float4(
        total[4 * i], total[4 * i + 1], total[4 * i + 2], total[4 * i + 3]);
  }
  __threadfence();
  __shared__ unsigned int arrived[2];
  unsigned int* const ticket = p.tickets + 2 * tile + half;
  meet(half);
  if (thread == 0) arrived[half] = atomicAdd(ticket, 1);
  meet(half);
  if (arrived[half] != p.splits - 1) return false;
  __threadfence();
  if (thread == 0) *ticket = 0;
#pragma unroll
  for (int i = 0; i < N; i++) total[i] = 0.0f;
  for (int s = 0; s < p.splits; s++) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
      const float4 v = __ldcg(all + s * kPart + i * 128);
      total[4 * i] += v.x, total[4 * i + 1] += v.y;
      total[4 * i + 2] += v.z, total[4 * i + 3] += v.w;
    }
  }
  return true;
}

// Calls use(i, v[i], v[i + 1]) for every even i, in a loop that is not
// unrolled: for what is rare. Registers have no index, so the values turn past
// it.
template <int N, typename Use>
__device__ inline void each_in_turn(float (&v)[N], Use use) {
#pragma unroll 1
  for (int i = 0; i < N; i += 2) {
    float x = v[0], y = v[1];
    use(i, x, y);
#pragma unroll
    for (int j = 0; j < N - 2; j++) v[j] = v[j + 2];
    v[N - 2] = x, v[N - 1] = y;
  }
}

// Whether none is inf or NaN, or would be in bf16.
template <int N>
__device__ inline bool all_normal(const float (&v)[N]) {
  float zero = 0.0f;
#pragma unroll
  for (int i = 0; i < N; i++) zero = fmaf(v[i] * 1.01f, 0.0f, zero);
  return zero == 0.0f;
}

// One element of left . right by plain FMAs, up to the first NaN.
template <typename Left>
__device__ inline float plain_sum(const Fp32GemmParams& p, int row, int col) {
  if (row >= p.m || col >= p.n) return 0.0f;
  const float* left = p.left + row * p.left_row;
  const long long chunk_blocks = padded(p.n) / 8 * 12ll;
  float sum = 0.0f;
  for (int g = 0; g < (p.k + 7) / 8 && sum == sum; g++) {
    const int chunk = g / 4, group = g % 4;
    const uint4* block = static_cast<const uint4*>(p.image) +
                         (chunk * chunk_blocks + col / 8 * 12 + group) * 8 +
                         col % 8;
    const uint4 parts[3] = {block[0], block[4 * 8], block[8 * 8]};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float right = 0.0f;
#pragma unroll
      for (int j = 0; j < 3; j++) {
        const unsigned word = (&parts[j].x)[i / 2];
        right += __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
      }
      const int k = chunk * kImageDepth + Left::k_of(group, i);
      if (k < p.k) sum = fmaf(left[k * p.left_k], right, sum);
    }
  }
  return sum;
}

// d element by element.
template <int N>
__device__ inline void store_any(const Fp32GemmParams& p, float (&total)[N],
                                 const Place& at) {
  each_in_turn(total, [&](int i, float x, float y) {
    const int row = at.row(i), col = at.col + i / 4 * 8;
    float* to = p.d + row + col * p.d_col;
    if (row < p.m && col < p.n) to[0] = x;
    if (row < p.m && col + 1 < p.n) to[p.d_col] = y;
  });
}

// d of `Columns`: eight threads have eight rows on end.
template <int N>
__device__ inline void store_by_eight(const Fp32GemmParams& p,
                                      const float (&total)[N],
                                      const Place& at) {
  const int columns = p.n - at.col;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = r == 0 ? at.upper : at.lower;
    if (row >= p.m) continue;
    float* to = p.d + row + at.col * p.d_col;
#pragma unroll
    for (int i = 0; i < N; i += 4, to += 8 * p.d_col) {
      if (2 * i < columns) to[0] = total[i + 2 * r];
      if (2 * i + 1 < columns) to[p.d_col] = total[i + 2 * r + 1];
    }
  }
}

// d of `Rows`: two neighbouring threads (i even and odd) have four rows on end
// of two columns; each takes one column.
template <int N>
__device__ inline void store_by_four(const Fp32GemmParams& p,
                                     const float (&total)[N], const Place& at,
                                     bool odd) {
  float* to = p.d + (at.upper - odd) + (at.col + odd) * p.d_col;
  const int columns = at.upper < p.m ? p.n - at.col - odd : 0;
#pragma unroll
  for (int i = 0; i < N; i += 4, to += 8 * p.d_col) {
    const float upper = __shfl_xor_sync(~0u, odd ? total[i] : total[i + 1], 4);
    const float lower =
        __shfl_xor_sync(~0u, odd ? total[i + 2] : total[i + 3], 4);
    const float4 v = odd ? make_float4(upper, total[i + 1], lower, total[i + 3])
                         : make_float4(total[i], upper, total[i + 2], lower);
    if (2 * i < columns) *reinterpret_cast<float4*>(to) = v;
  }
}

// The image for a product that sums over rows of d: a warp's 16 rows are two
// groups of 8, in the order of `Rows`.
template <int N>
__device__ inline void store_image(const Fp32GemmParams& p, float (&total)[N],
                                   const Place& at, int lane) {
  const int chunk = at.upper / kImageDepth;
  if (chunk * kImageDepth >= p.m) return;
  unsigned* const image = static_cast<unsigned*>(p.image_out) + lane +
                          (chunk * (padded(p.n) / 8ll) + at.col / 8) * 12 * 32;
  const auto store = [&](int i, const Pair& parts) {
    unsigned* to = image + (i / 4 * 12 + at.row(i) % 8 / 2) * 32;
    to[0] = transposed(parts.high);
    to[4 * 32] = transposed(parts.middle);
    to[8 * 32] = transposed(parts.low);
  };
  if (__all_sync(~0u, all_normal(total))) {
#pragma unroll
    for (int i = 0; i < N; i += 2) store(i, Pair(total[i], total[i + 1]));
  } else {
    each_in_turn(total,
                 [&](int i, float x, float y) { store(i, Pair::exact(x, y)); });
  }
}

// All of it, for the tile of d at (row, col).
template <typename Left, int N>
__device__ inline void finish(const Fp32GemmParams& p, float (&total)[N],
                              int row, int col, int warp, int lane) {
  const int i = lane / 4;
  const Place at = {row + Left::row(warp, i, 0), row + Left::row(warp, i, 1),
                    col + 2 * (lane % 4)};
  if (!all_normal(total)) {
    each_in_turn(total, [&](int j, float& x, float& y) {
      const int r = at.row(j), c = at.col + j / 4 * 8;
      if (x - x != 0.0f) x = plain_sum<Left>(p, r, c);
      if (y - y != 0.0f) y = plain_sum<Left>(p, r, c + 1);
    });
  }
  if (p.bias) {
    const float upper = at.upper < p.m ? p.bias[at.upper] : 0.0f;
    const float lower = at.lower < p.m ? p.bias[at.lower] : 0.0f;
#pragma unroll
    for (int j = 0; j < N; j++) total[j] += j & 2 ? lower : upper;
  }
  if (p.relu) {
#pragma unroll
    for (int j = 0; j < N; j++) total[j] = total[j] < 0.0f ? 0.0f : total[j];
  }
  if (p.d) {
    if (!Left::kMakesImages) {
      store_by_eight(p, total, at);
    } else if (p.m % 4 == 0 && p.d_col % 4 == 0 &&
               reinterpret_cast<unsigned long long>(p.d) % 16 == 0) {
      store_by_four(p, total, at, lane & 4);
    } else {
      store_any(p, total, at);
    }
  }
  if (Left::kMakesImages && p.image_out) store_image(p, total, at, lane);
}

}  // namespace hypatia
