// y = W_L(... relu(W_1 x + b_1) ...) + b_L in one launch, for small batches.
//
// Shapes   input [rows, k of layer 0], weights [n, k], biases [n] or none,
//          output [rows, n of the last layer]; up to 16 layers, any widths.
// Layout   row-major, unit column stride, any row stride.
// Tiles    a cluster of S blocks (1-D, up to 16) owns 16 or 32 rows: one or two
//          teams of 8 warps with 16 rows each. Of each layer a block computes
//          every S-th group of 8, 16 or 32 columns; a team's warps split K in
//          chunks of 64 bytes and add up through shared memory.
// Weights  (and the input) come through a ring of slots, 512 bytes of K of up
//          to 32 rows each. Four producer warps, the first of the block, run
//          ahead across layers: weights wait for nobody.
// Between  layers, results go to the blocks of the cluster that read them by
//          st.async, counted on one barrier per layer and team. Two buffers
//          need no further barrier: a block sends layer l's result only after
//          it has read l's input, and nobody finishes layer l + 1, whose result
//          takes that input's place, without all of l's result.
// Sums     fp32, in an order that depends on the plan alone.
// fp32     plain FMAs. Three tf32 products were 1.3 to 1.7 times faster, but
//          four times eager's error where neighbouring products cancel.
// Assumes  (checked in src/plan/small_mlp.rs) 256 threads a team and 128; the
//          numbers in MlpParams as the plan gives them; extents below 2^31.
// Targets  sm_90a

#include "common/mlp_ring.cuh"
#include "common/mlp_sums.cuh"
#include "params.h"

namespace hypatia {

// Where packet `packet` of row `row` lies in an activation buffer. The rows of
// a packet are side by side, so that what a block sends is contiguous;
// swapping rows keeps a warp's reads of four packets free of bank conflicts.
template <int R>
__device__ inline unsigned act_offset(int packet, int row) {
  return (packet * R + (row ^ 2 * (packet & 3))) * 16;
}

template <typename P, int kTeams>
__device__ void fused_mlp(const MlpParams& p) {
  using T = typename P::Element;
  constexpr int R = kRows;
  constexpr int kTilePackets = sizeof(T) / 2;  // packets of 8 columns
  extern __shared__ __align__(128) char shared[];
  const Barriers barriers{shared_address(shared)};
  const unsigned own_bytes = 2 * p.act_bytes + kWarps * R * 32 * 4;
  const unsigned ring = barriers.base + kBarrierBytes + kTeams * own_bytes;

  const int rank = cluster_rank(), blocks = cluster_size();
  const int tile_row = cluster_index() * (R * kTeams);

  if (threadIdx.x < 32 * kProducers) {
    cluster_arrive();
    Producer<T> producer{barriers, ring, p.slots};
    producer.template run<R * kTeams>(p, rank, blocks, tile_row);
    cluster_wait();
    return;
  }
  const int thread = threadIdx.x - 32 * kProducers;
  const int team = thread / kThreads;
  const int warp = thread / 32 % kWarps, lane = thread % 32;
  const int g = lane / 4, q = lane % 4;
  const int first_row = tile_row + team * R;
  const unsigned act = barriers.base + kBarrierBytes + team * own_bytes;
  const unsigned sums = act + 2 * p.act_bytes;
  // Lanes that make barriers take turns, 55 cycles each: so warps share them.
  if (lane == 0) {
    const int kinds = 2 * p.slots + kTeams;
    for (int b = thread / 32; b < kinds + kTeams * (p.layers - 1);
         b += kTeams * kWarps) {
      if (b < p.slots) {
        barrier_init(barriers.full(b), 32);
      } else if (b < 2 * p.slots) {
        barrier_init(barriers.empty(b - p.slots), kWarps * kTeams);
      } else if (b < kinds) {
        barrier_init(barriers.sums_free(b - 2 * p.slots), kWarps);
      } else {
        const int l = (b - kinds) / kTeams + 1, t = (b - kinds) % kTeams;
        const unsigned barrier = barriers.layer(l, t);
        barrier_init(barrier, 1);
        barrier_init_fence();
        if (rank < p.layer[l].groups) {
          barrier_expect(barrier, p.layer[l].chunks * R * 64);
        }
      }
    }
    barrier_init_fence();
  }
  __syncwarp();
  cluster_arrive();
  __syncthreads();
  bool joined = false;  // whether the other blocks' barriers are known ready

  Turn turn;
  unsigned free_parity = 1;  // of sums_free: nothing to wait for at first
  for (int l = 0; l < p.layers; ++l) {
    const MlpLayer& m = p.layer[l];
    const bool last = l + 1 == p.layers;
    const int chunks = m.chunks, groups = m.groups, shift = m.shift;
    const int tiles = 1 << shift, width = m.n;
    const int partials = min(kWarps, chunks);
    const unsigned from = act + (l & 1) * p.act_bytes;
    const unsigned to = act + (~l & 1) * p.act_bytes;
    const int readers = last ? 0 : min(blocks, p.layer[l + 1].groups);
    const int start = rank < readers ? rank : 0;

    for (int group = rank; group < groups; group += blocks) {
      // This warp finishes tiles t = warp, warp + 8 of the R / 16 * tiles: rows
      // 16 * (t >> shift) .. and columns 8 * tile ..
      const int tile = group * tiles + (warp & (tiles - 1));
      const int n = 8 * tile + 2 * q;
      const bool finishes = warp < (R / 16) * tiles && tile < m.tiles;
      float bias[2] = {};
      if (finishes && m.bias != nullptr) {
        const T* b = static_cast<const T*>(m.bias);
        if (n < width) bias[0] = to_float(b[n]);
        if (n + 1 < width) bias[1] = to_float(b[n + 1]);
      }

      Sums<P, R> acc;
      for (int chunk = warp; chunk - warp < chunks; chunk += kWarps) {
        if constexpr (P::kExact) {
          // Slots are given back only after the sums, which read them twice.
          unsigned x = from + chunk * 4 * R * 16 + g * 16, x_row = 128;
          const int x_slot = turn.stage;
          if (l == 0) {
            barrier_wait(barriers.full(turn.stage), turn.parity);
            x = ring + turn.stage * kSlotBytes + (team * R + g) * kSlotRow +
                warp * 64;
            x_row = 8 * kSlotRow;
            turn.next(p.slots);
          }
          barrier_wait(barriers.full(turn.stage), turn.parity);
          const unsigned w =
              ring + turn.stage * kSlotBytes + 2 * q * kSlotRow + warp * 64;
          if (l > 0 && chunk == warp) {
            barrier_wait(barriers.layer(l, team), 0);
          }
          if (chunk < chunks) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              // Lanes of a quad start with different packets: no conflicts.
              const int packet = (i + q) & 3;
              const unsigned a = l == 0 ? x + packet * 16
                                        : (x ^ packet * 32) + packet * R * 16;
              acc.add(load_shared(a), load_shared(a + x_row), w + packet * 16,
                      tiles);
            }
          }
          __syncwarp();
          if (lane == 0) {
            if (l == 0) barrier_arrive(barriers.empty(x_slot));
            barrier_arrive(barriers.empty(turn.stage));
          }
          turn.next(p.slots);
        } else {
          uint4 x[R / 8], w[4];
          const unsigned lane_at = g * kSlotRow + warp * 64 + q * 16;
          if (l == 0) {
            barrier_wait(barriers.full(turn.stage), turn.parity);
            const unsigned a =
                ring + turn.stage * kSlotBytes + lane_at + team * R * kSlotRow;
#pragma unroll
            for (int r = 0; r < R / 8; ++r) {
              const uint4 u = load_shared(a + r * 8 * kSlotRow);
              x[r] = make_uint4(P::operand(u.x), P::operand(u.y),
                                P::operand(u.z), P::operand(u.w));
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(barriers.empty(turn.stage));
            turn.next(p.slots);
          }
          barrier_wait(barriers.full(turn.stage), turn.parity);
          const unsigned b = ring + turn.stage * kSlotBytes + lane_at;
#pragma unroll
          for (int t = 0; t < 4; ++t) w[t] = load_shared(b + t * 8 * kSlotRow);
          __syncwarp();
          if (lane == 0) barrier_arrive(barriers.empty(turn.stage));
          turn.next(p.slots);
          if (l > 0) {
            if (chunk == warp) {
              barrier_wait(barriers.layer(l, team), 0);
            }
            const unsigned a = from + act_offset<R>(chunk * 4 + q, g);
            if (chunk < chunks) {
#pragma unroll
              for (int r = 0; r < R / 8; ++r) x[r] = load_shared(a + r * 128);
            }
          }
          if (chunk < chunks) {
            if (shift == 2) {
              acc.template add<4>(x, w);
            } else if (shift == 1) {
              acc.template add<2>(x, w);
            } else {
              acc.template add<1>(x, w);
            }
          }
        }
      }
      if (!joined) {
        cluster_wait();
        joined = true;
      }

      barrier_wait(barriers.sums_free(team), free_parity);
      free_parity ^= 1;
      const unsigned mine = sums + lane * 16;
      if (warp < partials) {
#pragma unroll
        for (int i = 0; i < R / 16; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (j < tiles) {
              const float(&v)[4] = acc.at[i][j];
              store_shared(
                  mine + ((warp * (R / 16) + i) * tiles + j) * 512,
                  make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]),
                             __float_as_uint(v[2]), __float_as_uint(v[3])));
            }
          }
        }
      }
      sync_team(team);

      for (int t = warp; t < (R / 16) * tiles && finishes; t += kWarps) {
        uint4 u[kWarps];
#pragma unroll
        for (int s = 0; s < kWarps; ++s) {
          u[s] = s < partials
                     ? load_shared(mine + (s * (R / 16) * tiles + t) * 512)
                     : make_uint4(0, 0, 0, 0);
        }
        float v[4] = {};
#pragma unroll
        for (int s = 0; s < kWarps; ++s) {
          v[0] += __uint_as_float(u[s].x);
          v[1] += __uint_as_float(u[s].y);
          v[2] += __uint_as_float(u[s].z);
          v[3] += __uint_as_float(u[s].w);
        }
        const int i = t >> shift;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          // Columns that pad K of the next layer: not a NaN of inf * 0.
          v[e] = n + e % 2 < width ? v[e] + bias[e % 2] : 0.0f;
          // Not fmaxf: a NaN must stay one.
          if ((!last || p.relu_last) && v[e] < 0.0f) v[e] = 0.0f;
        }

        if (last) {
          T* out = static_cast<T*>(p.output);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = first_row + 16 * i + g + 8 * (e / 2);
            if (row < p.rows && n + e % 2 < width) {
              out[(long long)row * p.output_ld + n + e % 2] =
                  from_float<T>(v[e]);
            }
          }
          continue;
        }

        // Lanes of a quad trade until each holds 16 bytes of one row.
        const bool odd = q & 1;
        const int row = 16 * i + g + (odd ? 8 : 0);
        uint4 packet;
        if constexpr (sizeof(T) == 4) {
#pragma unroll
          for (int e = 0; e < 4; ++e) v[e] = P::stored(v[e]);
          const float s0 = __shfl_xor_sync(~0u, odd ? v[0] : v[2], 1);
          const float s1 = __shfl_xor_sync(~0u, odd ? v[1] : v[3], 1);
          packet =
              odd ? make_uint4(__float_as_uint(s0), __float_as_uint(s1),
                               __float_as_uint(v[2]), __float_as_uint(v[3]))
                  : make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]),
                               __float_as_uint(s0), __float_as_uint(s1));
        } else {
          Pack<T, 2> low = {from_float<T>(v[0]), from_float<T>(v[1])};
          Pack<T, 2> high = {from_float<T>(v[2]), from_float<T>(v[3])};
          const unsigned u0 = *reinterpret_cast<unsigned*>(&low);
          const unsigned u1 = *reinterpret_cast<unsigned*>(&high);
          const unsigned s = __shfl_xor_sync(~0u, odd ? u0 : u1, 1);
          const unsigned h0 = odd ? s : u0, h1 = odd ? u1 : s;
          const unsigned t0 = __shfl_xor_sync(~0u, h0, 2);
          const unsigned t1 = __shfl_xor_sync(~0u, h1, 2);
          packet =
              q < 2 ? make_uint4(h0, h1, t0, t1) : make_uint4(t0, t1, h0, h1);
        }
        const int number = tile * kTilePackets + (sizeof(T) == 4 ? q / 2 : 0);
        // Lanes q and q ^ 2 hold the same 16-bit packet and share the readers.
        const int stride = sizeof(T) == 4 ? 1 : 2;
        const unsigned target = to + act_offset<R>(number, row);
        const unsigned barrier = barriers.layer(l + 1, team);
        // Blocks start with different readers, so that none is stormed.
        for (int d = sizeof(T) == 4 ? 0 : q / 2; d < readers; d += stride) {
          int reader = d + start;
          if (reader >= readers) reader -= readers;
          store_remote(map_to_rank(target, reader),
                       map_to_rank(barrier, reader), packet);
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(barriers.sums_free(team));
    }
  }
  if (!joined) cluster_wait();
}

}  // namespace hypatia

#define HYPATIA_FUSED_MLP(name, precision, teams)                    \
  extern "C" __global__ void __launch_bounds__(256 * teams + 128, 1) \
      fused_mlp_##name(const __grid_constant__ MlpParams params) {   \
    hypatia::fused_mlp<hypatia::precision, teams>(params);           \
  }

HYPATIA_FUSED_MLP(bf16_r16, Bf16, 1)
HYPATIA_FUSED_MLP(bf16_r32, Bf16, 2)
HYPATIA_FUSED_MLP(f16_r16, F16, 1)
HYPATIA_FUSED_MLP(f16_r32, F16, 2)
HYPATIA_FUSED_MLP(tf32_r16, Tf32, 1)
HYPATIA_FUSED_MLP(tf32_r32, Tf32, 2)
HYPATIA_FUSED_MLP(f32_r16, F32, 1)
HYPATIA_FUSED_MLP(f32_r32, F32, 2)
