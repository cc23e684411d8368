// The kernels of kernels/tensor_chain.cu without LibTorch around them, for
// compute-sanitizer: odd sizes, wide and narrow tiles, several tiles a block,
// with and without a bias, and results that the copy engine can store and that
// it cannot. Every layer is compared with fp64 on the host, from what the
// kernel stored of the layer in front.
//
//   nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -I kernels
//   tensor_chain_test.cu

#include "harness.h"

#include "tensor_chain.cu"

namespace {

struct Case {
  int rows;
  std::vector<int> widths;
  int cols, blocks;
  bool bias;
};

template <typename T, typename Kernel>
int run(const char* name, Kernel kernel, const Case& c) {
  const int layers = static_cast<int>(c.widths.size()) - 1;
  const auto type = std::is_same<T, float>() ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
                    : std::is_same<T, __half>()
                        ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                        : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const int run = 128 / sizeof(T);  // elements
  const int row_tiles = (c.rows + 255) / 256 * 2;
  hypatia::ChainMaps maps = {};
  TensorChainParams p{};
  std::vector<std::vector<T>> weights, biases;
  std::vector<Buffer*> memory;
  const auto keep = [&](Buffer* b) {
    memory.push_back(b);
    return b->data;
  };
  const auto input = rounded<T>(numbers(c.rows, c.widths[0], 1));
  const int last = c.widths.back();
  p.by_map = last * sizeof(T) % 16 == 0;
  std::vector<Buffer*> results;
  const auto map_of = [&](const void* data, int cols, int rows, int box) {
    return boxes(data, type, sizeof(T), cols, rows, run, box);
  };
  maps.activation[0] = map_of(keep(new Buffer(input)), c.widths[0], c.rows, 64);
  for (int i = 0; i < layers; i++) {
    const int k = c.widths[i], n = c.widths[i + 1];
    weights.push_back(rounded<T>(numbers(n, k, 2 + i), 1.0f / std::sqrt(k)));
    biases.push_back(rounded<T>(numbers(1, n, 30 + i)));
    maps.weight[i] = map_of(keep(new Buffer(weights[i])), k, n, c.cols / 2);
    auto* result = new Buffer(sizeof(T) * c.rows * n);
    check(cudaMemset(result->data, 0xff, result->bytes), "memset");  // NaN
    results.push_back(result), keep(result);
    if (i + 1 < layers || p.by_map) {
      maps.activation[i + 1] = map_of(result->data, n, c.rows, 64);
    }
    auto& layer = p.layer[i];
    layer.bias = c.bias ? keep(new Buffer(biases[i])) : nullptr;
    layer.n = n, layer.k = k, layer.relu = i + 1 < layers;
    layer.cols = c.cols, layer.col_tiles = (n + c.cols - 1) / c.cols;
  }
  Buffer done(4 * ((layers - 1) * row_tiles + 1));
  check(cudaMemset(done.data, 0, done.bytes), "memset");
  p.d = results.back()->data, p.done = static_cast<unsigned*>(done.data);
  p.m = c.rows, p.layers = layers, p.row_tiles = row_tiles;
  const int shared = (7 * 32 << 10) + 6 * 16 + 1024;
  check(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "attribute");
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = 2;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = unsigned(c.blocks), config.blockDim = 352;
  config.dynamicSmemBytes = shared;
  config.attrs = attributes, config.numAttrs = 2;
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
  for (const unsigned count : done.read<unsigned>()) wrong += count != 0;
  for (Buffer* b : memory) delete b;
  if (wrong) {
    std::printf("%s %d rows, %d layers: %d wrong\n", name, c.rows, layers,
                wrong);
  }
  return wrong != 0;
}

}  // namespace

int main() {
  int failed = 0, ran = 0;
  for (const Case& c : {
           Case{1, {8, 16, 24}, 64, 2, true},
           Case{200, {72, 136, 200, 64}, 128, 4, true},
           Case{300, {264, 72, 10}, 64, 8, false},
           Case{130, {1000, 136, 63}, 128, 2, true},
           Case{520, {64, 512, 264, 136}, 64, 12, true},
       }) {
    failed += run<__nv_bfloat16>("bf16", tensor_chain_bf16, c);
    failed += run<__half>("f16", tensor_chain_f16, c);
    failed += run<float>("tf32", tensor_chain_tf32, c);
    ran += 3;
  }
  std::printf("%d passed, %d failed\n", ran - failed, failed);
  return failed != 0;
}
