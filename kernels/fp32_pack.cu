// The image of a matrix for fp32_gemm.cu (common/split.cuh).
//
// Shapes   right [k, n] with any strides.
// K order  "rows": group g holds k = 8 (i / 2) + 2 g + i % 2 at place i, which
//          is how a thread of fp32_gemm_rows reads 16 bytes of a row.
//          "columns": in natural order.
// Tiles    a block of 256 threads splits 64 columns (blockIdx.x) by 32 k
//          (blockIdx.y); a thread 8 k.
// Targets  sm_90a

#include "common/cluster.cuh"
#include "common/split.cuh"
#include "params.h"

namespace hypatia {

template <bool kPermuted>
__device__ void fp32_pack(const Fp32PackParams& p) {
  wait_for_grid_in_front();
  let_next_grid_start();
  // Consecutive threads read consecutive addresses: k if that is contiguous.
  const int item = threadIdx.x;
  const bool k_first = p.k_stride == 1;
  const int group = k_first ? item % 4 : item / 64;
  const long long col = blockIdx.x * 64ll + (k_first ? item / 4 : item % 64);
  const int chunk = blockIdx.y;
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int in_chunk =
        kPermuted ? 8 * (i / 2) + 2 * group + i % 2 : 8 * group + i;
    const long long k = chunk * kImageDepth + in_chunk;
    x[i] = k < p.k && col < p.n ? p.right[k * p.k_stride + col * p.col_stride]
                                : 0.0f;
  }
  unsigned words[3][4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const Pair parts = Pair::exact(x[2 * i], x[2 * i + 1]);
    words[0][i] = parts.high, words[1][i] = parts.middle,
    words[2][i] = parts.low;
  }
  uint4* to = static_cast<uint4*>(p.image) +
              ((chunk * (padded(p.n) / 8ll) + col / 8) * 12 + group) * 8 +
              col % 8;
#pragma unroll
  for (int i = 0; i < 3; i++) {
    to[i * 4 * 8] =
        make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
  }
}

}  // namespace hypatia

extern "C" __global__ void __launch_bounds__(256)
    fp32_pack_rows(const __grid_constant__ Fp32PackParams p) {
  hypatia::fp32_pack<true>(p);
}

extern "C" __global__ void __launch_bounds__(256)
    fp32_pack_columns(const __grid_constant__ Fp32PackParams p) {
  hypatia::fp32_pack<false>(p);
}
