// fused_mlp in ATen's own operations, as composite.h for one layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpp/mlp.h"

namespace hypatia::composite {

// The result alone.
at::Tensor mlp(const at::Tensor& input, at::TensorList weights,
               const Biases& biases, bool relu_last);

// The result, and the activations as MlpLayout has them.
std::tuple<at::Tensor, at::Tensor> mlp_forward(const at::Tensor& input,
                                               at::TensorList weights,
                                               const Biases& biases,
                                               bool relu_last);

// Both again without in-place operations, for transforms.
at::Tensor mlp_functional(const at::Tensor& input, at::TensorList weights,
                          const Biases& biases, bool relu_last);
std::tuple<at::Tensor, at::Tensor> mlp_forward_functional(
    const at::Tensor& input, at::TensorList weights, const Biases& biases,
    bool relu_last);

// The gradients of input, weights and biases where `mask` asks for them and
// something flows, undefined elsewhere; differentiable. grad_output and
// grad_activations, the gradients of the two results, may be undefined.
// `output` only where the last layer has a ReLU.
std::vector<at::Tensor> mlp_backward(const at::Tensor& grad_output,
                                     const at::Tensor& grad_activations,
                                     const at::Tensor& input,
                                     at::TensorList weights,
                                     const at::Tensor& activations,
                                     const std::optional<at::Tensor>& output,
                                     const MlpMask& mask);

// fused_mlp_backward with its argument checks: a kernel as it is registered.
std::vector<at::Tensor> checked_mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const c10::List<bool>& mask);

}  // namespace hypatia::composite
