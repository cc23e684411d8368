// The operators on tensor handles, for the C ABI and the Rust wrappers.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <memory>

namespace hypatia::bridge {

using at::Tensor;
struct Gradients;

std::unique_ptr<at::Tensor> call_fused_linear_relu(const at::Tensor& input,
                                                   const at::Tensor& weight,
                                                   const at::Tensor* bias);

Gradients call_fused_linear_relu_backward(const at::Tensor& grad_output,
                                          const at::Tensor& input,
                                          const at::Tensor& weight,
                                          const at::Tensor& output,
                                          std::array<bool, 3> output_mask);

std::unique_ptr<at::Tensor> call_fused_mlp(const at::Tensor& input,
                                           const at::Tensor* const* weights,
                                           const at::Tensor* const* biases,
                                           size_t layers, bool relu_last);

}  // namespace hypatia::bridge
