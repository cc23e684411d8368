// Products of one warp on the tensor cores, for four precisions.
//
// All work on packets of 16 bytes along K: lane (g, q) = (lane / 4, lane % 4)
// holds, of row g, the q-th 16 bytes of a 64-byte chunk. Words 0 and 1 feed
// one product, words 2 and 3 the next. This deals the values of K to the
// products in another order than memory's, the same one for both operands.
#pragma once

#include "convert.cuh"

namespace hypatia {

__device__ inline unsigned round_to_tf32(unsigned bits) {
  unsigned r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(bits)));
  return r;
}

struct Bf16 {
  using Element = __nv_bfloat16;
  static constexpr bool kExact = false;
  static __device__ unsigned operand(unsigned w) { return w; }
  static __device__ void mma(float (&d)[4], const unsigned (&a)[4],
                             const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

struct F16 {
  using Element = __half;
  static constexpr bool kExact = false;
  static __device__ unsigned operand(unsigned w) { return w; }
  static __device__ void mma(float (&d)[4], const unsigned (&a)[4],
                             const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

struct Tf32 {
  using Element = float;
  static constexpr bool kExact = false;
  // The tensor core would cut the low bits off, at four times the error.
  static __device__ unsigned operand(unsigned w) { return round_to_tf32(w); }
  static __device__ float stored(float x) {
    return __uint_as_float(round_to_tf32(__float_as_uint(x)));
  }
  static __device__ void mma(float (&d)[4], const unsigned (&a)[4],
                             const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

struct F32 {
  using Element = float;
  static constexpr bool kExact = true;  // strict fp32: no tensor cores
  static __device__ unsigned operand(unsigned w) { return w; }
  static __device__ float stored(float x) { return x; }
};

}  // namespace hypatia
