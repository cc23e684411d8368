// Element types: 16-bit storage, fp32 arithmetic.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace hypatia {

__host__ __device__ inline float to_float(float x) { return x; }
__host__ __device__ inline float to_float(__half x) { return __half2float(x); }
__host__ __device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename T>
__host__ __device__ T from_float(float x);
template <>
__host__ __device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__host__ __device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__host__ __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// V elements that move as one access.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

}  // namespace hypatia
