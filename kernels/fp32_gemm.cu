// d = left . right [+ bias] [relu] in strict fp32 on the tensor cores.
//
// Each fp32 is the sum of three bf16 (8 bits each: 24 in all), x = h + m + l,
// and a product is the sum of six: h h + (h m + m h) + (h l + l h + m m). What
// is dropped is below 2^-25 of the product. The tensor core cuts sums off where
// fp32 rounds, so 16 products at a time are summed there, the small ones first,
// and then added in fp32.
//
// Shapes   left [m, k] fp32, right [k, n] as an image (common/split.cuh), bias
//          [m] or none; d [m, n] fp32 with unit stride along its columns, and
//          as an image for the next product, which sums over m. For y = x wT
//          that is yT = w xT: weights are read as they are.
// Layout   left by a tensor map: k contiguous ("rows"; the image has k in the
//          order of `Rows::k_of`), or rows contiguous ("columns").
// Tiles    128 x kCols of d a block: two warpgroups of 64 rows, which split
//          `left` in registers on the way. Two blocks of a cluster, one below
//          the other, fetch half of their columns' image each, for both. One
//          warp fetches. Clusters go on to further tiles. With `splits` each
//          sums a part of k; the last to arrive adds them up, in their order.
//          With `parts` the blocks of a cluster sum one tile's parts of k, and
//          each adds up some columns of it, again in their order.
// Order    the warpgroups take turns at the tensor cores, six products each:
//          while one's run, the other adds its sums and splits its next
//          operand.
// Special  a result that is not finite is computed again by plain FMAs: inf in
//          three parts would meet zeros.
// Assumes  (checked in src/plan/fp32) 384 threads, extents below 2^31,
// addresses
//          and rows of `left` 16-byte aligned, chunks of k for every split.
// Targets  sm_90a

#include "common/fp32_results.cuh"
#include "common/ring.cuh"
#include "common/wgmma.cuh"

namespace hypatia {

constexpr int kRows = 128;
constexpr int kLeftBytes = kRows * kImageDepth * 4;
constexpr int kGroup = 8;  // clusters of rows that share columns in L2
constexpr int kSharedBudget = 220 << 10;

template <int kCols>
struct Shape {
  static constexpr int kRightBytes = kCols * kColumnBytes;
  static constexpr int kStageBytes = kLeftBytes + kRightBytes;
  static constexpr int kStages = kSharedBudget / kStageBytes;
  static constexpr int kSums = kCols / 2;  // of a thread
  using Stages = Ring<kStages, kStageBytes>;
};

// A block in its cluster: one of `blocks` that share columns, or the one that
// sums part `part` of k.
struct Member {
  int rank = 0, blocks = 1, part = 0, clusters;

  __device__ explicit Member(const Fp32GemmParams& p) {
    const int size = cluster_size(), at = cluster_rank();
    clusters = gridDim.x / size;
    if (p.parts > 1) {
      part = at;
    } else {
      rank = at, blocks = size;
    }
  }
};

// What a cluster does at a time: a tile a block or one for all, a part of k.
struct Unit {
  int row, col_tile, split, first, last;  // chunks of k

  __device__ Unit(const Fp32GemmParams& p, int index, const Member& member) {
    const auto& [rank, blocks, part, all] = member;
    split = index % p.splits;
    const int tile = index / p.splits;
    const int clusters = p.row_tiles / blocks;
    const int group = tile / (kGroup * p.col_tiles);
    const int rest = tile % (kGroup * p.col_tiles);
    const int high = min(kGroup, clusters - group * kGroup);
    row = ((group * kGroup + rest % high) * blocks + rank) * kRows;
    col_tile = rest / high;
    const long long chunks = (p.k + kImageDepth - 1) / kImageDepth;
    const int at = split * p.parts + part, of = p.splits * p.parts;
    first = chunks * at / of;
    last = chunks * (at + 1) / of;
  }

  static __device__ int count(const Fp32GemmParams& p, const Member& member) {
    return p.row_tiles / member.blocks * p.col_tiles * p.splits;
  }
};

template <typename Left, int kCols>
__device__ void fetch_tiles(const TensorMap& map, const Fp32GemmParams& p,
                            const typename Shape<kCols>::Stages& ring,
                            const Member& member) {
  using S = Shape<kCols>;
  const int rank = member.rank, blocks = member.blocks;
  const int share = S::kRightBytes / blocks;
  const long long chunk_bytes =
      static_cast<long long>(padded(p.n)) * kColumnBytes;
  typename S::Stages::Turn turn;
  const auto fetch_left = [&](int stage, int chunk, int row) {
    barrier_expect(ring.full(stage), S::kStageBytes);
    Left::fetch(ring.data(stage), map, chunk * kImageDepth, row,
                ring.full(stage));
  };
  int early = 0;
  if (p.early) {
    const Unit unit(p, cluster_index(), member);
    early = min(S::kStages, unit.last - unit.first);
    for (int i = 0; i < early; i++) fetch_left(i, unit.first + i, unit.row);
  }
  wait_for_grid_in_front();
  for (int u = cluster_index(); u < Unit::count(p, member);
       u += member.clusters) {
    const Unit unit(p, u, member);
    const char* image = static_cast<const char*>(p.image) +
                        1ll * unit.col_tile * S::kRightBytes + rank * share;
    for (int c = unit.first; c < unit.last; c++, turn.next()) {
      if (early > 0) {
        early--;
      } else {
        barrier_wait(ring.empty(turn.stage), turn.parity ^ 1);
        fetch_left(turn.stage, c, unit.row);
      }
      const unsigned full = ring.full(turn.stage);
      const unsigned to = ring.data(turn.stage) + kLeftBytes;
      const char* from = image + c * chunk_bytes;
      if (blocks == 2) {
        copy_bytes_to(to + rank * share, from, share, full, 3);
      } else {
        copy_bytes(to, from, share, full);
      }
    }
  }
}

// The warpgroups' turns: barriers 3 and 4, each for the one that waits.
__device__ inline void take_turn(int half) {
  if (half == 0) {
    asm volatile("bar.sync 3, 256;" ::: "memory");
  } else {
    asm volatile("bar.sync 4, 256;" ::: "memory");
  }
}

__device__ inline void pass_turn(int half) {
  if (half == 0) {
    asm volatile("bar.arrive 4, 256;" ::: "memory");
  } else {
    asm volatile("bar.arrive 3, 256;" ::: "memory");
  }
}

// Product `s` of a chunk: 16 of k.
template <int N>
__device__ inline void multiply(float (&sums)[N], const Fragment& left,
                                unsigned image, int s, int half) {
  // The same for all threads, but the compiler must see it.
  const unsigned long long first =
      wgmma_blocks(__shfl_sync(~0u, image, 0), kBlockBytes, 8 * kColumnBytes);
  const auto part = [&](int i) {
    return first + (4 * i + 2 * s) * (kBlockBytes / 16);
  };
  take_turn(half);
  wgmma_fence();
  wgmma_bf16(sums, left.middle, part(1), false);
  wgmma_bf16(sums, left.high, part(2), true);
  wgmma_bf16(sums, left.low, part(0), true);
  wgmma_bf16(sums, left.high, part(1), true);
  wgmma_bf16(sums, left.middle, part(0), true);
  wgmma_bf16(sums, left.high, part(0), true);
  wgmma_commit();
  __syncwarp();  // what follows would otherwise be mixed in, and delay them
  pass_turn(half);
}

template <int N>
__device__ inline void add_up(float (&total)[N], float (&sums)[N]) {
  wgmma_wait<0>();
  wgmma_pin(sums);
#pragma unroll
  for (int i = 0; i < N; i++) total[i] += sums[i];
}

// Where the parts of a tile's sums meet: a block's columns of each of them.
struct Inbox {
  unsigned data, barriers;

  // `sums` is how many a thread has in all.
  __device__ void make(int sums) const {
    for (int half = 0; half < 2; half++) {
      barrier_init(barriers + 8 * half, 1);
      barrier_expect(barriers + 8 * half, sums * 4 * 128);
    }
  }
};

// Gives every block of the cluster its columns of `total` and finishes this
// one's: the sum of all parts, in their order.
template <typename Left, int kParts, int N>
__device__ void finish_part(const Fp32GemmParams& p, float (&total)[N],
                            const Inbox& inbox, int row, int col, int part) {
  constexpr int kOwn = N / kParts;
  static_assert(kOwn % 4 == 0, "whole groups of 8 columns");
  const int half = threadIdx.x / 128, thread = threadIdx.x % 128;
  const unsigned barrier = inbox.barriers + 8 * half;
  const auto place = [&](int from, int i) {
    return inbox.data +
           (((from * 2 + half) * (kOwn / 4) + i / 4) * 128 + thread) * 16;
  };
#pragma unroll
  for (int to = 0; to < kParts; to++) {
#pragma unroll
    for (int i = 0; i < kOwn; i += 4) {
      const float* x = total + to * kOwn + i;
      store_remote(map_to_rank(place(part, i), to), map_to_rank(barrier, to),
                   make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]),
                              __float_as_uint(x[2]), __float_as_uint(x[3])));
    }
  }
  float own[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; i++) own[i] = 0.0f;
  barrier_wait(barrier, 0);
#pragma unroll
  for (int from = 0; from < kParts; from++) {
#pragma unroll
    for (int i = 0; i < kOwn; i += 4) {
      const uint4 v = load_shared(place(from, i));
      own[i] += __uint_as_float(v.x), own[i + 1] += __uint_as_float(v.y);
      own[i + 2] += __uint_as_float(v.z), own[i + 3] += __uint_as_float(v.w);
    }
  }
  finish<Left>(p, own, row, col + 2 * kOwn * part, threadIdx.x / 32,
               threadIdx.x % 32);
}

template <typename Left, int kCols>
__device__ void compute_tiles(const Fp32GemmParams& p,
                              const typename Shape<kCols>::Stages& ring,
                              const Member& member, const Inbox& inbox) {
  using S = Shape<kCols>;
  const int rank = member.rank, blocks = member.blocks;
  wait_for_grid_in_front();
  const int lane = threadIdx.x % 32, i = lane / 4, q = lane % 4;
  const int warp = threadIdx.x / 32;
  const int half = __shfl_sync(~0u, warp / 4, 0);
  const unsigned peer = map_to_rank(ring.empty(0), rank ^ (blocks - 1));
  const auto release = [&](int stage) {
    if (lane == 0) barrier_arrive(ring.empty(stage));
    if (lane == 1 && blocks == 2) barrier_arrive_remote(peer + 16 * stage);
  };
  typename S::Stages::Turn turn;
  if (half == 1) pass_turn(half);  // the first is half 0's
  for (int u = cluster_index(); u < Unit::count(p, member);
       u += member.clusters) {
    const Unit unit(p, u, member);
    float total[S::kSums], sums[S::kSums];
    Fragment left[2];
#pragma unroll
    for (int j = 0; j < S::kSums; j++) total[j] = 0.0f;
    int before = 0;
    for (int c = unit.first; c < unit.last; c++, turn.next()) {
      const unsigned tile = ring.data(turn.stage), image = tile + kLeftBytes;
      barrier_wait(ring.full(turn.stage), turn.parity);
      float x[8];
      Left::read(x, tile, warp, i, q, 0);
      left[0].split(x);
      if (c > unit.first) {
        add_up(total, sums);
        release(before);
      }
      multiply(sums, left[0], image, 0, half);
      Left::read(x, tile, warp, i, q, 1);
      left[1].split(x);
      add_up(total, sums);
      multiply(sums, left[1], image, 1, half);
      before = turn.stage;
    }
    add_up(total, sums);
    release(before);
    if (p.parts > 1) {
      // Nobody reads the ring any more, where the inbox is.
      cluster_arrive();
      cluster_wait();
      const int col = unit.col_tile * kCols;
      if constexpr (kCols == 64) {
        if (p.parts == 8) {
          finish_part<Left, 8>(p, total, inbox, unit.row, col, member.part);
        } else {
          finish_part<Left, 4>(p, total, inbox, unit.row, col, member.part);
        }
      } else if constexpr (kCols == 32) {
        finish_part<Left, 4>(p, total, inbox, unit.row, col, member.part);
      }
      break;
    }
    const int tile = unit.row / kRows * p.col_tiles + unit.col_tile;
    if (p.splits > 1 && !reduce(p, tile, unit.split, half, total)) continue;
    finish<Left>(p, total, unit.row, unit.col_tile * kCols, warp, lane);
  }
  if (half == 0) take_turn(half);  // the last was passed to it
}

template <typename Left, int kCols>
__device__ void fp32_gemm(const TensorMap& map, const Fp32GemmParams& p) {
  extern __shared__ char shared[];
  // The swizzle of boxes counts from multiples of 1024.
  const typename Shape<kCols>::Stages ring{(shared_address(shared) + 1023) &
                                           ~1023u};
  const Member member(p);
  __shared__ unsigned long long arrived[2];
  const Inbox inbox{ring.data(0), shared_address(arrived)};
  if (threadIdx.x == 0) {
    prefetch_map(map);
    inbox.make(kCols / 2);
    ring.make(8 * member.blocks);  // computing warps
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();
  let_next_grid_start();
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 256) {
      fetch_tiles<Left, kCols>(map, p, ring, member);
    }
    if (p.parts > 1) {  // with the computing warps
      __syncwarp();
      cluster_arrive();
      cluster_wait();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    compute_tiles<Left, kCols>(p, ring, member, inbox);
  }
  // The other block may still arrive on barriers here.
  __syncwarp();
  cluster_arrive();
  cluster_wait();
}

}  // namespace hypatia

#define HYPATIA_FP32_GEMM(name, Left, kCols)               \
  extern "C" __global__ void __launch_bounds__(384, 1)     \
      name(const __grid_constant__ hypatia::TensorMap map, \
           const __grid_constant__ Fp32GemmParams p) {     \
    hypatia::fp32_gemm<hypatia::Left, kCols>(map, p);      \
  }

HYPATIA_FP32_GEMM(fp32_gemm_rows_128, Rows, 128)
HYPATIA_FP32_GEMM(fp32_gemm_rows_64, Rows, 64)
HYPATIA_FP32_GEMM(fp32_gemm_rows_32, Rows, 32)
HYPATIA_FP32_GEMM(fp32_gemm_columns_128, Columns, 128)
HYPATIA_FP32_GEMM(fp32_gemm_columns_64, Columns, 64)
HYPATIA_FP32_GEMM(fp32_gemm_columns_32, Columns, 32)
