// Layers on the CPU in kernels of ours (src/cpu).
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "cpp/mlp.h"

namespace hypatia::cpu_kernels {

// Finds out which instructions are the fastest here. At load, so that processes
// that fork later compute alike.
void measure();

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

// The wanted gradients of fp32 chains, as fused_mlp_backward returns them; of
// 16-bit ones too where the CPU has no AMX, in fp32 and rounded once.
std::optional<std::vector<at::Tensor>> mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const MlpMask& mask);

// Those of one layer and its ReLU; undefined where the mask says so.
std::optional<std::tuple<at::Tensor, at::Tensor, at::Tensor>>
linear_relu_backward(const at::Tensor& grad_output, const at::Tensor& input,
                     const at::Tensor& weight, const at::Tensor& output,
                     std::array<bool, 3> mask);

}  // namespace hypatia::cpu_kernels
