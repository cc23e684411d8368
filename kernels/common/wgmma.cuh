// Hopper's asynchronous products of a warpgroup (128 threads), as wrappers of
// PTX. Accumulators of 64 x N: thread t holds, of rows 16 (t / 32) + (t % 32) /
// 4 and that + 8, columns 8 j + 2 (t % 4) and the next, at d[4 j] and d[4 j +
// 2].
#pragma once

namespace hypatia {

// Orders this thread's register writes before the products that follow.
__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most `kLeft` of the groups committed so far are unfinished.
template <int kLeft>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// Keeps the compiler from moving uses of accumulators across products.
template <int N>
__device__ inline void wgmma_pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Describes an operand in shared memory that is made of blocks of 8 rows by 16
// bytes of k, each 128 bytes on end: the bytes from one block to the next.
__device__ inline unsigned long long wgmma_blocks(unsigned address,
                                                  unsigned along_k,
                                                  unsigned along_rows) {
  return (address & 0x3ffff) >> 4 |
         static_cast<unsigned long long>(along_k >> 4) << 16 |
         static_cast<unsigned long long>(along_rows >> 4) << 32;
}

// Describes an operand in shared memory whose rows of 128 bytes are swizzled as
// the copy engine writes them; `next` is the bytes from 64 elements of the
// contiguous dimension to the next 64 where that is not k.
__device__ inline unsigned long long wgmma_swizzled(unsigned address,
                                                    unsigned next) {
  return (address & 0x3ffff) >> 4 |
         static_cast<unsigned long long>(next >> 4) << 16 |
         static_cast<unsigned long long>(1024 >> 4) << 32 | 1ull << 62;
}

struct Bf16Tag {};
struct F16Tag {};
struct Tf32Tag {};

// clang-format off
#define HYPATIA_D4(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HYPATIA_D8(d, i) HYPATIA_D4(d, i), HYPATIA_D4(d, i + 4)
#define HYPATIA_D16(d, i) HYPATIA_D8(d, i), HYPATIA_D8(d, i + 8)
#define HYPATIA_D32(d, i) HYPATIA_D16(d, i), HYPATIA_D16(d, i + 16)
#define HYPATIA_D64(d, i) HYPATIA_D32(d, i), HYPATIA_D32(d, i + 32)
#define HYPATIA_NAMES4 "%0, %1, %2, %3"
#define HYPATIA_NAMES8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define HYPATIA_NAMES16 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define HYPATIA_NAMES32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HYPATIA_NAMES64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// clang-format on

// d (64 x 128) = a (64 x 16, in registers: rows as the accumulators', columns
// 2 (t % 4), the next, and both + 8) . b (16 x 128) [+ d].
__device__ inline void wgmma_bf16(float (&d)[64], const unsigned (&a)[4],
                                  unsigned long long b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" HYPATIA_NAMES64
      "}, {%64, %65, %66, %67}, %68, add, 1, 1, 0;\n"
      "}\n"
      : HYPATIA_D64(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
        "r"(static_cast<int>(add)));
}

// d (64 x 64) = a (64 x 16, in registers: rows as the accumulators', columns
// 2 (t % 4), the next, and both + 8) . b (16 x 64) [+ d].
__device__ inline void wgmma_bf16(float (&d)[32], const unsigned (&a)[4],
                                  unsigned long long b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" HYPATIA_NAMES32
      "}, {%32, %33, %34, %35}, %36, add, 1, 1, 0;\n"
      "}\n"
      : HYPATIA_D32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
        "r"(static_cast<int>(add)));
}

// d (64 x 32) = a (64 x 16, in registers: rows as the accumulators', columns
// 2 (t % 4), the next, and both + 8) . b (16 x 32) [+ d].
__device__ inline void wgmma_bf16(float (&d)[16], const unsigned (&a)[4],
                                  unsigned long long b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" HYPATIA_NAMES16
      "}, {%16, %17, %18, %19}, %20, add, 1, 1, 0;\n"
      "}\n"
      : HYPATIA_D16(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
        "r"(static_cast<int>(add)));
}

// d (64 x N) += a . b, both in shared memory; `a` is [64, k], `b` is [N, k], k
// contiguous or, with kLeftT or kRightT, the other dimension. 16 of k.
#define HYPATIA_WGMMA(type, name, N, R, a, b, ta, tb)                       \
  template <int kLeftT, int kRightT>                                        \
  __device__ inline void wgmma(float(&d)[R], type, unsigned long long left, \
                               unsigned long long right) {                  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." name     \
                 "." name " {" HYPATIA_NAMES##R                             \
                 "}, %" #a ", %" #b ", 1, 1, 1, %" #ta ", %" #tb ";"        \
                 : HYPATIA_D##R(d, 0)                                       \
                 : "l"(left), "l"(right), "n"(kLeftT), "n"(kRightT));       \
  }

HYPATIA_WGMMA(Bf16Tag, "bf16", 128, 64, 64, 65, 66, 67)
HYPATIA_WGMMA(Bf16Tag, "bf16", 64, 32, 32, 33, 34, 35)
HYPATIA_WGMMA(Bf16Tag, "bf16", 32, 16, 16, 17, 18, 19)
HYPATIA_WGMMA(Bf16Tag, "bf16", 16, 8, 8, 9, 10, 11)
HYPATIA_WGMMA(Bf16Tag, "bf16", 8, 4, 4, 5, 6, 7)
HYPATIA_WGMMA(F16Tag, "f16", 128, 64, 64, 65, 66, 67)
HYPATIA_WGMMA(F16Tag, "f16", 64, 32, 32, 33, 34, 35)
HYPATIA_WGMMA(F16Tag, "f16", 32, 16, 16, 17, 18, 19)
HYPATIA_WGMMA(F16Tag, "f16", 16, 8, 8, 9, 10, 11)
HYPATIA_WGMMA(F16Tag, "f16", 8, 4, 4, 5, 6, 7)

#undef HYPATIA_WGMMA

// The same for fp32 of which the tensor cores use 19 bits: k is contiguous in
// both. 8 of k.
#define HYPATIA_WGMMA_TF32(N, R, a, b)                                         \
  template <int kLeftT, int kRightT>                                           \
  __device__ inline void wgmma(float(&d)[R], Tf32Tag, unsigned long long left, \
                               unsigned long long right) {                     \
    static_assert(!kLeftT && !kRightT, "k is contiguous");                     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N                        \
                 "k8.f32.tf32.tf32 {" HYPATIA_NAMES##R "}, %" #a ", %" #b      \
                                                       ", 1, 1, 1;"            \
                 : HYPATIA_D##R(d, 0)                                          \
                 : "l"(left), "l"(right));                                     \
  }

HYPATIA_WGMMA_TF32(128, 64, 64, 65)
HYPATIA_WGMMA_TF32(64, 32, 32, 33)
HYPATIA_WGMMA_TF32(32, 16, 16, 17)
HYPATIA_WGMMA_TF32(16, 8, 8, 9)
HYPATIA_WGMMA_TF32(8, 4, 4, 5)

#undef HYPATIA_WGMMA_TF32
#undef HYPATIA_D4
#undef HYPATIA_D8
#undef HYPATIA_D16
#undef HYPATIA_D32
#undef HYPATIA_D64
#undef HYPATIA_NAMES4
#undef HYPATIA_NAMES8
#undef HYPATIA_NAMES16
#undef HYPATIA_NAMES32
#undef HYPATIA_NAMES64

}  // namespace hypatia
