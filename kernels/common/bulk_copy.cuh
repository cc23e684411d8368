// Hopper's copy engine: tiles described by a tensor map, and plain runs of
// bytes, to one block's shared memory or to several of the cluster at once.
#pragma once

#include "cluster.cuh"

namespace hypatia {

// What cuTensorMapEncodeTiled writes (CUtensorMap).
struct alignas(64) TensorMap {
  unsigned long long words[16];
};

__device__ inline void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box at (x, y), x along the contiguous dimension; what lies outside the
// tensor reads as zero and counts as bytes.
__device__ inline void copy_box(unsigned to, const TensorMap& map, int x, int y,
                                unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// As copy_box to the blocks of the cluster in `mask`, at the same place in
// each, counted on the barrier at the same place in each.
__device__ inline void copy_box_to(unsigned to, const TensorMap& map, int x,
                                   int y, unsigned barrier,
                                   unsigned short mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(mask)
      : "memory");
}

// The other way: a box of shared memory, as swizzled, to (x, y); what lies
// outside of the tensor is not written.
__device__ inline void store_box(const TensorMap& map, int x, int y,
                                 unsigned from) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], "
      "[%3];" ::"l"(&map),
      "r"(x), "r"(y), "r"(from)
      : "memory");
}

// Until shared memory has been read for this thread's stores so far.
__device__ inline void finish_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Until this thread's stores so far are in global memory, for it to see.
__device__ inline void complete_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// `bytes` (a multiple of 16) from a multiple of 16.
__device__ inline void copy_bytes(unsigned to, const void* from, unsigned bytes,
                                  unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// The same to the blocks of the cluster in `mask`.
__device__ inline void copy_bytes_to(unsigned to, const void* from,
                                     unsigned bytes, unsigned barrier,
                                     unsigned short mask) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes."
      "multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "h"(mask)
      : "memory");
}

// Arrives on a barrier of any block of the cluster (map_to_rank).
__device__ inline void barrier_arrive_remote(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier)
               : "memory");
}

}  // namespace hypatia
