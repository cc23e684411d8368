// What the kernel tests share: device memory, numbers, and matrices as the copy
// engine sees them.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/bulk_copy.cuh"
#include "common/convert.cuh"

namespace {

using Matrix = std::vector<float>;  // row-major

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

struct Buffer {
  explicit Buffer(size_t bytes) : bytes(bytes) {
    check(cudaMalloc(&data, bytes), "malloc");
  }
  template <typename T>
  explicit Buffer(const std::vector<T>& m) : Buffer(m.size() * sizeof(T)) {
    check(cudaMemcpy(data, m.data(), bytes, cudaMemcpyHostToDevice), "copy");
  }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  template <typename T = float>
  std::vector<T> read() const {
    std::vector<T> m(bytes / sizeof(T));
    check(cudaMemcpy(m.data(), data, bytes, cudaMemcpyDeviceToHost), "copy");
    return m;
  }
  float* floats() const { return static_cast<float*>(data); }
  size_t bytes;
  void* data = nullptr;
};

// Between -1 and 1, others for each seed.
inline Matrix numbers(int rows, int cols, unsigned seed) {
  Matrix m(static_cast<size_t>(rows) * cols);
  for (size_t i = 0; i < m.size(); i++) {
    const unsigned h = (static_cast<unsigned>(i) + seed * 977u) * 2654435761u;
    m[i] = static_cast<float>(h >> 8) / (1 << 23) - 1.0f;
  }
  return m;
}

// `runs` runs of `run` elements, without gaps or one every `ld`, in boxes of 64
// or 128 bytes of a run, swizzled in as many.
inline hypatia::TensorMap boxes(const void* data, CUtensorMapDataType type,
                                size_t size, int run, int runs, int box_run,
                                int box_runs, int ld = 0) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                           12000, cudaEnableDefault, &status),
          "entry point");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  alignas(64) hypatia::TensorMap map;
  const cuuint64_t sizes[] = {cuuint64_t(run), cuuint64_t(runs)};
  const cuuint64_t strides[] = {(ld ? ld : run) * size};
  const cuuint32_t box[] = {cuuint32_t(box_run), cuuint32_t(box_runs)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result = encode(
      reinterpret_cast<CUtensorMap*>(&map), type, 2, const_cast<void*>(data),
      sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      box_run * size == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                           : CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    std::exit(std::printf("tensor map: %d\n", result));
  }
  return map;
}

// As elements of a kernel's operands.
template <typename T>
std::vector<T> rounded(const Matrix& from, float scale = 1.0f) {
  std::vector<T> to;
  for (const float x : from) to.push_back(hypatia::from_float<T>(x * scale));
  return to;
}

// How many results of relu(x . wT + bias) are not what fp64 says of them; fp32
// is read as TF32 unless `strict`.
template <typename T>
int wrong_of(const std::vector<T>& x, const std::vector<T>& w,
             const std::vector<T>& bias, const std::vector<T>& got, int rows,
             int n, int k, bool with_bias, bool relu, bool strict = false) {
  const double u_out = std::is_same<T, float>()    ? 0x1p-24
                       : std::is_same<T, __half>() ? 0x1p-11
                                                   : 0x1p-8;
  // Of the operands: TF32 has 11 bits.
  const double u_in = std::is_same<T, float>() && !strict ? 0x1p-11 : 0;
  int wrong = 0;
  for (int r = 0; r < rows; r++) {
    for (int i = 0; i < n; i++) {
      double sum = with_bias ? hypatia::to_float(bias[i]) : 0;
      double scale = std::fabs(sum);
      for (int j = 0; j < k; j++) {
        const double a = hypatia::to_float(x[r * k + j]);
        const double b = hypatia::to_float(w[i * k + j]);
        sum += a * b, scale += std::fabs(a * b);
      }
      if (relu && sum < 0) sum = 0;
      const double bound = (2 * (k + 1) * 0x1p-24 + 2.01 * u_in) * scale +
                           u_out * std::fabs(sum) + 1e-7;
      const double y = hypatia::to_float(got[r * n + i]);
      if (std::isfinite(sum)) {
        wrong += !(std::fabs(y - sum) <= bound);
      } else {
        wrong += !(y == sum || (y != y && sum != sum));
      }
    }
  }
  return wrong;
}

}  // namespace
