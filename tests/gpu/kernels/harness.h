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

// `runs` runs of `run` elements without gaps, in boxes of 64 or 128 bytes of a
// run, swizzled in as many.
inline hypatia::TensorMap boxes(const void* data, CUtensorMapDataType type,
                                size_t size, int run, int runs, int box_run,
                                int box_runs) {
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
  const cuuint64_t strides[] = {run * size};
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

}  // namespace
