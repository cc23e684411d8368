// What the tests of kernels/cluster_mlp.cu and cluster_fp32.cu share: a chain
// in one launch, every layer of which is compared with fp64 on the host, from
// what the kernel stored of the layer in front.
#pragma once

#include "harness.h"

#include "common/chain_maps.cuh"
#include "params.h"

namespace {

struct Case {
  int rows;
  std::vector<int> widths;
  int cluster, stages;
  bool bias;
};

// Odd sizes, several tiles of a layer in one block, idle blocks, rings shorter
// and longer than what goes through them, and results that the copy engine can
// store and that it cannot.
inline std::vector<Case> cases() {
  return {
      Case{1, {8, 16, 24}, 4, 2, true},
      Case{50, {40, 72, 136, 24}, 4, 4, true},
      Case{33, {136, 264, 72, 10}, 2, 4, false},
      Case{20, {136, 264, 328, 63}, 2, 5, true},
      Case{40, {400, 136, 136, 10}, 2, 4, true},
      Case{40, {40, 520, 40}, 4, 7, true},
      Case{17, {64, 8, 8, 8, 200}, 8, 4, true},
  };
}

// A kernel and what belongs to it.
template <typename T, int kRows, int kCols>
struct Chain {
  const char* name;
  CUtensorMapDataType type;
  int threads;
  int more_shared;  // bytes, behind the ring
  bool strict;      // reads fp32 as it is, with the operands as a parameter

  // 1 if results are wrong. With `special` the input has inf, NaN and what is
  // inf when rounded.
  template <typename Kernel>
  int run(Kernel kernel, const Case& c, bool special = false) const {
    const int layers = static_cast<int>(c.widths.size()) - 1;
    const int run = 128 / sizeof(T);  // elements
    const int result = kRows * kCols * sizeof(T), block = kRows * 128;
    hypatia::ChainMaps maps = {};
    ClusterMlpParams p{};
    ClusterFp32Operands operands{};
    std::vector<std::vector<T>> weights, biases;
    std::vector<Buffer*> memory, results;
    const auto keep = [&](Buffer* b) {
      memory.push_back(b);
      return b->data;
    };
    const auto map_of = [&](const void* data, int cols, int rows, int box) {
      return boxes(data, type, sizeof(T), cols, rows, run, box);
    };
    auto numbers_in = numbers(c.rows, c.widths[0], 1);
    if (special) {
      numbers_in[3] = INFINITY;
      numbers_in[numbers_in.size() / 2] = NAN;
      numbers_in.back() = 3.4e38f;
    }
    const auto input = rounded<T>(numbers_in);
    p.by_map = c.widths.back() * sizeof(T) % 16 == 0;
    void* const from = keep(new Buffer(input));
    maps.activation[0] = map_of(from, c.widths[0], c.rows, kRows);
    operands.input = static_cast<const float*>(from);
    operands.input_ld = c.widths[0];
    for (int i = 0; i < layers; i++) {
      const int k = c.widths[i], n = c.widths[i + 1];
      weights.push_back(rounded<T>(numbers(n, k, 2 + i), 1.0f / std::sqrt(k)));
      biases.push_back(rounded<T>(numbers(1, n, 30 + i)));
      void* const weight = keep(new Buffer(weights[i]));
      maps.weight[i] = map_of(weight, k, n, kCols);
      operands.weight[i] = static_cast<const float*>(weight);
      operands.weight_ld[i] = operands.k[i] = k;
      auto* to = new Buffer(sizeof(T) * c.rows * n);
      check(cudaMemset(to->data, 0xff, to->bytes), "memset");  // NaN
      results.push_back(to), keep(to);
      if (i + 1 < layers || p.by_map) {
        maps.activation[i + 1] = map_of(to->data, n, c.rows, kRows);
      }
      auto& layer = p.layer[i];
      layer.bias = c.bias ? keep(new Buffer(biases[i])) : nullptr;
      layer.n = n, layer.relu = i + 1 < layers;
      layer.chunks = (k + run - 1) / run, layer.tiles = (n + kCols - 1) / kCols;
      if (i > 0) {
        int& bytes = i % 2 ? p.odd_bytes : p.even_bytes;
        bytes = std::max(bytes, p.layer[i - 1].tiles * result);
      }
    }
    const int first = (p.layer[0].chunks + 1) / 2 *
                      ((p.layer[0].tiles + c.cluster - 1) / c.cluster);
    p.stages = c.stages;
    p.even_bytes =
        std::max((p.even_bytes / block + 1) / 2, std::min(p.stages, first)) *
        2 * block;
    p.even_blocks = p.even_bytes / block;
    p.d = results.back()->data, p.m = c.rows, p.layers = layers;
    const int shared = 2048 + result + p.even_bytes + p.odd_bytes +
                       p.stages * 2 * kCols * 128 + more_shared;
    check(cudaFuncSetAttribute(
              kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
          "attribute");
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = unsigned(c.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = unsigned((c.rows + kRows - 1) / kRows * c.cluster);
    config.blockDim = unsigned(threads), config.dynamicSmemBytes = shared;
    config.attrs = &attribute, config.numAttrs = 1;
    void* arguments[] = {&maps, &p, &operands};
    for (int again = 0; again < 2; again++) {
      check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel),
                                arguments),
            name);
    }
    check(cudaDeviceSynchronize(), name);
    int wrong = 0;
    auto x = input;
    for (int i = 0; i < layers; i++) {
      const auto got = results[i]->template read<T>();
      wrong +=
          wrong_of<T>(x, weights[i], biases[i], got, c.rows, c.widths[i + 1],
                      c.widths[i], c.bias, i + 1 < layers, strict);
      x = got;
    }
    for (Buffer* b : memory) delete b;
    if (wrong) {
      std::printf(
          "%s, %d rows a cluster, %d rows, %d layers, %d stages%s: %d wrong\n",
          name, kRows, c.rows, layers, c.stages, special ? ", special" : "",
          wrong);
    }
    return wrong != 0;
  }
};

}  // namespace
