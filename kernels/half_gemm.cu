// d = left . rightT [+ bias] [relu] in bf16 or fp16, sums in fp32.
//
// Shapes   left [m, k], right [n, k], bias [n] or none, d [m, n] dense.
// Layout   left and right by tensor maps, with k contiguous ("n") or the other
//          dimension ("t", in the kernel's name: left, then right); boxes of 64
//          elements of what is contiguous, swizzled in 128 bytes. d by a map
//          where its rows start on 16 bytes, else element by element.
// Tiles    64 kGroups x kCols a block, one warpgroup for 64 rows; k in chunks
// of
//          64 through a ring that one more warp fills. No split of k.
// Overlap  a block fetches its part of `right` while the kernel in front ends:
//          layers of a chain follow each other without a gap.
// Sums     fp32, in the tensor core, in the order of k: the same bits every
// time. Assumes  (checked in src/plan/half.rs) 128 kGroups + 32 threads,
// extents below
//          2^31, operands and their rows 16-byte aligned, kCols >= 64 for "t".
// Targets  sm_90a

#include "common/bulk_copy.cuh"
#include "common/convert.cuh"
#include "common/half_tile.cuh"
#include "common/ring.cuh"
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

template <int kGroups, int kCols, bool kLeftT, bool kRightT>
__device__ void fetch(const TensorMap& left, const TensorMap& right,
                      const HalfGemmParams& p,
                      const typename Tile<kGroups, kCols>::Stages& ring,
                      int row, int col) {
  using S = Tile<kGroups, kCols>;
  const int chunks = (p.k + kDepth - 1) / kDepth;
  const auto fetch_right = [&](int stage, int c) {
    const unsigned to = ring.data(stage) + S::kLeftBytes;
    const unsigned full = ring.full(stage);
    barrier_expect(full, S::kStageBytes);
    if (!kRightT) {
      copy_box(to, right, c * kDepth, col, full);
    } else {
      for (int i = 0; i < kCols / 64; i++) {
        copy_box(to + i * 8192, right, col + 64 * i, c * kDepth, full);
      }
    }
  };
  const auto fetch_left = [&](int stage, int c) {
    const unsigned to = ring.data(stage), full = ring.full(stage);
    if (!kLeftT) {
      copy_box(to, left, c * kDepth, row, full);
    } else {
      for (int i = 0; i < kGroups; i++) {
        copy_box(to + i * 8192, left, row + 64 * i, c * kDepth, full);
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

// Where 8 columns `piece` of row `row` of a warpgroup's results lie: blocks of
// 64 rows by 64 columns, or of 32, swizzled for the copy engine.
template <int kCols>
__device__ inline unsigned result_at(int row, int piece) {
  if (kCols < 64) return row * 64 + ((piece ^ (row / 2 & 3)) << 4);
  return piece / 8 * 8192 + row * 128 + ((piece % 8 ^ (row & 7)) << 4);
}

template <typename T, int kCols>
__device__ void store(const TensorMap& d, const HalfGemmParams& p,
                      unsigned results, int group, int row, int col) {
  const int thread = threadIdx.x % 128;
  if (p.by_map) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    meet(group);
    if (thread != 0) return;
    for (int i = 0; i < (kCols + 63) / 64; i++) {
      store_box(d, col + 64 * i, row, results + i * 8192);
    }
    finish_stores();
    return;
  }
  meet(group);
  for (int i = thread; i < 64 * kCols; i += 128) {
    const int r = i / kCols, c = i % kCols;
    unsigned short bits;
    asm volatile("ld.shared.u16 %0, [%1];"
                 : "=h"(bits)
                 : "r"(results + result_at<kCols>(r, c / 8) + c % 8 * 2)
                 : "memory");
    if (row + r < p.m && col + c < p.n) {
      static_cast<unsigned short*>(p.d)[(row + r) * 1ll * p.n + col + c] = bits;
    }
  }
}

template <typename T, int kGroups, int kCols, bool kLeftT, bool kRightT>
__device__ void half_gemm(const TensorMap& left, const TensorMap& right,
                          const TensorMap& d, const HalfGemmParams& p) {
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
      fetch<kGroups, kCols, kLeftT, kRightT>(left, right, p, ring, row, col);
    }
    return;
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  float sums[kCols / 2];
#pragma unroll
  for (int i = 0; i < kCols / 2; i++) sums[i] = 0.0f;
  wgmma_pin(sums);
  const int chunks = (p.k + kDepth - 1) / kDepth;
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
  const unsigned results =
      ring.base + group * 64 * (kCols < 64 ? 64 : kCols) * 2;
#pragma unroll
  for (int j = 0; j < kCols / 16; j++) {  // four blocks of 8 x 8 at a time
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int right_half = i / 2, lower = i % 2;
      const int at = 8 * j + 4 * right_half + 2 * lower;
      const int c = 16 * j + 8 * right_half + 2 * (lane % 4);
      float x = sums[at] + bias[c], y = sums[at + 1] + bias[c + 1];
      if (p.relu && x < 0.0f) x = 0.0f;
      if (p.relu && y < 0.0f) y = 0.0f;
      words[i] = pair_of<T>(x, y);
    }
    const unsigned to =
        results + result_at<kCols>(16 * warp + lane % 16, 2 * j + lane / 16);
    store_blocks(to, words);
  }
  store<T, kCols>(d, p, results, group, row + 64 * group, col);
}

}  // namespace hypatia

#define HYPATIA_HALF_GEMM(name, T, groups, cols, layout, left_t, right_t)    \
  extern "C" __global__ void __launch_bounds__(                              \
      hypatia::Tile<groups, cols>::kThreads)                                 \
      half_gemm_##name##_##groups##x##cols##_##layout(                       \
          const __grid_constant__ hypatia::TensorMap left,                   \
          const __grid_constant__ hypatia::TensorMap right,                  \
          const __grid_constant__ hypatia::TensorMap d,                      \
          const __grid_constant__ HalfGemmParams p) {                        \
    hypatia::half_gemm<T, groups, cols, left_t, right_t>(left, right, d, p); \
  }

#define HYPATIA_HALF_GEMMS(name, T)                    \
  HYPATIA_HALF_GEMM(name, T, 1, 32, nn, false, false)  \
  HYPATIA_HALF_GEMM(name, T, 1, 64, nn, false, false)  \
  HYPATIA_HALF_GEMM(name, T, 1, 128, nn, false, false) \
  HYPATIA_HALF_GEMM(name, T, 2, 64, nn, false, false)  \
  HYPATIA_HALF_GEMM(name, T, 2, 128, nn, false, false) \
  HYPATIA_HALF_GEMM(name, T, 1, 64, nt, false, true)   \
  HYPATIA_HALF_GEMM(name, T, 1, 128, nt, false, true)  \
  HYPATIA_HALF_GEMM(name, T, 2, 128, nt, false, true)  \
  HYPATIA_HALF_GEMM(name, T, 1, 64, tt, true, true)    \
  HYPATIA_HALF_GEMM(name, T, 1, 128, tt, true, true)   \
  HYPATIA_HALF_GEMM(name, T, 2, 128, tt, true, true)

HYPATIA_HALF_GEMMS(bf16, __nv_bfloat16)
HYPATIA_HALF_GEMMS(f16, __half)
