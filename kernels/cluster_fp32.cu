// As cluster_mlp.cu in strict fp32: layers of relu(x . weightT + bias) in turn,
// in one launch of clusters that each do all layers of a few rows.
//
// Each fp32 is the sum of three bf16 and a product the sum of six, as in
// fp32_gemm.cu. A warp works by itself: it takes 16 of k of a tile's weight and
// of the input, splits both in registers and multiplies, so that nothing is
// split twice in a block. What the warps have is added up at the end of a tile.
//
// Shapes   as cluster_mlp.cu; maps in boxes of 32 fp32, of a weight by 32 rows
// Tiles    32 columns by kRows rows; of the four 16 of k that a stage has, a
//          warp takes the same one of every other stage
// Sums     16 products at a time in the tensor core, the small ones first, then
//          in fp32; the same bits each time, whatever kRows is
// Special  a result that is not finite is computed again by plain FMAs
// Assumes  (checked in src/plan/cluster_mlp.rs) 320 threads, extents below
//          2^31, at most 16 blocks a cluster, every matrix but the last result
//          and its rows 16-byte aligned, four stages or as many as there are
// Targets  sm_90a

#include "common/cluster_block.cuh"
#include "common/fp32_results.cuh"
#include "common/fp32_units.cuh"
#include "common/turned_tile.cuh"
#include "params.h"

namespace hypatia {

constexpr int kCols = 32;                    // of a tile
constexpr int kUnits = 4;                    // of a stage, 16 of k each
constexpr int kFirst = 4, kMultiplying = 8;  // warps: the first four add up
constexpr int kFetchWarp = kMultiplying, kSendWarp = kFetchWarp + 1;

// Named barriers of all multiplying warps, and of the first four.
enum { kPartRead = kOthers, kPartThere, kPartAdded };
constexpr int kAll = 32 * kMultiplying, kSome = 32 * kFirst;  // threads

template <int kRows>
struct Fp32Block : Block<float, kRows, kCols> {
  using Base = Block<float, kRows, kCols>;
  using Base::barriers, Base::blocks, Base::even, Base::kBlockBytes,
      Base::kChunkBytes, Base::kStageBytes, Base::p, Base::rank, Base::results,
      Base::ring, Base::row;
  using Units = Fp32Units<kRows, kCols>;
  using Total = typename Units::Total;
  static constexpr int kColBlocks = Units::kColBlocks;
  static constexpr int kRowBlocks = Units::kRowBlocks;
  static constexpr int kPartBytes = kCols * kRows * 4;  // of a warp's sums
  using Sums = float[4 * kRowBlocks];                   // of 16 columns

  const ClusterFp32Operands& operands;
  const unsigned part;

  __device__ Fp32Block(const ChainMaps& maps, const ClusterMlpParams& p,
                       const ClusterFp32Operands& operands, unsigned base)
      : Base(maps, p, base),
        operands(operands),
        part(ring + p.stages * kStageBytes) {}

  // A warp's part of a tile of layer `l`, behind `before` stages of the ring.
  __device__ void sum(Total& total, int before, int l, int warp,
                      bool& there) const {
    const int lane = threadIdx.x % 32, i = lane / 4, chunks = p.layer[l].chunks;
    const int half = warp % kUnits / 2, s = warp % 2;
    const unsigned mine = tile_at<kRows>(i, 2 * (lane % 4) + s);
    const unsigned weights = ring + half * kChunkBytes + mine;
    const unsigned inputs =
        (l == 0 ? even : this->input(l)) + half * kBlockBytes + mine;
    constexpr int kStep = kMultiplying / kUnits;  // stages
    int c = warp / kUnits * kDepth;               // first chunk of the stage
    const int stage = before + warp / kUnits;
    Turn turn;
    turn.stage = stage % p.stages, turn.parity = stage / p.stages & 1;
    // Of the input's blocks, which go round in layer 0.
    int at = l == 0 ? stage * kDepth % p.even_blocks : c;
    const auto next = [&] {
#pragma unroll
      for (int g = 0; g < kStep; g++) turn.next(p.stages);
      c += kStep * kDepth, at += kStep * kDepth;
      if (l == 0) {
        while (at >= p.even_blocks) at -= p.even_blocks;
      }
    };
    const auto weight = [&] { return weights + turn.stage * kStageBytes; };
    const auto input = [&] { return inputs + at * kBlockBytes; };
    bool more = c + half < chunks;
    if (more) {
      barrier_wait(barriers.full(turn.stage), turn.parity);
      if (!there) barrier_wait(barriers.input(l), 0);
      there = true;
      Units units;
      units.begin(weight(), input());
#pragma unroll 1
      while (more) {
        units.most_of(total, weight());
        __syncwarp();
        if (lane == 0) barrier_arrive(barriers.empty(turn.stage));
        next();
        more = c + half < chunks;
        if (more) {
          barrier_wait(barriers.full(turn.stage), turn.parity);
          units.last_and_begin(total, weight(), input());
        } else {
          units.last(total);
        }
      }
    }
    if (c < chunks) {  // a stage of one chunk
      barrier_wait(barriers.full(turn.stage), turn.parity);
      if (lane == 0) barrier_arrive(barriers.empty(turn.stage));
    }
  }

  __device__ unsigned part_of(int warp, int i, int j) const {
    return part + warp * kPartBytes + (i * kRowBlocks + j) * 512 +
           threadIdx.x % 32 * 16;
  }
  static __device__ void add(float (&to)[4], unsigned from) {
    const uint4 v = load_shared(from);
    to[0] += __uint_as_float(v.x), to[1] += __uint_as_float(v.y);
    to[2] += __uint_as_float(v.z), to[3] += __uint_as_float(v.w);
  }

  // Adds up what the warps have: the second four give theirs to the first, and
  // of the sums of these each of `kColBlocks` adds up 16 columns.
  __device__ void add_up(Sums& sums, Total& total, int warp) const {
    const bool first = warp < kFirst;
    if (first) {
      hear<kPartThere, kAll>();
    } else {
      hear<kPartRead, kAll>();
    }
#pragma unroll
    for (int i = 0; i < kColBlocks; i++) {
#pragma unroll
      for (int j = 0; j < kRowBlocks; j++) {
        const unsigned at = part_of(warp % kFirst, i, j);
        float(&v)[4] = total[i][j];
        if (first) add(v, at);
        store_shared(at,
                     make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]),
                                __float_as_uint(v[2]), __float_as_uint(v[3])));
      }
    }
    if (!first) return say<kPartThere, kAll>();
    hear<kPartAdded, kSome>();
    if (warp < kColBlocks) {
#pragma unroll
      for (int j = 0; j < kRowBlocks; j++) {
        float four[4] = {};
#pragma unroll
        for (int w = 0; w < kFirst; w++) add(four, part_of(w, warp, j));
#pragma unroll
        for (int e = 0; e < 4; e++) sums[4 * j + e] = four[e];
      }
    }
    say<kPartRead, kAll>();
  }

  // One element by plain FMAs, up to the first NaN.
  __device__ float plain_sum(int l, int r, int col) const {
    if (row + r >= p.m || col >= p.layer[l].n) return 0.0f;
    const float* w = operands.weight[l] + col * 1ll * operands.weight_ld[l];
    const float* x = operands.input + (row + r) * 1ll * operands.input_ld;
    float total = 0.0f;
#pragma unroll 1
    for (int k = 0; k < operands.k[l] && total == total; k++) {
      float v;
      if (l == 0) {
        v = x[k];
      } else {
        v = load_shared<float>(this->input(l) + tile_at<kRows>(r, k / 4) +
                               k % 4 * 4);
      }
      total = fmaf(w[k], v, total);
    }
    return total;
  }

  // Special values, bias and ReLU.
  __device__ void finish(Sums& sums, int l, int tile, int warp,
                         const typename Base::Bias& bias, bool& there) const {
    if (!all_normal(sums)) {
      if (!there) barrier_wait(barriers.input(l), 0);
      there = true;
      each_in_turn(sums, [&](int i, float& x, float& y) {
        const int col = tile * kCols + Base::col_of(i, warp);
        const int r = Base::row_of(i);
        if (x - x != 0.0f) x = plain_sum(l, r, col);
        if (y - y != 0.0f) y = plain_sum(l, r + 1, col);
      });
    }
#pragma unroll
    for (int i = 0; i < 4 * kRowBlocks; i++) {
      sums[i] += bias.at[i / 2 % 2];
      if (p.layer[l].relu) sums[i] = sums[i] < 0.0f ? 0.0f : sums[i];
    }
  }

  __device__ void compute(int warp) const {
    const unsigned to =
        results + Turned<float, kRows>::place(warp, threadIdx.x % 32);
    int stages = 0;     // so far
    bool sent = false;  // a result that may not have been read
    if (warp < kFirst) say<kPartRead, kAll>();
#pragma unroll 1
    for (int l = 0; l < p.layers; l++) {
      const ClusterMlpLayer& layer = p.layer[l];
      const int tiles = layer.tiles;
      const bool by_map = l + 1 < p.layers || p.by_map;
      bool there = l == 0;
#pragma unroll 1
      for (int tile = rank; tile < tiles; tile += blocks) {
        const auto bias = this->bias_of(l, tile, warp);
        Total total = {};
        sum(total, stages, l, warp, there);
        stages += (layer.chunks + 1) / 2;
        Sums sums;
        add_up(sums, total, warp);
        if (warp >= kFirst) continue;
        if (by_map && sent) hear<kResultRead>();
        if (warp < kColBlocks) {
          finish(sums, l, tile, warp, bias, there);
          if (by_map) {
            Turned<float, kRows>::template put<false>(to, sums);
          } else {
            this->store_elements(sums, tile, warp, false);
          }
        }
        if (!by_map) continue;
        sent = true;
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        say<kResultThere>();
      }
      // A block ends only with everything received.
      if (!there) barrier_wait(barriers.input(l), 0);
    }
    if (warp >= kFirst) hear<kPartRead, kAll>();
  }
};

template <int kRows>
__device__ void cluster_fp32(const ChainMaps& maps, const ClusterMlpParams& p,
                             const ClusterFp32Operands& operands) {
  extern __shared__ char shared[];
  const Fp32Block<kRows> block(maps, p, operands,
                               (shared_address(shared) + 1023) & ~1023u);
  // As a reduction, for the compiler to see that all threads have the same.
  const int warp = __reduce_max_sync(~0u, threadIdx.x / 32);
  if (warp == kFetchWarp) {
    block.fetch_first();
  } else if (warp == kSendWarp) {
    block.make_inputs();
  } else {
    block.make_stages(warp, kMultiplying, kUnits);
  }
  __syncwarp();
  cluster_arrive();
  __syncthreads();
  if (warp == kFetchWarp) {
    block.fetch_all();
    cluster_wait();
  } else if (warp == kSendWarp) {
    cluster_wait();
    block.send();
  } else {
    block.compute(warp);
    cluster_wait();
  }
}

}  // namespace hypatia

#define HYPATIA_CLUSTER_FP32(rows)                                          \
  extern "C" __global__ void __launch_bounds__(320, 1) cluster_fp32_##rows( \
      const __grid_constant__ hypatia::ChainMaps maps,                      \
      const __grid_constant__ ClusterMlpParams p,                           \
      const __grid_constant__ ClusterFp32Operands operands) {               \
    hypatia::cluster_fp32<rows>(maps, p, operands);                         \
  }

HYPATIA_CLUSTER_FP32(8)
HYPATIA_CLUSTER_FP32(16)
HYPATIA_CLUSTER_FP32(24)
HYPATIA_CLUSTER_FP32(40)
