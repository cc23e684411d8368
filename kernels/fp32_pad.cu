// A copy whose rows start at multiples of 16 bytes, as the copy engine wants
// the left operand of fp32_gemm.cu.
//
// Shapes   from [rows, cols] fp32, to [rows, ld], ld the next multiple of 4;
//          what is behind the columns becomes zero.
// Layout   rows contiguous, of any distance and alignment.
// Tiles    a thread copies 4 columns.
// Order    does not let the kernel behind begin early: that of fp32_gemm.cu
//          reads its left operand before it waits, and the one between them
//          waits for this one.
// Targets  sm_90a

#include "common/cluster.cuh"
#include "params.h"

extern "C" __global__ void __launch_bounds__(256)
    fp32_pad(const __grid_constant__ Fp32PadParams p) {
  hypatia::wait_for_grid_in_front();
  const int fours = p.ld / 4;
  const long long at = blockIdx.x * 256ll + threadIdx.x;
  const long long row = at / fours;
  const int col = static_cast<int>(at % fours) * 4;
  if (row >= p.rows) return;
  const float* from = p.from + row * p.row_stride + col;
  float x[4];
#pragma unroll
  for (int i = 0; i < 4; i++) x[i] = col + i < p.cols ? from[i] : 0.0f;
  reinterpret_cast<float4*>(p.to)[at] = make_float4(x[0], x[1], x[2], x[3]);
}
