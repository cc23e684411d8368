// A copy whose rows start at multiples of 16 bytes, as the copy engine and
// cuBLASLt's fast kernels want their operands.
//
// Shapes   from [rows, cols], to [rows, ld], elements of 2 or 4 bytes; ld is
//          the next multiple of 16 bytes. What is behind the columns becomes
//          zero.
// Layout   rows contiguous, of any distance and alignment.
// Tiles    a thread writes 16 bytes.
// Order    one behind another may begin early: the first was launched behind
//          all that wrote the sources, and each ends behind the one in front.

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
    union {
      T x[kEach];
      uint4 packet;
    };
#pragma unroll
    for (int i = 0; i < kEach; i++) x[i] = col + i < p.cols ? from[i] : T(0);
    static_cast<uint4*>(p.to)[at] = packet;
  }
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
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
