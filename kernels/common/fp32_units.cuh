// What one warp multiplies of strict fp32 at a time, all by itself: 16 of k of
// a tile's weight and of the input, both split in registers (split.cuh).
#pragma once

#include "mma.cuh"
#include "split.cuh"

namespace hypatia {

// Four values of k as operands of the three parts: high, middle, low.
struct Four {
  unsigned part[3][2];
  // The first or the second two.
  __device__ void split(int half, const uint4& v) {
    const Pair p(__uint_as_float(half ? v.z : v.x),
                 __uint_as_float(half ? v.w : v.y));
    part[0][half] = p.high, part[1][half] = p.middle, part[2][half] = p.low;
  }
};

// Tiles of kCols columns by kRows rows, both in shared memory as rows of 128
// bytes, swizzled. Thread (i, q) = (lane / 4, lane % 4) has four of k of every
// eighth row; which four does not matter, if they are the same of both.
template <int kRows, int kCols>
struct Fp32Units {
  static constexpr int kColBlocks = kCols / 16, kRowBlocks = kRows / 8;
  // How many 16 columns are multiplied at once: products that wait for each
  // other take four times as long.
  static constexpr int kAtOnce = kRows <= 16 ? 2 : 1;
  static constexpr int kSteps = kColBlocks / kAtOnce;
  // Whether registers are left to split the next input early.
  static constexpr bool kAhead = kRows <= 24;

  // total[i][j] is 16 columns by 8 rows, as accumulators are.
  using Total = float[kColBlocks][kRowBlocks][4];

  // kCount times 8 rows of shared memory.
  template <int kCount>
  struct Raw {
    uint4 at[kCount];
    __device__ void load(unsigned from) {
#pragma unroll
      for (int j = 0; j < kCount; j++) at[j] = load_shared(from + j * 8 * 128);
    }
    __device__ void split_all(Four (&parts)[kCount]) const {
#pragma unroll
      for (int j = 0; j < kCount; j++) {
        parts[j].split(0, at[j]), parts[j].split(1, at[j]);
      }
    }
  };
  static constexpr int kLefts = 2 * kAtOnce;
  using Left = Four[kLefts];
  using Right = Four[kRowBlocks];

  Raw<kLefts> raw_left;
  Raw<kRowBlocks> raw_right;
  Left left[2];  // in turn
  Right right, next_right;

  // The first unit: where this thread's rows of weight and input begin.
  __device__ void begin(unsigned weight, unsigned input) {
    raw_right.load(input);
    raw_left.load(weight);
    raw_left.split_all(left[0]);
    raw_right.split_all(right);
  }

  // All but the last step of a unit, after which shared memory is not read.
  __device__ void most_of(Total& total, unsigned weight) {
#pragma unroll
    for (int i = 0; i + 1 < kSteps; i++) {
      raw_left.load(weight + (i + 1) * kAtOnce * 16 * 128);
      step<kNextLeft>(total, i);
    }
  }
  // The last one, with another unit behind it, at the two addresses.
  __device__ void last_and_begin(Total& total, unsigned weight,
                                 unsigned input) {
    raw_right.load(input);
    raw_left.load(weight);
    step<kAhead ? kNextBoth : kNextLeft>(total, kSteps - 1);
    if constexpr (kAhead) {
#pragma unroll
      for (int j = 0; j < kRowBlocks; j++) right[j] = next_right[j];
    } else {
      raw_right.split_all(right);
    }
    if constexpr (kSteps % 2 == 1) {
#pragma unroll
      for (int j = 0; j < kLefts; j++) left[0][j] = left[1][j];
    }
  }
  __device__ void last(Total& total) { step<kNothing>(total, kSteps - 1); }

 private:
  enum { kNothing, kNextLeft, kNextBoth };

  // Products of kAtOnce times 16 columns, and between them the splitting of
  // what comes next.
  template <int kNext>
  __device__ void step(Total& total, int number) {
    // By size, the small ones first: parts of the weight and of the input.
    constexpr int kParts[6][2] = {{1, 1}, {0, 2}, {2, 0},
                                  {0, 1}, {1, 0}, {0, 0}};
    constexpr int kPairs = kNext == kNothing    ? 0
                           : kNext == kNextLeft ? 2 * kLefts
                                                : 2 * (kLefts + kRowBlocks);
    const Left& a = left[number % 2];
    Left& next = left[(number + 1) % 2];
    float sums[kAtOnce][kRowBlocks][4] = {};
    int pair = 0;
#pragma unroll
    for (int k = 0; k < 6; k++) {
      const int l = kParts[k][0], r = kParts[k][1];
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        const Four &upper = a[2 * i], &lower = a[2 * i + 1];
        const unsigned operand[4] = {upper.part[l][0], lower.part[l][0],
                                     upper.part[l][1], lower.part[l][1]};
#pragma unroll
        for (int j = 0; j < kRowBlocks; j++) {
          Bf16::mma(sums[i][j], operand, right[j].part[r]);
        }
      }
#pragma unroll
      for (; pair < (k + 1) * kPairs / 6; pair++) {
        const int j = pair / 2;
        if (j < kLefts) {
          next[j].split(pair % 2, raw_left.at[j]);
        } else {
          next_right[j - kLefts].split(pair % 2, raw_right.at[j - kLefts]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
#pragma unroll
      for (int j = 0; j < kRowBlocks; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          total[number * kAtOnce + i][j][e] += sums[i][j][e];
        }
      }
    }
  }
};

}  // namespace hypatia
