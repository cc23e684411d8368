// masked = output <= 0 ? 0 : grad as images for fp32_gemm.cu, and its column
// sums. Without an output there is no mask.
//
// Shapes   grad, output [rows, cols] fp32; bias_grad [cols]. Images
//          (common/split.cuh, k in natural order) of [k = cols, n = rows], for
//          the gradient of the input, and of [k = rows, n = cols], for that of
//          the weight; any of the three results may be unwanted.
// Layout   output dense row-major, grad with any two strides.
// Tiles    256 threads; a warp takes 8 rows by 32 columns at a time, a block 64
//          rows, again and again over `rows_per_split` rows. blockIdx.x counts
//          strips of columns, blockIdx.y splits of the rows.
// Sums     as in relu_backward.cu: fp32, in an order that depends on the grid.
// Assumes  (checked in src/launch/fp32) rows_per_split a multiple of 128,
// together
//          at least rows rounded up to 128; tickets zero, as they are at the
//          end.
// Targets  sm_90a
//
// The comparison is threshold_backward's: a NaN output lets the gradient pass.

#include "common/cluster.cuh"
#include "common/split.cuh"
#include "params.h"

namespace hypatia {

constexpr int kStrip = 32;
constexpr int kWarps = 8;

// Two neighbouring values of a row, zeros outside of the matrix.
__device__ inline float2 masked_pair(const Fp32ReluBackwardParams& p, int row,
                                     int col, bool wide) {
  float2 g = make_float2(0.0f, 0.0f);
  if (row >= p.rows || col >= p.cols) return g;
  const float* grad =
      p.grad + row * p.grad_row_stride + col * p.grad_col_stride;
  const float* output = p.output + static_cast<long long>(row) * p.cols + col;
  float2 y = make_float2(1.0f, 1.0f);
  if (wide) {
    g = *reinterpret_cast<const float2*>(grad);
    if (p.output) y = *reinterpret_cast<const float2*>(output);
  } else {
    const bool second = col + 1 < p.cols;
    g.x = grad[0];
    if (second) g.y = grad[p.grad_col_stride];
    if (p.output) y.x = output[0];
    if (p.output && second) y.y = output[1];
  }
  if (y.x <= 0.0f) g.x = 0.0f;
  if (y.y <= 0.0f) g.y = 0.0f;
  return g;
}

// Sums over a strip's columns: the warps' eighths, then the splits of the rows.
__device__ inline void sum_columns(const Fp32ReluBackwardParams& p,
                                   float (&sum)[8]) {
  __shared__ float shared[kWarps][kStrip];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    for (int apart = 4; apart < 32; apart *= 2) {
      sum[i] += __shfl_xor_sync(~0u, sum[i], apart);
    }
    if (lane < 4) shared[warp][i / 2 * 8 + 2 * lane + i % 2] = sum[i];
  }
  __syncthreads();
  const long long col = blockIdx.x * kStrip + threadIdx.x;
  const bool owner = threadIdx.x < kStrip && col < p.cols;
  float total = 0.0f;
  if (owner) {
    for (int w = 0; w < kWarps; w++) total += shared[w][threadIdx.x];
  }
  if (gridDim.y == 1) {
    if (owner) p.bias_grad[col] = total;
    return;
  }
  if (owner)
    p.partial[blockIdx.y * static_cast<long long>(p.cols) + col] = total;
  __threadfence();
  __shared__ bool arrived_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned int limit = gridDim.y - 1;
    arrived_last = atomicInc(&p.tickets[blockIdx.x], limit) == limit;
  }
  __syncthreads();
  if (!arrived_last || !owner) return;
  __threadfence();
  total = 0.0f;
  for (unsigned int s = 0; s < gridDim.y; s++) {
    total += __ldcg(&p.partial[s * static_cast<long long>(p.cols) + col]);
  }
  p.bias_grad[col] = total;
}

}  // namespace hypatia

extern "C" __global__ void __launch_bounds__(256)
    fp32_relu_backward(const __grid_constant__ Fp32ReluBackwardParams p) {
  using namespace hypatia;
  wait_for_grid_in_front();
  let_next_grid_start();
  const int lane = threadIdx.x % 32, i = lane / 4, q = lane % 4;
  const int warp = threadIdx.x / 32;
  const int strip = blockIdx.x * kStrip;
  const bool wide = p.cols % 2 == 0 && p.grad_col_stride == 1 &&
                    p.grad_row_stride % 2 == 0 &&
                    reinterpret_cast<unsigned long long>(p.grad) % 8 == 0;
  const long long row_blocks = padded(p.rows) / 8,
                  col_blocks = padded(p.cols) / 8;
  const int first = blockIdx.y * p.rows_per_split;
  const int last =
      min(first + static_cast<int>(p.rows_per_split), padded(p.rows));
  float sum[8] = {};
  for (int base = first + 8 * warp; base < last; base += 8 * kWarps) {
    float2 z[4];
#pragma unroll
    for (int b = 0; b < 4; b++) {
      z[b] = masked_pair(p, base + i, strip + 8 * b + 2 * q, wide);
    }
    unsigned* const over_cols = static_cast<unsigned*>(p.over_cols) + lane +
                                (blockIdx.x * row_blocks + base / 8) * 12 * 32;
    unsigned* const over_rows =
        static_cast<unsigned*>(p.over_rows) + lane +
        ((base / 32 * col_blocks + strip / 8) * 12 + base / 8 % 4) * 32;
#pragma unroll
    for (int b = 0; b < 4; b++) {
      sum[2 * b] += z[b].x, sum[2 * b + 1] += z[b].y;
      const Pair parts = Pair::exact(z[b].x, z[b].y);
      const unsigned words[3] = {parts.high, parts.middle, parts.low};
#pragma unroll
      for (int part = 0; part < 3; part++) {
        if (p.over_cols) over_cols[(part * 4 + b) * 32] = words[part];
        if (p.over_rows)
          over_rows[(b * 12 + part * 4) * 32] = transposed(words[part]);
      }
    }
  }
  if (p.bias_grad) sum_columns(p, sum);
}
