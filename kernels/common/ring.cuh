// A ring of stages in shared memory, filled by the copy engine: one barrier
// says that a stage is full, one that it is empty.
#pragma once

#include "cluster.cuh"

namespace hypatia {

// A position in a ring, with the parity of its round, where it is known only
// when the kernel runs how many stages there are.
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  __device__ void next(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <int kStages, int kStageBytes>
struct Ring {
  static constexpr int kBytes = kStages * kStageBytes + 16 * kStages;

  unsigned base, barriers;

  // With the barriers behind the stages, or elsewhere.
  __device__ explicit Ring(unsigned base)
      : Ring(base, base + kStages * kStageBytes) {}
  __device__ Ring(unsigned base, unsigned barriers)
      : base(base), barriers(barriers) {}

  // A position, with the parity of its round.
  struct Turn {
    int stage = 0;
    unsigned parity = 0;
    __device__ void next() {
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  };

  __device__ unsigned data(int stage) const {
    return base + stage * kStageBytes;
  }
  __device__ unsigned full(int stage) const { return barriers + 16 * stage; }
  __device__ unsigned empty(int stage) const { return full(stage) + 8; }

  // By one thread, before others use it.
  __device__ void make(int readers) const {
    for (int stage = 0; stage < kStages; stage++) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), readers);
    }
    barrier_init_fence();
  }
};

}  // namespace hypatia
