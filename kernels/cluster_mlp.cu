// Layers of relu(x . weightT + bias) in turn, in bf16, fp16 or TF32, in one
// launch of clusters that each do all layers of a few rows.
//
// Shapes   activations [m, k] by map 0, then [m, n] of each layer by the next
//          map; weights [n, k]; bias [n] or null. The last result goes without
//          a map where its rows do not start on 16 bytes.
// Layout   maps in boxes of 128 bytes (swizzled): kRows rows of an activation,
//          64 rows of a weight. fp32 is rounded to TF32 where it is read.
// Tiles    a cluster owns kRows rows. Of each layer a block computes every
//          S-th tile of 64 columns, with the weight as the tensor cores' left
//          operand: four warps, one more that fetches, one that sends.
// Weights  come through a ring, in stages of 256 bytes of k. The warp that
//          fetches runs ahead across layers and waits for nobody but the ring.
//          The input comes with the weights of layer 0.
// Between  layers a tile goes to global memory, and the copy engine reads it
//          from there into all blocks of the cluster at once: faster than from
//          block to block (docs/small_mlp.md). Two buffers need no further
//          barrier: a block sends its tile of layer l with all of layer l - 1
//          received, which others send only after reading what it overwrites.
// Sums     fp32 from the bias on, in the tensor core, in the order of k: the
//          same bits each time.
// Assumes  (checked in src/plan/cluster_mlp.rs) 192 threads, extents below
//          2^31, at most 16 blocks a cluster, every matrix but the last result
//          and its rows 16-byte aligned, four stages or as many as there are.
// Speed    one warp a scheduler hides nothing: what counts is how few
//          instructions are between two products, and that they lie in a row.
// Targets  sm_90a

#include "common/cluster_block.cuh"
#include "common/turned_tile.cuh"
#include "common/wgmma.cuh"
#include "params.h"

namespace hypatia {

// With so many stages a layer's are awaited in larger numbers; with fewer, a
// stage is free again sooner that way.
constexpr int kPlenty = 7;

constexpr int kCols = 64;                                   // of a tile
constexpr int kComputing = 4, kFetching = 4, kSending = 5;  // warps

// The warps that compute, in a block that others fill and empty.
template <typename T, int kRows>
struct Computing : Block<T, kRows, kCols> {
  using Base = Block<T, kRows, kCols>;
  using Base::barriers, Base::blocks, Base::even, Base::kBlockBytes,
      Base::kChunkBytes, Base::kStageBytes, Base::p, Base::rank, Base::results,
      Base::ring, Base::row;

  using Base::Base;

  // What the tensor cores read: kCount stages, and as much of the input. As a
  // reduction, for the compiler to know that all threads have the same.
  template <int kCount>
  struct Operands {
    unsigned long long w[kCount], x;
    __device__ Operands(const unsigned (&from)[kCount], unsigned input)
        : x(wgmma_swizzled(__reduce_max_sync(~0u, input), 8192)) {
#pragma unroll
      for (int j = 0; j < kCount; j++) {
        w[j] = wgmma_swizzled(__reduce_max_sync(~0u, from[j]), 8192);
      }
    }
  };

  // Adds the products of kChunks chunks of each of kCount stages.
  template <int kCount, int kChunks>
  static __device__ void add(float (&sums)[kRows / 2],
                             const Operands<kCount>& of) {
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kCount; j++) {
#pragma unroll
      for (int i = 0; i < kChunks; i++) {
#pragma unroll
        for (int s = 0; s < 4; s++) {
          wgmma<false, false>(
              sums, Tag<T>(), of.w[j] + (i * kChunkBytes / 16 + s * 2),
              of.x + ((j * kDepth + i) * kBlockBytes / 16 + s * 2));
        }
      }
    }
    wgmma_commit();
  }

  // Some stages at once; their weights are there before the input, which
  // `there` says is.
  template <int kCount, int kChunks>
  __device__ void add_stages(float (&sums)[kRows / 2], Turn& turn, unsigned& x,
                             int l, bool& there) const {
    unsigned w[kCount];
    int stage[kCount];
#pragma unroll
    for (int j = 0; j < kCount; j++) {
      barrier_wait(barriers.full(turn.stage), turn.parity);
      stage[j] = turn.stage;
      w[j] = ring + turn.stage * kStageBytes;
      turn.next(p.stages);
    }
    const Operands<kCount> operands(w, x);
    if (!there) barrier_wait(barriers.input(l), 0);
    there = true;
    add<kCount, kChunks>(sums, operands);
    x += kCount * kDepth * kBlockBytes;
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < kCount; j++) give_back(stage[j]);
  }

  // Whole stages as they come, each given back with the next one under way.
  // `end` is where x begins anew.
  __device__ int stream(float (&sums)[kRows / 2], Turn& turn, unsigned& x,
                        unsigned begin, unsigned end, int l, int left,
                        bool& there) const {
    int before = -1;
#pragma unroll 1
    for (; left >= kDepth; left -= kDepth) {
      barrier_wait(barriers.full(turn.stage), turn.parity);
      const unsigned w[1] = {ring + turn.stage * kStageBytes};
      const Operands<1> operands(w, x);
      if (!there) barrier_wait(barriers.input(l), 0);
      there = true;
      add<1, kDepth>(sums, operands);
      x += kDepth * kBlockBytes;
      if (x == end) x = begin;
      wgmma_wait<1>();
      if (before >= 0) give_back(before);
      before = turn.stage;
      turn.next(p.stages);
    }
    wgmma_wait<0>();
    if (before >= 0) give_back(before);
    return left;
  }
  __device__ void give_back(int stage) const {
    if (threadIdx.x % 32 == 0) barrier_arrive(barriers.empty(stage));
  }

  // `bias` is that of the first tile of the first layer.
  __device__ void compute(int warp, typename Base::Bias bias) const {
    Turn turn;
    bool sent = false;    // a result that may not have been read
    bool joined = false;  // the other blocks' barriers are made
    unsigned at = even;
    const unsigned to =
        results + Turned<T, kRows>::place(warp, threadIdx.x % 32);
#pragma unroll 1
    for (int l = 0; l < p.layers; l++) {
      const ClusterMlpLayer& layer = p.layer[l];
      const int chunks = layer.chunks, tiles = layer.tiles;
      const bool relu = layer.relu;
      bool there = l == 0;
#pragma unroll 1
      for (int tile = rank; tile < tiles; tile += blocks) {
        if (l > 0 || tile > rank) bias = this->bias_of(l, tile, warp);
        float sums[kRows / 2];
#pragma unroll
        for (int i = 0; i < kRows / 2; i++) {
          sums[i] = to_float(bias.at[i / 2 % 2]);
        }
        wgmma_pin(sums);
        unsigned x = l == 0 ? at : this->input(l), end = 0;
        int left = chunks;
        if (l == 0) {
          end = even + p.even_blocks * kBlockBytes;
          left = stream(sums, turn, x, even, end, l, left, there);
          if (!joined) cluster_wait();
          joined = true;
        } else if (p.stages < kPlenty) {
          left = stream(sums, turn, x, 0, 0, l, left, there);
        }
#pragma unroll 1
        for (; left >= 4 * kDepth; left -= 4 * kDepth) {
          add_stages<4, kDepth>(sums, turn, x, l, there);
        }
#pragma unroll 1
        for (; left >= 2 * kDepth; left -= 2 * kDepth) {
          add_stages<2, kDepth>(sums, turn, x, l, there);
        }
        if (left >= kDepth) {
          add_stages<1, kDepth>(sums, turn, x, l, there);
          left -= kDepth;
        }
        if (left > 0) {
          add_stages<1, 1>(sums, turn, x, l, there);
        }
        if (l == 0) at = x == end ? even : x;
        wgmma_pin(sums);
        if (l + 1 == p.layers && !p.by_map) {
          this->store_elements(sums, tile, warp, relu);
          continue;
        }
        if (sent) hear<kResultRead>();
        sent = true;
        if (relu) {
          Turned<T, kRows>::template put<true>(to, sums);
        } else {
          Turned<T, kRows>::template put<false>(to, sums);
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        say<kResultThere>();
      }
      if (!joined) cluster_wait();
      joined = true;
      // A block ends only with everything received.
      if (!there) barrier_wait(barriers.input(l), 0);
    }
  }
};

template <typename T, int kRows>
__device__ void cluster_mlp(const ChainMaps& maps, const ClusterMlpParams& p) {
  extern __shared__ char shared[];
  const Computing<T, kRows> block(maps, p,
                                  (shared_address(shared) + 1023) & ~1023u);
  // As a reduction, for the compiler to see that all threads have the same.
  const int warp = __reduce_max_sync(~0u, threadIdx.x / 32);
  typename Computing<T, kRows>::Bias bias = {};
  if (__builtin_expect(warp == kFetching, true)) {
    block.fetch_first();
  } else if (warp == kSending) {
    block.make_inputs();
  } else {
    bias = block.bias_of(0, block.rank, warp);
    block.make_stages(warp, kComputing, kComputing);
  }
  __syncwarp();
  cluster_arrive();
  __syncthreads();
  if (warp == kFetching) {
    block.fetch_all();
    cluster_wait();
  } else if (warp == kSending) {
    cluster_wait();
    block.send();
  } else {
    block.compute(warp, bias);
  }
}

}  // namespace hypatia

#define HYPATIA_CLUSTER_MLP(name, T, rows)                 \
  extern "C" __global__ void __launch_bounds__(192, 1)     \
      cluster_mlp_##name##_##rows(                         \
          const __grid_constant__ hypatia::ChainMaps maps, \
          const __grid_constant__ ClusterMlpParams p) {    \
    hypatia::cluster_mlp<T, rows>(maps, p);                \
  }

#define HYPATIA_CLUSTER_MLPS(name, T) \
  HYPATIA_CLUSTER_MLP(name, T, 8)     \
  HYPATIA_CLUSTER_MLP(name, T, 16)    \
  HYPATIA_CLUSTER_MLP(name, T, 32)

HYPATIA_CLUSTER_MLPS(bf16, __nv_bfloat16)
HYPATIA_CLUSTER_MLPS(f16, __half)
HYPATIA_CLUSTER_MLPS(tf32, float)
