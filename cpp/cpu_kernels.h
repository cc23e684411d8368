// Layers on the CPU in kernels of ours (src/cpu).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "cpp/mlp.h"

namespace hypatia::cpu_kernels {

// The chain's result, or nothing where ATen's products are the faster or the
// only way: no AVX2, fp64, weights without unit stride along K, no elements.
// Arguments are checked.
std::optional<at::Tensor> mlp(const at::Tensor& input, at::TensorList weights,
                              const Biases& biases, bool relu_last);

// The result and the activations, as composite::mlp_forward.
std::optional<std::tuple<at::Tensor, at::Tensor>> mlp_forward(
    const at::Tensor& input, at::TensorList weights, const Biases& biases,
    bool relu_last);

// One layer and its ReLU.
std::optional<at::Tensor> linear_relu(const at::Tensor& input,
                                      const at::Tensor& weight,
                                      const std::optional<at::Tensor>& bias);

}  // namespace hypatia::cpu_kernels
