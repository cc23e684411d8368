// What a block of cluster_mlp.cu or cluster_fp32.cu has in shared memory, the
// two warps that fill and empty it (one fetches all that is multiplied, one
// sends results), and what computing warps do with biases and results that the
// copy engine cannot store.
#pragma once

#include "../params.h"
#include "chain_maps.cuh"
#include "convert.cuh"
#include "ring.cuh"
#include "tensor_tile.cuh"

namespace hypatia {

constexpr int kStages = 12;  // at most
constexpr int kDepth = 2;    // chunks of k, 128 bytes each, of a stage

struct Barriers {
  unsigned base;
  __device__ unsigned full(int stage) const { return base + 8 * stage; }
  __device__ unsigned empty(int stage) const { return full(kStages + stage); }
  // Of the input of a layer behind the first.
  __device__ unsigned input(int layer) const {
    return full(2 * kStages + layer);
  }
  static constexpr int kBytes = 1024;
};
static_assert(8 * (2 * kStages + kChainLayers) <= Barriers::kBytes, "");

// Named barriers: these are of four computing warps and the one that sends.
enum { kResultThere = 1, kResultRead, kOthers };
template <int kNumber, int kThreads = 160>
__device__ inline void say() {
  asm volatile("bar.arrive %0, %1;" ::"n"(kNumber), "n"(kThreads) : "memory");
}
template <int kNumber, int kThreads = 160>
__device__ inline void hear() {
  asm volatile("bar.sync %0, %1;" ::"n"(kNumber), "n"(kThreads) : "memory");
}

// Tiles of kCols columns by kRows rows.
template <typename T, int kRows, int kCols>
struct Block {
  const ChainMaps& maps;
  const ClusterMlpParams& p;
  const Barriers barriers;
  const unsigned results, even, odd, ring;
  const int rank = cluster_rank(), blocks = cluster_size();
  const int row = cluster_index() * kRows;

  static constexpr int kChunkBytes = kCols * 128;
  static constexpr int kStageBytes = kDepth * kChunkBytes;
  static constexpr int kBlockBytes = kRows * 128;
  static constexpr int kBoxes = kCols / kRun<T>;  // of a tile
  static constexpr int kResultBytes = kBoxes * kBlockBytes;

  __device__ Block(const ChainMaps& maps, const ClusterMlpParams& p,
                   unsigned base)
      : maps(maps),
        p(p),
        barriers{base},
        results(base + Barriers::kBytes),
        even(results + kResultBytes),
        odd(even + p.even_bytes),
        ring(odd + p.odd_bytes) {}

  __device__ unsigned input(int layer) const { return layer & 1 ? odd : even; }

  // Row and column in a tile of sum `i` of a thread, as accumulators lie; warps
  // have 16 columns each.
  static __device__ int row_of(int i) {
    return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
  }
  static __device__ int col_of(int i, int warp) {
    return 16 * warp + threadIdx.x % 32 / 4 + i / 2 % 2 * 8;
  }

  // Of the two columns of a thread.
  struct Bias {
    T at[2];
  };
  __device__ Bias bias_of(int l, int tile, int warp) const {
    const ClusterMlpLayer& layer = p.layer[l];
    Bias bias = {from_float<T>(0), from_float<T>(0)};
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int col = tile * kCols + col_of(2 * i, warp);
      if (layer.bias && warp < kCols / 16 && col < layer.n) {
        bias.at[i] = static_cast<const T*>(layer.bias)[col];
      }
    }
    return bias;
  }

  // The last result where the copy engine cannot store it.
  __device__ void store_elements(const float (&sums)[kRows / 2], int tile,
                                 int warp, bool relu) const {
    const int n = p.layer[p.layers - 1].n;
#pragma unroll
    for (int i = 0; i < kRows / 2; i++) {
      const int r = row + row_of(i), col = tile * kCols + col_of(i, warp);
      // Not fmaxf: a NaN must stay one.
      const float x = relu && sums[i] < 0.0f ? 0.0f : sums[i];
      if (r < p.m && col < n) {
        static_cast<T*>(p.d)[r * 1ll * n + col] = from_float<T>(x);
      }
    }
  }

  // By one warp: barriers of inputs, which say at once what they wait for.
  __device__ void make_inputs() const {
    if (!elected()) return;
#pragma unroll 1
    for (int l = 1; l < p.layers; l++) {
      barrier_init(barriers.input(l), 1);
      barrier_expect(barriers.input(l), p.layer[l - 1].tiles * kResultBytes);
    }
    barrier_init_fence();
  }

  // By one of `warps`: its part of the ring's barriers, but for the first. A
  // stage is empty when `readers` have said so.
  __device__ void make_stages(int warp, int warps, int readers) const {
    if (!elected()) return;
#pragma unroll 1
    for (int s = warp; s < p.stages; s += warps) {
      if (s > 0) barrier_init(barriers.full(s), 1);
      barrier_init(barriers.empty(s), readers);
    }
    barrier_init_fence();
  }

  // By one thread: a stage of the ring, from chunk `c` of a tile's k on. The
  // input of layer 0 comes with it, to block `at` of those it goes round in.
  __device__ void fetch(int stage, int l, int tile, int c, int at) const {
    const int depth = min(kDepth, p.layer[l].chunks - c);
    const unsigned full = barriers.full(stage);
    const unsigned to = ring + stage * kStageBytes;
    barrier_expect(full, depth * (kChunkBytes + (l == 0 ? kBlockBytes : 0)));
#pragma unroll 1
    for (int i = 0; i < depth; i++) {
      const int k = (c + i) * kRun<T>;
      copy_box(to + i * kChunkBytes, maps.weight[l], k, tile * kCols, full);
      if (l == 0) {
        copy_box(even + (at + i) * kBlockBytes, maps.activation[0], k, row,
                 full);
      }
    }
  }

  // By one warp: the first stage, which waits for no other barrier.
  __device__ void fetch_first() const {
    if (!elected()) return;
    barrier_init(barriers.full(0), 1);
    barrier_init_fence();
    if (rank < p.layer[0].tiles) fetch(0, 0, rank, 0, 0);
  }

  // By one warp: everything else that the block multiplies, in order.
  __device__ void fetch_all() const {
    const bool one = elected();
    Turn turn;
    int free = p.stages;  // that need no waiting
    int at = 0;
#pragma unroll 1
    for (int l = 0; l < p.layers; l++) {
      const int chunks = p.layer[l].chunks, tiles = p.layer[l].tiles;
#pragma unroll 1
      for (int tile = rank; tile < tiles; tile += blocks) {
#pragma unroll 1
        for (int c = 0; c < chunks; c += kDepth) {
          if (free == 0) {
            barrier_wait(barriers.empty(turn.stage), turn.parity ^ 1);
          } else {
            free--;
          }
          const bool first = l == 0 && tile == rank && c == 0;
          if (one && !first) fetch(turn.stage, l, tile, c, at);
          __syncwarp();
          at = at + kDepth == p.even_blocks ? 0 : at + kDepth;
          turn.next(p.stages);
        }
      }
    }
  }

  // By one warp: sends tiles of results to the cluster as input of the layer
  // behind, and the last ones to memory.
  __device__ void send() const {
    const bool one = elected();
    if (one) {
#pragma unroll 1
      for (int l = 1; l < p.layers; l++) {
        prefetch_map(maps.activation[l]);
        prefetch_map(maps.weight[l]);
      }
    }
    const unsigned short all = (1 << blocks) - 1;
#pragma unroll 1
    for (int l = 0; l < p.layers; l++) {
      const bool last = l + 1 == p.layers;
      if (last && !p.by_map) return;
      const TensorMap& map = maps.activation[l + 1];
#pragma unroll 1
      for (int tile = rank; tile < p.layer[l].tiles; tile += blocks) {
        const int col = tile * kCols;
        const unsigned to = input(l + 1) + col / kRun<T> * kBlockBytes;
        const unsigned barrier = barriers.input(l + 1);
        hear<kResultThere>();
        if (one) {
          store_box(map, col, row, results);
          if (kBoxes == 2) {
            store_box(map, col + kRun<T>, row, results + kBlockBytes);
          }
          if (last) {
            finish_stores();
          } else {
            complete_stores();
            asm volatile("fence.proxy.async.global;" ::: "memory");
            copy_box_to(to, map, col, row, barrier, all);
            if (kBoxes == 2) {
              copy_box_to(to + kBlockBytes, map, col + kRun<T>, row, barrier,
                          all);
            }
          }
        }
        __syncwarp();
        say<kResultRead>();
      }
    }
  }
};

}  // namespace hypatia
