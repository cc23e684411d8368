// The ring that brings weights and input to fused_mlp's teams, and its
// barriers.
#pragma once

#include "../params.h"
#include "cluster.cuh"
#include "convert.cuh"
#include "ring.cuh"

namespace hypatia {

constexpr int kRows = 16;              // of a team
constexpr int kWarps = 8;              // of a team
constexpr int kProducers = 4;          // warps that fetch, for all teams
constexpr int kThreads = 32 * kWarps;  // of a team
constexpr int kSlab = 8 * 64;          // bytes of K in a slot: a chunk per warp
constexpr int kSlotRow = kSlab + 64;   // keeps reads free of bank conflicts
constexpr int kSlotBytes = 32 * kSlotRow;
constexpr int kMaxSlots = 32;
constexpr int kMaxTeams = 2;
constexpr int kBarriers = kMlpLayers * kMaxTeams + 2 * kMaxSlots + kMaxTeams;
constexpr int kBarrierBytes = (kBarriers * 8 + 127) / 128 * 128;

struct Barriers {
  unsigned base;
  __device__ unsigned full(int s) const { return base + s * 8; }
  __device__ unsigned empty(int s) const { return base + (kMaxSlots + s) * 8; }
  __device__ unsigned sums_free(int team) const {
    return base + (2 * kMaxSlots + team) * 8;
  }
  __device__ unsigned layer(int l, int team) const {
    return base + (2 * kMaxSlots + kMaxTeams + team * kMlpLayers + l) * 8;
  }
};

// All threads of one team.
__device__ inline void sync_team(int team) {
  if (team == 0) {
    asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
  } else {
    asm volatile("bar.sync 2, %0;" ::"n"(kThreads) : "memory");
  }
}

// The producers' side: everything the block will multiply, in order. The warps
// take turns, so that their overheads overlap.
template <typename T>
struct Producer {
  const Barriers barriers;
  const unsigned ring;
  const int slots;
  const int lane = threadIdx.x % 32;
  // No more warps than slots: a parity tells rounds apart only as long as
  // nobody is two ahead.
  const int takers = min(kProducers, slots);
  int wait = threadIdx.x / 32 < takers ? threadIdx.x / 32 : 1 << 30;
  bool ready = false;  // whether the barriers are known to be made
  bool first_round = true;
  Turn turn;

  // Copies may start before the barriers are made, arrivals may not.
  __device__ void join() {
    if (!ready) __syncthreads();
    ready = true;
  }

  // Rows where only K may be cut off.
  template <int kCount>
  __device__ void copy_rows(unsigned to, const char* from, long long pitch,
                            int bytes) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      copy_async(to + i * kSlotRow, from + i * pitch, bytes);
    }
  }

  // Rows first .. first + count of a matrix, 512 bytes of each, zeros beyond.
  __device__ void fill(const void* matrix, int ld, int first, int count,
                       int limit, int k, int chunks, int slab, bool dense) {
    if (wait-- == 0) {
      wait = takers - 1;
      if (!first_round) {
        join();
        barrier_wait(barriers.empty(turn.stage), turn.parity ^ 1);
      }
      const int at = slab * kSlab + lane * 16;
      const unsigned to = ring + turn.stage * kSlotBytes + lane * 16;
      const long long pitch = (long long)ld * sizeof(T);
      const char* from = static_cast<const char*>(matrix) + first * pitch + at;
      const int bytes = min(16, max(0, k * (int)sizeof(T) - at));
      if (at < chunks * 64) {
        if (dense && first + count <= limit) {
#pragma unroll 1
          for (int r = 0; r < count; r += 8) {
            copy_rows<8>(to + r * kSlotRow, from + r * pitch, pitch, bytes);
          }
        } else {
#pragma unroll 1
          for (int r = 0; r < count; ++r) {
            copy_any(to + r * kSlotRow, from + r * pitch,
                     first + r < limit ? bytes : 0, dense);
          }
        }
      }
      join();
      if (dense) {
        copy_arrive(barriers.full(turn.stage));
      } else {
        barrier_arrive(barriers.full(turn.stage));
      }
    }
    turn.next(slots);
    if (turn.stage == 0) first_round = false;
  }

  __device__ void copy_any(unsigned to, const char* from, int bytes,
                           bool dense) {
    if (dense) {
      copy_async(to, from, bytes);
      return;
    }
    constexpr int kPacket = 16 / sizeof(T);
    Pack<T, kPacket> v;
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      v.at[i] = i * (int)sizeof(T) < bytes ? reinterpret_cast<const T*>(from)[i]
                                           : from_float<T>(0.0f);
    }
    store_shared(to, *reinterpret_cast<uint4*>(&v));
  }

  template <int R>
  __device__ void run(const MlpParams& p, int rank, int blocks, int first_row) {
    for (int l = 0; l < p.layers; ++l) {
      const MlpLayer& m = p.layer[l];
      const int chunks = m.chunks;
      for (int group = rank; group < m.groups; group += blocks) {
        for (int slab = 0; slab * 8 < chunks; ++slab) {
          if (l == 0) {
            for (int r = 0; r < R; r += 32) {
              fill(p.input, p.input_ld, first_row + r, min(32, R - r), p.rows,
                   m.k, chunks, slab, p.input_dense);
            }
          }
          fill(m.weight, m.ld, group << (3 + m.shift), 8 << m.shift, m.n, m.k,
               chunks, slab, m.dense);
        }
      }
    }
    join();
  }
};

}  // namespace hypatia
