// The kernels of kernels/cluster_fp32.cu without LibTorch around them, for
// compute-sanitizer.
//
//   nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -I kernels
//   cluster_fp32_test.cu

#include "cluster_case.h"

#include "cluster_fp32.cu"

int main() {
  int failed = 0, ran = 0;
  for (const Case& c : cases()) {
    for (const bool special : {false, true}) {
#define HYPATIA_RUN(rows)                                                   \
  ran++;                                                                    \
  failed += Chain<float, rows, 32>{"fp32", CU_TENSOR_MAP_DATA_TYPE_FLOAT32, \
                                   320, 4 * rows * 32 * 4, true}            \
                .run(cluster_fp32_##rows, c, special);
      HYPATIA_RUN(8)
      HYPATIA_RUN(16)
      HYPATIA_RUN(24)
      HYPATIA_RUN(40)
    }
  }
  std::printf("%d passed, %d failed\n", ran - failed, failed);
  return failed != 0;
}
