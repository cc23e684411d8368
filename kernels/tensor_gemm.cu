// d = left . rightT [+ bias] [relu] in bf16, fp16 or TF32, sums in fp32.
//
// Shapes   left [m, k], right [n, k], bias [n] or none, d [m, n] dense.
// Layout   left and right by tensor maps, with k contiguous ("n") or the other
//          dimension ("t", in the kernel's name: left, then right; not in
//          TF32); boxes of 128 bytes of what is contiguous, swizzled. fp32 is
//          rounded to TF32 where it is read. d by a map where its rows start on
//          16 bytes, else element by element.
// Tiles    64 kGroups x kCols a block, one warpgroup for 64 rows; k in chunks
//          of 128 bytes through a ring that one more warp fills. No split of k.
// Overlap  a block fetches its part of `right` while the kernel in front ends:
//          layers of a chain follow each other without a gap.
// Sums     fp32, in the tensor core, in the order of k: always the same bits.
// Assumes  (checked in src/plan/tensor_gemm.rs) 128 kGroups + 32 threads,
//          extents below 2^31, operands and their rows 16-byte aligned,
//          kCols >= 64 for "t".
// Targets  sm_90a

#include "common/bulk_copy.cuh"
#include "common/convert.cuh"
#include "common/ring.cuh"
#include "common/tensor_tile.cuh"
#include "common/wgmma.cuh"
#include "params.h"

namespace hypatia {

template <int kGroups, int kCols>
struct Tile {
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kLeftBytes = kRows * 128, kRightBytes = kCols * 128;
  static constexpr int kStageBytes = kLeftBytes + kRightBytes;
  // Small tiles leave room for a second block, of the layer behind.
  static constexpr bool kShares = kGroups == 1 && kCols < 128;
  static constexpr int kStages = (kShares ? 96 : 200) * 1024 / kStageBytes;
  static constexpr int kThreads = 128 * kGroups + 32;
  using Stages = Ring<kStages, kStageBytes>;
};

template <typename T, int kGroups, int kCols, bool kLeftT, bool kRightT>
__device__ void fetch(const TensorMap& left, const TensorMap& right,
                      const TensorGemmParams& p,
                      const typename Tile<kGroups, kCols>::Stages& ring,
                      int row, int col) {
  using S = Tile<kGroups, kCols>;
  const int chunks = (p.k + kRun<T> - 1) / kRun<T>;
  const auto fetch_right = [&](int stage, int c) {
    const unsigned to = ring.data(stage) + S::kLeftBytes;
    const unsigned full = ring.full(stage);
    barrier_expect(full, S::kStageBytes);
    if (!kRightT) {
      copy_box(to, right, c * kRun<T>, col, full);
    } else {
      for (int i = 0; i < kCols / 64; i++) {
        copy_box(to + i * 8192, right, col + 64 * i, c * kRun<T>, full);
      }
    }
  };
  const auto fetch_left = [&](int stage, int c) {
    const unsigned to = ring.data(stage), full = ring.full(stage);
    if (!kLeftT) {
      copy_box(to, left, c * kRun<T>, row, full);
    } else {
      for (int i = 0; i < kGroups; i++) {
        copy_box(to + i * 8192, left, row + 64 * i, c * kRun<T>, full);
      }
    }
  };
  const int early = p.early ? min(S::kStages, chunks) : 0;
  for (int c = 0; c < early; c++) fetch_right(c, c);
  wait_for_grid_in_front();
  typename S::Stages::Turn turn;
  for (int c = 0; c < chunks; c++, turn.next()) {
    if (c >= early) {
      barrier_wait(ring.empty(turn.stage), turn.parity ^ 1);
      fetch_right(turn.stage, c);
    }
    fetch_left(turn.stage, c);
  }
}

// Waits for the 128 threads of a warpgroup, or for both.
template <int kGroups>
__device__ inline void meet_all() {
  asm volatile("bar.sync 1, %0;" ::"n"(128 * kGroups) : "memory");
}

__device__ inline void meet(int group) {
  if (group == 0) {
    asm volatile("bar.sync 2, 128;" ::: "memory");
  } else {
    asm volatile("bar.sync 3, 128;" ::: "memory");
  }
}

template <typename T, int kCols>
__device__ void store(const TensorMap& d, const TensorGemmParams& p,
                      unsigned results, int group, int row, int col) {
  const int thread = threadIdx.x % 128;
  if (p.by_map) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    meet(group);
    if (thread != 0) return;
    for (int i = 0; i * kRun<T> < kCols; i++) {
      store_box(d, col + kRun<T> * i, row, results + i * 8192);
    }
    finish_stores();
    return;
  }
  meet(group);
  for (int i = thread; i < 64 * kCols; i += 128) {
    const int r = i / kCols, c = i % kCols;
    constexpr int kPiece = 16 / sizeof(T);
    const unsigned from = results + result_at<kCols * sizeof(T)>(r, c / kPiece);
    const T x = load_shared<T>(from + c % kPiece * sizeof(T));
    if (row + r < p.m && col + c < p.n) {
      static_cast<T*>(p.d)[(row + r) * 1ll * p.n + col + c] = x;
    }
  }
}

template <typename T, int kGroups, int kCols, bool kLeftT, bool kRightT>
__device__ void tensor_gemm(const TensorMap& left, const TensorMap& right,
                            const TensorMap& d, const TensorGemmParams& p) {
  using S = Tile<kGroups, kCols>;
  extern __shared__ char shared[];
  __shared__ float bias[kCols];
  const typename S::Stages ring{(shared_address(shared) + 1023) & ~1023u};
  const int row = blockIdx.x % p.row_tiles * S::kRows;
  const int col = blockIdx.x / p.row_tiles * kCols;
  if (threadIdx.x == 0) {
    prefetch_map(left);
    prefetch_map(right);
    ring.make(4 * kGroups);  // computing warps
  }
  if (threadIdx.x < kCols) {
    const int at = col + threadIdx.x;
    const T* from = static_cast<const T*>(p.bias);
    bias[threadIdx.x] = from && at < p.n ? to_float(from[at]) : 0.0f;
  }
  __syncthreads();
  let_next_grid_start();
  if (threadIdx.x >= 128 * kGroups) {
    if (threadIdx.x == 128 * kGroups) {
      fetch<T, kGroups, kCols, kLeftT, kRightT>(left, right, p, ring, row, col);
    }
    return;
  }
  const int lane = threadIdx.x % 32;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  float sums[kCols / 2];
#pragma unroll
  for (int i = 0; i < kCols / 2; i++) sums[i] = 0.0f;
  wgmma_pin(sums);
  const int chunks = (p.k + kRun<T> - 1) / kRun<T>;
  typename S::Stages::Turn turn;
  int before = 0;
  for (int c = 0; c < chunks; c++, turn.next()) {
    barrier_wait(ring.full(turn.stage), turn.parity);
    const unsigned at = __shfl_sync(~0u, ring.data(turn.stage), 0);
    const unsigned long long a = wgmma_swizzled(at + group * 8192, 8192);
    const unsigned long long b = wgmma_swizzled(at + S::kLeftBytes, 8192);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; s++) {  // 32 bytes of k, or 16 rows of it
      wgmma<kLeftT, kRightT>(sums, Tag<T>(), a + s * (kLeftT ? 128 : 2),
                             b + s * (kRightT ? 128 : 2));
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (c > 0 && lane == 0) barrier_arrive(ring.empty(before));
    before = turn.stage;
  }
  wgmma_wait<0>();
  wgmma_pin(sums);
  meet_all<kGroups>();  // nobody reads the ring any more
  constexpr int kRowBytes = kCols * sizeof(T) < 128 ? 128 : kCols * sizeof(T);
  const unsigned results = ring.base + group * 64 * kRowBytes;
#pragma unroll
  for (int i = 0; i < kCols / 2; i++) {
    sums[i] += bias[i / 4 * 8 + 2 * (lane % 4) + i % 2];
  }
  Results<T>::put(results, sums, p.relu);
  store<T, kCols>(d, p, results, group, row + 64 * group, col);
}

}  // namespace hypatia

#define HYPATIA_TENSOR_GEMM(name, T, groups, cols, layout, left_t, right_t)    \
  extern "C" __global__ void __launch_bounds__(                                \
      hypatia::Tile<groups, cols>::kThreads)                                   \
      tensor_gemm_##name##_##groups##x##cols##_##layout(                       \
          const __grid_constant__ hypatia::TensorMap left,                     \
          const __grid_constant__ hypatia::TensorMap right,                    \
          const __grid_constant__ hypatia::TensorMap d,                        \
          const __grid_constant__ TensorGemmParams p) {                        \
    hypatia::tensor_gemm<T, groups, cols, left_t, right_t>(left, right, d, p); \
  }

#define HYPATIA_FORWARD_GEMMS(name, T)                   \
  HYPATIA_TENSOR_GEMM(name, T, 1, 32, nn, false, false)  \
  HYPATIA_TENSOR_GEMM(name, T, 1, 64, nn, false, false)  \
  HYPATIA_TENSOR_GEMM(name, T, 1, 128, nn, false, false) \
  HYPATIA_TENSOR_GEMM(name, T, 2, 64, nn, false, false)  \
  HYPATIA_TENSOR_GEMM(name, T, 2, 128, nn, false, false)

#define HYPATIA_TENSOR_GEMMS(name, T)                   \
  HYPATIA_FORWARD_GEMMS(name, T)                        \
  HYPATIA_TENSOR_GEMM(name, T, 1, 64, nt, false, true)  \
  HYPATIA_TENSOR_GEMM(name, T, 1, 128, nt, false, true) \
  HYPATIA_TENSOR_GEMM(name, T, 2, 128, nt, false, true) \
  HYPATIA_TENSOR_GEMM(name, T, 1, 64, tt, true, true)   \
  HYPATIA_TENSOR_GEMM(name, T, 1, 128, tt, true, true)  \
  HYPATIA_TENSOR_GEMM(name, T, 2, 128, tt, true, true)

HYPATIA_TENSOR_GEMMS(bf16, __nv_bfloat16)
HYPATIA_TENSOR_GEMMS(f16, __half)
HYPATIA_FORWARD_GEMMS(tf32, float)
