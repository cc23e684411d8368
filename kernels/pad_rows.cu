// A copy whose rows start at multiples of 16 bytes, as the copy engine and
// cuBLASLt's fast kernels want their operands.
//
// Shapes   from [from_rows, cols], to [rows, ld], elements of 2 or 4 bytes; ld
//          is the next multiple of 16 bytes. What is behind the columns and
//          the rows becomes zero. The way back, for a result: from
//          [rows, cols], to the same without gaps.
// Layout   rows contiguous, of any distance and alignment; a result goes to a
//          multiple of 16 bytes.
// Tiles    a thread writes 16 bytes.
// Order    one copy behind another may begin early: the first was launched
//          behind all that wrote the sources, and each ends behind the one in
//          front.

#include "params.h"

namespace hypatia {

template <typename T>
__device__ void pad_rows(const PadRowsParams& p) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  constexpr int kEach = 16 / sizeof(T);
  const int packets = p.ld / kEach;
  const long long at = blockIdx.x * 256ll + threadIdx.x;
  const long long row = at / packets;
  const int col = static_cast<int>(at % packets) * kEach;
  if (row < p.rows) {
    const T* from = static_cast<const T*>(p.from) + row * p.row_stride + col;
    const int cols = row < p.from_rows ? p.cols : 0;
    union {
      T x[kEach];
      uint4 packet;
    };
#pragma unroll
    for (int i = 0; i < kEach; i++) x[i] = col + i < cols ? from[i] : T(0);
    static_cast<uint4*>(p.to)[at] = packet;
  }
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <typename T>
__device__ void unpad_rows(const PadRowsParams& p) {
  constexpr int kEach = 16 / sizeof(T);
  const long long all = static_cast<long long>(p.rows) * p.cols;
  const long long at = (blockIdx.x * 256ll + threadIdx.x) * kEach;
  if (at >= all) return;
  const long long row = at / p.cols;
  int col = static_cast<int>(at - row * p.cols);
  const T* from = static_cast<const T*>(p.from) + row * p.row_stride + col;
  T* to = static_cast<T*>(p.to) + at;
  union {
    T x[kEach];
    uint4 packet;
  };
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    x[i] = at + i < all ? *from : T(0);
    const bool ends = ++col == p.cols;
    from += ends ? p.row_stride - p.cols + 1 : 1;
    col = ends ? 0 : col;
  }
  if (at + kEach <= all) {
    *reinterpret_cast<uint4*>(to) = packet;
    return;
  }
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    if (at + i < all) to[i] = x[i];
  }
}

}  // namespace hypatia

extern "C" __global__ void __launch_bounds__(256)
    pad_rows_2(const __grid_constant__ PadRowsParams p) {
  hypatia::pad_rows<unsigned short>(p);
}

extern "C" __global__ void __launch_bounds__(256)
    pad_rows_4(const __grid_constant__ PadRowsParams p) {
  hypatia::pad_rows<unsigned int>(p);
}

extern "C" __global__ void __launch_bounds__(256)
    unpad_rows_2(const __grid_constant__ PadRowsParams p) {
  hypatia::unpad_rows<unsigned short>(p);
}

extern "C" __global__ void __launch_bounds__(256)
    unpad_rows_4(const __grid_constant__ PadRowsParams p) {
  hypatia::unpad_rows<unsigned int>(p);
}
