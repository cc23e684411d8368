// masked = output <= 0 ? 0 : grad, and bias_grad[c] = sum over rows of masked.
// Without an output there is no mask: the column sums of grad alone.
//
// Shapes   grad, output, masked [rows, cols]; bias_grad [cols].
// Layout   output and masked dense row-major; grad with any two strides.
// Tiles    256 threads, TX side by side over columns and 256/TX over rows; a
//          block covers TX*V columns and `rows_per_split` rows, blockIdx.x
//          counts strips of columns, blockIdx.y the splits of the rows.
// Sums     fp32, in an order that depends on the grid alone: thread, then
//          block, then the splits in ascending order, added by whichever
//          block of the strip arrives last. Bitwise reproducible.
// Assumes  (checked in src/launch/relu_backward.rs) vec variants: unit column
//          stride, cols % V == 0, every row of every matrix 16-byte aligned;
//          tickets zero at the start. They are zero again at the end.
//
// The comparison is threshold_backward's: a NaN output lets the gradient pass.

#include "common/convert.cuh"
#include "params.h"

namespace hypatia {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // independent loads in flight per thread

// Sums `splits` partials of every column of the strip and stores the result.
template <typename T, int kStrip>
__device__ void finish_bias_grad(const ReluBackwardParams& p, float* shared) {
  constexpr int kGroups = kThreads / kStrip;
  const int lane = threadIdx.x % kStrip;
  const int group = threadIdx.x / kStrip;
  const long long col = (long long)blockIdx.x * kStrip + lane;
  float sum = 0.0f;
  if (col < p.cols) {
    // __ldcg: other blocks wrote these; L1 could hold nothing of theirs.
    for (unsigned int s = group; s < gridDim.y; s += kGroups) {
      sum += __ldcg(&p.partial[s * p.cols + col]);
    }
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (group == 0 && col < p.cols) {
    for (int g = 1; g < kGroups; ++g) sum += shared[g * kStrip + lane];
    static_cast<T*>(p.bias_grad)[col] = from_float<T>(sum);
  }
}

template <typename T, int V, int TX>
__device__ void relu_backward(const ReluBackwardParams& p) {
  constexpr int TY = kThreads / TX;
  constexpr int kStrip = TX * V;
  const int tx = threadIdx.x % TX;
  const int ty = threadIdx.x / TX;
  const long long col = ((long long)blockIdx.x * TX + tx) * V;
  const long long first = blockIdx.y * p.rows_per_split;
  const long long last = min(first + p.rows_per_split, p.rows);

  const T* grad = static_cast<const T*>(p.grad) + col * p.grad_col_stride;
  const T* output = static_cast<const T*>(p.output) + col;
  T* masked = static_cast<T*>(p.masked) + col;
  const bool masks = p.output != nullptr;
  float sum[V] = {};
  if (col < p.cols) {
    for (long long row = first + ty; row < last; row += kUnroll * TY) {
      Pack<T, V> g[kUnroll], y[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const long long r = row + u * TY;
        if (r < last) {
          g[u] = *reinterpret_cast<const Pack<T, V>*>(grad +
                                                      r * p.grad_row_stride);
          if (masks) {
            y[u] = *reinterpret_cast<const Pack<T, V>*>(output + r * p.cols);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const long long r = row + u * TY;
        if (r < last) {
          Pack<T, V> z;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const bool off = masks && to_float(y[u].at[v]) <= 0.0f;
            z.at[v] = off ? from_float<T>(0.0f) : g[u].at[v];
            sum[v] += to_float(z.at[v]);
          }
          if (p.masked != nullptr) {
            *reinterpret_cast<Pack<T, V>*>(masked + r * p.cols) = z;
          }
        }
      }
    }
  }
  if (p.bias_grad == nullptr) return;

  __shared__ float shared[TY * kStrip];
#pragma unroll
  for (int v = 0; v < V; ++v) shared[ty * kStrip + tx * V + v] = sum[v];
  __syncthreads();
  const long long strip_col = (long long)blockIdx.x * kStrip + threadIdx.x;
  const bool owner = threadIdx.x < kStrip && strip_col < p.cols;
  float total = 0.0f;
  if (owner) {
    for (int t = 0; t < TY; ++t) total += shared[t * kStrip + threadIdx.x];
  }
  if (gridDim.y == 1) {
    if (owner) static_cast<T*>(p.bias_grad)[strip_col] = from_float<T>(total);
    return;
  }
  if (owner) p.partial[blockIdx.y * p.cols + strip_col] = total;
  // The partial must be visible to every block before the ticket is drawn.
  __threadfence();
  __shared__ bool arrived_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    // atomicInc wraps to 0 at the limit: the last block resets the ticket.
    const unsigned int limit = gridDim.y - 1;
    arrived_last = atomicInc(&p.tickets[blockIdx.x], limit) == limit;
  }
  __syncthreads();
  if (arrived_last) {
    __threadfence();
    finish_bias_grad<T, kStrip>(p, shared);
  }
}

}  // namespace hypatia

#define HYPATIA_RELU_BACKWARD(name, type, vector, threads_x)              \
  extern "C" __global__ void __launch_bounds__(256) relu_backward_##name( \
      const __grid_constant__ ReluBackwardParams params) {                \
    hypatia::relu_backward<type, vector, threads_x>(params);              \
  }

HYPATIA_RELU_BACKWARD(f32_vec, float, 4, 8)
HYPATIA_RELU_BACKWARD(f16_vec, __half, 8, 8)
HYPATIA_RELU_BACKWARD(bf16_vec, __nv_bfloat16, 8, 8)
HYPATIA_RELU_BACKWARD(f32_any, float, 1, 32)
HYPATIA_RELU_BACKWARD(f16_any, __half, 1, 32)
HYPATIA_RELU_BACKWARD(bf16_any, __nv_bfloat16, 1, 32)
