// The kernels of kernels/cluster_mlp.cu without LibTorch around them, for
// compute-sanitizer: odd sizes, several tiles of a layer in one block, idle
// blocks, rings shorter and longer than what goes through them, and results
// that the copy engine can store and that it cannot. Every layer is compared
// with fp64 on the host, from what the kernel stored of the layer in front.
//
//   nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -I kernels
//   cluster_mlp_test.cu

#include "harness.h"

#include "cluster_mlp.cu"

namespace {

struct Case {
  int rows;
  std::vector<int> widths;
  int cluster, stages;
  bool bias;
};

template <typename T, int kRows, typename Kernel>
int run(const char* name, Kernel kernel, const Case& c) {
  const int layers = static_cast<int>(c.widths.size()) - 1;
  const auto type = std::is_same<T, float>() ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
                    : std::is_same<T, __half>()
                        ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                        : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const int run = 128 / sizeof(T);  // elements
  const int result = kRows * 64 * sizeof(T), block = kRows * 128;
  hypatia::ChainMaps maps = {};
  ClusterMlpParams p{};
  std::vector<std::vector<T>> weights, biases;
  std::vector<Buffer*> memory, results;
  const auto keep = [&](Buffer* b) {
    memory.push_back(b);
    return b->data;
  };
  const auto map_of = [&](const void* data, int cols, int rows, int box) {
    return boxes(data, type, sizeof(T), cols, rows, run, box);
  };
  const auto input = rounded<T>(numbers(c.rows, c.widths[0], 1));
  p.by_map = c.widths.back() * sizeof(T) % 16 == 0;
  maps.activation[0] =
      map_of(keep(new Buffer(input)), c.widths[0], c.rows, kRows);
  for (int i = 0; i < layers; i++) {
    const int k = c.widths[i], n = c.widths[i + 1];
    weights.push_back(rounded<T>(numbers(n, k, 2 + i), 1.0f / std::sqrt(k)));
    biases.push_back(rounded<T>(numbers(1, n, 30 + i)));
    maps.weight[i] = map_of(keep(new Buffer(weights[i])), k, n, 64);
    auto* to = new Buffer(sizeof(T) * c.rows * n);
    check(cudaMemset(to->data, 0xff, to->bytes), "memset");  // NaN
    results.push_back(to), keep(to);
    if (i + 1 < layers || p.by_map) {
      maps.activation[i + 1] = map_of(to->data, n, c.rows, kRows);
    }
    auto& layer = p.layer[i];
    layer.bias = c.bias ? keep(new Buffer(biases[i])) : nullptr;
    layer.n = n, layer.relu = i + 1 < layers;
    layer.chunks = (k + run - 1) / run, layer.tiles = (n + 63) / 64;
    if (i > 0) {
      int& bytes = i % 2 ? p.odd_bytes : p.even_bytes;
      bytes = std::max(bytes, p.layer[i - 1].tiles * result);
    }
  }
  const int first = (p.layer[0].chunks + 1) / 2 *
                    ((p.layer[0].tiles + c.cluster - 1) / c.cluster);
  p.stages = c.stages;
  p.even_bytes =
      std::max((p.even_bytes / block + 1) / 2, std::min(p.stages, first)) * 2 *
      block;
  p.even_blocks = p.even_bytes / block;
  p.d = results.back()->data, p.m = c.rows, p.layers = layers;
  const int shared =
      2048 + result + p.even_bytes + p.odd_bytes + p.stages * (32 << 9);
  check(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "attribute");
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(c.cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = unsigned((c.rows + kRows - 1) / kRows * c.cluster);
  config.blockDim = 192, config.dynamicSmemBytes = shared;
  config.attrs = &attribute, config.numAttrs = 1;
  for (int again = 0; again < 2; again++) {
    check(cudaLaunchKernelEx(&config, kernel, maps, p), name);
  }
  check(cudaDeviceSynchronize(), name);
  int wrong = 0;
  auto x = input;
  for (int i = 0; i < layers; i++) {
    const auto got = results[i]->read<T>();
    wrong += wrong_of<T>(x, weights[i], biases[i], got, c.rows, c.widths[i + 1],
                         c.widths[i], c.bias, i + 1 < layers);
    x = got;
  }
  for (Buffer* b : memory) delete b;
  if (wrong) {
    std::printf(
        "%s, %d rows a cluster, %d rows, %d layers, %d stages: %d wrong\n",
        name, kRows, c.rows, layers, c.stages, wrong);
  }
  return wrong != 0;
}

}  // namespace

// With an argument the first case alone: racecheck follows every look at a
// barrier.
int main(int argc, char**) {
  int failed = 0, ran = 0;
  for (const Case& c : {
           Case{1, {8, 16, 24}, 4, 2, true},
           Case{50, {40, 72, 136, 24}, 4, 4, true},
           Case{33, {136, 264, 72, 10}, 2, 4, false},
           Case{20, {136, 264, 328, 63}, 2, 5, true},
           Case{40, {400, 136, 136, 10}, 2, 4, true},
           Case{40, {40, 520, 40}, 4, 7, true},
           Case{17, {64, 8, 8, 8, 200}, 8, 4, true},
       }) {
    if (argc > 1 && ran == 9) break;
#define HYPATIA_RUN(T, name)                               \
  failed += run<T, 8>(#name, cluster_mlp_##name##_8, c);   \
  failed += run<T, 16>(#name, cluster_mlp_##name##_16, c); \
  failed += run<T, 32>(#name, cluster_mlp_##name##_32, c); \
  ran += 3;
    HYPATIA_RUN(__nv_bfloat16, bf16)
    HYPATIA_RUN(__half, f16)
    HYPATIA_RUN(float, tf32)
  }
  std::printf("%d passed, %d failed\n", ran - failed, failed);
  return failed != 0;
}
