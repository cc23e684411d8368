// The kernels of kernels/tensor_gemm.cu without LibTorch around them, for
// compute-sanitizer: every kernel over odd sizes, with and without a bias, and
// results that the copy engine can store and that it cannot; each launch
// overlaps the one in front. Compared with fp64 on the host.
//
//   nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -I kernels
//   tensor_gemm_test.cu

#include <algorithm>

#include "harness.h"

#include "tensor_gemm.cu"

namespace {

struct Case {
  int m, n, k;
  bool bias, relu;
};

template <typename T, typename Kernel>
int run(const char* name, Kernel kernel, int groups, int cols, bool left_t,
        bool right_t, const Case& c) {
  // Stored with k contiguous, or with the other dimension.
  const auto left = rounded<T>(numbers(c.m, c.k, 1));
  const auto right = rounded<T>(numbers(c.n, c.k, 2));
  const auto bias = rounded<T>(numbers(1, c.n, 3));
  const Buffer a(left), b(right), e(bias);
  Buffer d(sizeof(T) * c.m * c.n);
  check(cudaMemset(d.data, 0xff, d.bytes), "memset");  // NaN
  const auto type = std::is_same<T, float>() ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
                    : std::is_same<T, __half>()
                        ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                        : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const int run = 128 / sizeof(T);  // elements
  const auto operand = [&](const Buffer& m, bool t, int other, int box_runs) {
    return t ? boxes(m.data, type, sizeof(T), other, c.k, run, run)
             : boxes(m.data, type, sizeof(T), c.k, other, run, box_runs);
  };
  const auto left_map = operand(a, left_t, c.m, 64 * groups);
  const auto right_map = operand(b, right_t, c.n, cols);
  const bool by_map = c.n * sizeof(T) % 16 == 0;
  const auto d_map =
      by_map ? boxes(d.data, type, sizeof(T), c.n, c.m, std::min(cols, run), 64)
             : hypatia::TensorMap{};
  TensorGemmParams p{};
  p.bias = c.bias ? e.data : nullptr, p.d = d.data;
  p.m = c.m, p.n = c.n, p.k = c.k, p.relu = c.relu, p.early = 1;
  p.row_tiles = (c.m + 64 * groups - 1) / (64 * groups), p.by_map = by_map;
  const int shared =
      ((groups == 1 && cols < 128 ? 96 : 200) << 10) + 1024 + 512;
  check(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "attribute");
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = unsigned(p.row_tiles * ((c.n + cols - 1) / cols));
  config.blockDim = unsigned(128 * groups + 32);
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute, config.numAttrs = 1;
  for (int again = 0; again < 2; again++) {
    check(cudaLaunchKernelEx(&config, kernel, left_map, right_map, d_map, p),
          name);
  }
  check(cudaDeviceSynchronize(), name);
  const auto got = d.read<T>();
  const double u_out = std::is_same<T, float>()    ? 0x1p-24
                       : std::is_same<T, __half>() ? 0x1p-11
                                                   : 0x1p-8;
  // Of the operands: TF32 has 11 bits.
  const double u_in = std::is_same<T, float>() ? 0x1p-11 : 0;
  int wrong = 0;
  for (int r = 0; r < c.m; r++) {
    for (int i = 0; i < c.n; i++) {
      double sum = 0, scale = 0;
      for (int k = 0; k < c.k; k++) {
        const double x =
            hypatia::to_float(left[left_t ? k * c.m + r : r * c.k + k]);
        const double w =
            hypatia::to_float(right[right_t ? k * c.n + i : i * c.k + k]);
        sum += x * w, scale += std::fabs(x * w);
      }
      if (c.bias) sum += hypatia::to_float(bias[i]);
      if (c.relu && sum < 0) sum = 0;
      const double value = hypatia::to_float(got[r * c.n + i]);
      const double bound =
          (2 * (c.k + 1) * 0x1p-24 + 2.01 * u_in) * (scale + 1) +
          u_out * std::fabs(sum);
      wrong += !(std::fabs(value - sum) <= bound + 1e-7);
    }
  }
  if (wrong)
    std::printf("%s %d x %d x %d: %d wrong\n", name, c.m, c.n, c.k, wrong);
  return wrong != 0;
}

}  // namespace

int main() {
  int failed = 0, ran = 0;
  for (const Case& c :
       {Case{64, 32, 64, true, true}, Case{200, 136, 1000, true, false},
        Case{72, 264, 40, false, true}}) {
#define RUN(name, T, groups, cols, layout, left_t, right_t)                   \
  failed += run<T>(#name "_" #groups "x" #cols "_" #layout,                   \
                   tensor_gemm_##name##_##groups##x##cols##_##layout, groups, \
                   cols, left_t, right_t, c);                                 \
  ran++;
#define RUN_FORWARD(name, T)             \
  RUN(name, T, 1, 32, nn, false, false)  \
  RUN(name, T, 1, 64, nn, false, false)  \
  RUN(name, T, 1, 128, nn, false, false) \
  RUN(name, T, 2, 64, nn, false, false)  \
  RUN(name, T, 2, 128, nn, false, false)
#define RUN_ALL(name, T)                \
  RUN_FORWARD(name, T)                  \
  RUN(name, T, 1, 64, nt, false, true)  \
  RUN(name, T, 1, 128, nt, false, true) \
  RUN(name, T, 2, 128, nt, false, true) \
  RUN(name, T, 1, 64, tt, true, true)   \
  RUN(name, T, 1, 128, tt, true, true)  \
  RUN(name, T, 2, 128, tt, true, true)
    RUN_ALL(bf16, __nv_bfloat16)
    RUN_ALL(f16, __half)
    RUN_FORWARD(tf32, float)
  }
  // Rows of the result that do not start on 16 bytes.
  for (const Case& c :
       {Case{1, 10, 256, true, false}, Case{130, 63, 72, true, true}}) {
    RUN(bf16, __nv_bfloat16, 1, 32, nn, false, false)
    RUN(f16, __half, 1, 64, nn, false, false)
    RUN(tf32, float, 1, 64, nn, false, false)
    RUN(bf16, __nv_bfloat16, 2, 128, nn, false, false)
  }
  std::printf("%d passed, %d failed\n", ran - failed, failed);
  return failed != 0;
}
