// Layers of relu(x . weightT + bias) in turn, in bf16, fp16 or TF32, in one
// launch; each reads the results of the one before from global memory.
//
// Shapes   activations [m, k] by map 0, then [m, n] of each layer by the next
//          map; weights [n, k]; bias [n] or null. The last result goes without
//          a map where its rows do not start on 16 bytes.
// Layout   maps in boxes of 128 bytes (swizzled): 64 rows of an activation,
//          half as many rows of a weight as a tile has columns. fp32 is rounded
//          to TF32 where it is read.
// Tiles    128 rows by 128 or 64 columns, two warpgroups; k in chunks of 128
//          bytes through a ring that one warp fills; one more warp for each
//          group stores its results. Clusters of two blocks take pairs of tiles
//          below each other, which read the same weights: each fetches half of
//          them for both. Rows of tiles one after the other.
// Order    a tile begins when all tiles of its rows in the layer before are
//          stored: `done` counts them. All blocks run at once (a cooperative
//          launch), so that waiting ends.
// Overlap  the weights of a tile are fetched while it waits.
// Sums     fp32 from the bias on, in the tensor core, in the order of k: the
//          same bits every time.
// Assumes  (checked in src/plan/tensor_chain.rs) 352 threads, extents below
//          2^31, every matrix but the last result and its rows 16-byte aligned,
//          an even number of rows of tiles.
// Targets  sm_90a

#include "common/chain_maps.cuh"
#include "common/convert.cuh"
#include "common/ring.cuh"
#include "common/tensor_tile.cuh"
#include "common/wgmma.cuh"
#include "params.h"

namespace hypatia {

constexpr int kPair = 2;  // blocks of a cluster
constexpr int kGroups = 2, kGroupRows = 64, kGroupBytes = kGroupRows * 128;
constexpr int kRows = kGroups * kGroupRows, kLeftBytes = kGroups * kGroupBytes;
constexpr int kMaxCols = 128;
template <typename T>
constexpr int kResultBytes = kGroupRows * kMaxCols * sizeof(T);  // of a group
template <typename T>
constexpr int kStages = sizeof(T) == 2 ? 6 : 5;
template <typename T>
using Stages = Ring<kStages<T>, kLeftBytes + kMaxCols * 128>;
constexpr int kComputing = 4 * kGroups;  // warps

// Where a block is.
struct Tile {
  const TensorChainParams& p;
  int layer = 0, index = blockIdx.x / kPair, row, col;

  __device__ explicit Tile(const TensorChainParams& params) : p(params) {
    settle();
  }
  __device__ bool exists() const { return layer < p.layers; }
  __device__ int chunks(int depth) const {
    return (p.layer[layer].k + depth - 1) / depth;
  }
  __device__ void next() {
    index += gridDim.x / kPair;
    settle();
  }
  // To the next layer as often as this one has no such tile.
  __device__ void settle() {
    for (; layer < p.layers; layer++, index = blockIdx.x / kPair) {
      const int cols = p.layer[layer].col_tiles;
      if (index >= cols * (p.row_tiles / kPair)) continue;
      row = index / cols;
      col = (index - row * cols) * p.layer[layer].cols;
      row = row * kPair + blockIdx.x % kPair;
      return;
    }
  }
};

// Of a row of tiles: how many halves are stored of a layer.
__device__ inline unsigned* done(const TensorChainParams& p, int layer,
                                 int row) {
  return p.done + layer * p.row_tiles + row;
}

__device__ inline void wait_for(const unsigned* count, unsigned all) {
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(seen)
                 : "l"(count)
                 : "memory");
  } while (seen != all);
  // What others stored is read by the copy engine.
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

template <typename T>
__device__ void fetch(const ChainMaps& maps, const TensorChainParams& p,
                      const Stages<T>& ring) {
  using Turn = typename Stages<T>::Turn;
  const int rank = cluster_rank();
  Turn turn;
  for (Tile tile(p); tile.exists(); tile.next()) {
    const TensorChainLayer& layer = p.layer[tile.layer];
    const int chunks = tile.chunks(kRun<T>);
    const TensorMap& left = maps.activation[tile.layer];
    const TensorMap& right = maps.weight[tile.layer];
    const unsigned bytes = kLeftBytes + layer.cols * 128;
    const int part = layer.cols / kPair;
    const auto fetch_right = [&](const Turn& to, int c) {
      barrier_wait(ring.empty(to.stage), to.parity ^ 1);
      const unsigned full = ring.full(to.stage);
      barrier_expect(full, bytes);
      const unsigned at = ring.data(to.stage) + kLeftBytes + rank * part * 128;
      copy_box_to(at, right, c * kRun<T>, tile.col + rank * part, full,
                  (1 << kPair) - 1);
    };
    const int early = min(kStages<T>, chunks);
    Turn ahead = turn;
    for (int c = 0; c < early; c++, ahead.next()) fetch_right(ahead, c);
    if (tile.layer > 0) {
      wait_for(done(p, tile.layer - 1, tile.row),
               p.layer[tile.layer - 1].col_tiles * kGroups);
    }
    for (int c = 0; c < chunks; c++, turn.next()) {
      if (c >= early) fetch_right(turn, c);
      for (int group = 0; group < kGroups; group++) {
        copy_box(ring.data(turn.stage) + group * kGroupBytes, left, c * kRun<T>,
                 tile.row * kRows + group * kGroupRows, ring.full(turn.stage));
      }
    }
  }
  // Nobody waits any more once all have come here.
  unsigned* ended = done(p, p.layers - 1, 0);
  __threadfence();
  if (atomicAdd(ended, 1) + 1 < gridDim.x) return;
  for (unsigned* at = p.done; at <= ended; at++) *at = 0;
}

// Between the computing warps of a group and its storing one, which takes part
// with 32 threads.
__device__ inline void say_results_there(int group) {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("bar.arrive %0, 160;" ::"r"(1 + group) : "memory");
}
__device__ inline void wait_results_there(int group) {
  asm volatile("bar.sync %0, 160;" ::"r"(1 + group) : "memory");
}
__device__ inline void say_results_read(int group) {
  asm volatile("bar.arrive %0, 160;" ::"r"(3 + group) : "memory");
}
__device__ inline void wait_results_read(int group) {
  asm volatile("bar.sync %0, 160;" ::"r"(3 + group) : "memory");
}
// Among the computing warps of a group.
__device__ inline void meet(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(5 + group) : "memory");
}

template <typename T>
__device__ void store(const ChainMaps& maps, const TensorChainParams& p,
                      unsigned results, int group) {
  say_results_read(group);
  for (Tile tile(p); tile.exists(); tile.next()) {
    const bool last = tile.layer + 1 == p.layers;
    wait_results_there(group);
    if ((!last || p.by_map) && threadIdx.x % 32 == 0) {
      const TensorMap& map = maps.activation[tile.layer + 1];
      const int row = tile.row * kRows + group * kGroupRows;
      for (int i = 0; i < p.layer[tile.layer].cols / kRun<T>; i++) {
        store_box(map, tile.col + kRun<T> * i, row, results + i * kGroupBytes);
      }
      if (last) {
        finish_stores();
      } else {
        complete_stores();
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(
                         done(p, tile.layer, tile.row))
                     : "memory");
      }
    }
    __syncwarp();
    say_results_read(group);
  }
}

template <typename T>
__device__ void store_elements(const Tile& tile, const TensorChainParams& p,
                               unsigned results, int group) {
  const TensorChainLayer& layer = p.layer[tile.layer];
  const int first = tile.row * kRows + group * kGroupRows;
  meet(group);
  for (int i = threadIdx.x % 128; i < kGroupRows * layer.cols; i += 128) {
    const int r = i / layer.cols, c = i % layer.cols;
    constexpr int kPiece = 16 / sizeof(T);
    const unsigned from = results + result_at<128>(r, c / kPiece);
    const T x = load_shared<T>(from + c % kPiece * sizeof(T));
    const int row = first + r, col = tile.col + c;
    if (row < p.m && col < layer.n) {
      static_cast<T*>(p.d)[row * 1ll * layer.n + col] = x;
    }
  }
}

template <typename T, int kCols>
__device__ void compute(const Tile& tile, const TensorChainLayer& layer,
                        const Stages<T>& ring, typename Stages<T>::Turn& turn,
                        float* bias, unsigned results, int group) {
  const int lane = threadIdx.x % 32, thread = threadIdx.x % 128;
  if (thread < kCols) {
    const T* from = static_cast<const T*>(layer.bias);
    const int at = tile.col + thread;
    bias[thread] = from && at < layer.n ? to_float(from[at]) : 0.0f;
  }
  meet(group);
  float sums[kCols / 2];
#pragma unroll
  for (int i = 0; i < kCols / 2; i++) {
    sums[i] = bias[i / 4 * 8 + 2 * (lane % 4) + i % 2];
  }
  wgmma_pin(sums);
  // Both blocks of a pair fill a stage.
  const auto leave = [&](int stage) {
    if (lane >= kPair) return;
    barrier_arrive_remote(map_to_rank(ring.empty(stage), lane));
  };
  const int chunks = tile.chunks(kRun<T>);
  int before = 0;
  for (int c = 0; c < chunks; c++, turn.next()) {
    barrier_wait(ring.full(turn.stage), turn.parity);
    const unsigned at = __shfl_sync(~0u, ring.data(turn.stage), 0);
    const unsigned long long a = wgmma_swizzled(at + group * kGroupBytes, 8192);
    const unsigned long long b = wgmma_swizzled(at + kLeftBytes, 8192);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; s++) {
      wgmma<false, false>(sums, Tag<T>(), a + s * 2, b + s * 2);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (c > 0) leave(before);
    before = turn.stage;
  }
  wgmma_wait<0>();
  wgmma_pin(sums);
  leave(before);
  wait_results_read(group);
  Results<T>::put(results, sums, layer.relu);
}

template <typename T>
__device__ void tensor_chain(const ChainMaps& maps,
                             const TensorChainParams& p) {
  extern __shared__ char shared[];
  __shared__ float bias[kGroups][kMaxCols];
  const unsigned results = (shared_address(shared) + 1023) & ~1023u;
  const Stages<T> ring(results + kGroups * kResultBytes<T>);
  if (threadIdx.x == 0) {
    prefetch_map(maps.weight[0]);
    prefetch_map(maps.activation[0]);
    ring.make(kComputing * kPair);
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (warp > kComputing) {
    const int group = warp - kComputing - 1;
    store<T>(maps, p, results + group * kResultBytes<T>, group);
  } else if (warp == kComputing) {
    if (threadIdx.x % 32 == 0) fetch<T>(maps, p, ring);
  } else {
    const int group = warp / 4;
    const unsigned mine = results + group * kResultBytes<T>;
    typename Stages<T>::Turn turn;
    for (Tile tile(p); tile.exists(); tile.next()) {
      const TensorChainLayer& layer = p.layer[tile.layer];
      if (layer.cols == 128) {
        compute<T, 128>(tile, layer, ring, turn, bias[group], mine, group);
      } else {
        compute<T, 64>(tile, layer, ring, turn, bias[group], mine, group);
      }
      say_results_there(group);
      if (tile.layer + 1 == p.layers && !p.by_map) {
        store_elements<T>(tile, p, mine, group);
      }
    }
  }
  // The other block may still write into this one, or arrive.
  __syncthreads();
  cluster_arrive();
  cluster_wait();
}

}  // namespace hypatia

// For `done` of launches in captured graphs, which may run beside one another:
// each has its own, and need not clear it first.
extern "C" {
__device__ unsigned tensor_chain_counts[kTensorChainSlots][kTensorChainCounts];
}

#define HYPATIA_TENSOR_CHAIN(name, T)                                      \
  extern "C" __global__ void __launch_bounds__(352, 1)                     \
      tensor_chain_##name(const __grid_constant__ hypatia::ChainMaps maps, \
                          const __grid_constant__ TensorChainParams p) {   \
    hypatia::tensor_chain<T>(maps, p);                                     \
  }

HYPATIA_TENSOR_CHAIN(bf16, __nv_bfloat16)
HYPATIA_TENSOR_CHAIN(f16, __half)
HYPATIA_TENSOR_CHAIN(tf32, float)
