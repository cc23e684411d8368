// The kernels of kernels/cluster_mlp.cu without LibTorch around them, for
// compute-sanitizer.
//
//   nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -I kernels
//   cluster_mlp_test.cu

#include "cluster_case.h"

#include "cluster_mlp.cu"

// With an argument the first case alone: racecheck follows every look at a
// barrier.
int main(int argc, char**) {
  int failed = 0, ran = 0;
  for (const Case& c : cases()) {
    if (argc > 1 && ran == 9) break;
#define HYPATIA_RUN(T, name, type, rows)                                       \
  ran++;                                                                       \
  failed +=                                                                    \
      Chain<T, rows, 64>{#name, CU_TENSOR_MAP_DATA_TYPE_##type, 192, 0, false} \
          .run(cluster_mlp_##name##_##rows, c);
#define HYPATIA_RUN_ALL(T, name, type) \
  HYPATIA_RUN(T, name, type, 8)        \
  HYPATIA_RUN(T, name, type, 16)       \
  HYPATIA_RUN(T, name, type, 32)
    HYPATIA_RUN_ALL(__nv_bfloat16, bf16, BFLOAT16)
    HYPATIA_RUN_ALL(__half, f16, FLOAT16)
    HYPATIA_RUN_ALL(float, tf32, TFLOAT32)
  }
  std::printf("%d passed, %d failed\n", ran - failed, failed);
  return failed != 0;
}
