// The operators in ATen's own operations: what every device falls back to, and
// what derivatives are written in.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace hypatia::composite {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// [*, K] -> [M, K], also for 1-D and for zero sizes.
at::Tensor flatten_rows(const at::Tensor& t);

// a + b where either may be undefined, meaning zero.
at::Tensor sum_of(const at::Tensor& a, const at::Tensor& b);

// linear(input, weight, bias), dense.
at::Tensor plain_linear(const at::Tensor& input, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias);

// relu(linear(input, weight, bias)), dense.
at::Tensor linear_relu(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias);

// The same without in-place operations, for transforms.
at::Tensor linear_relu_functional(const at::Tensor& input,
                                  const at::Tensor& weight,
                                  const std::optional<at::Tensor>& bias);

// Gradients where `mask` asks for them, undefined tensors elsewhere.
Gradients linear_relu_backward(const at::Tensor& grad_output,
                               const at::Tensor& input,
                               const at::Tensor& weight,
                               const at::Tensor& output,
                               std::array<bool, 3> mask);

// The same with the operator's argument checks: a kernel as it is registered.
Gradients checked_linear_relu_backward(const at::Tensor& grad_output,
                                       const at::Tensor& input,
                                       const at::Tensor& weight,
                                       const at::Tensor& output,
                                       std::array<bool, 3> mask);

}  // namespace hypatia::composite
