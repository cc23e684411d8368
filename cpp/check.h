// Argument checks of every operator, the same on every device and for
// symbolic shapes. One sentence each: op, expected, got.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

namespace hypatia {

// input [*, K], weight [N, K], bias [N].
void check_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias);

// grad_output and output [*, N]; input and weight as above.
void check_linear_relu_backward(const at::Tensor& grad_output,
                                const at::Tensor& input,
                                const at::Tensor& weight,
                                const at::Tensor& output);

// [*, N] for input [*, K] and weight [N, K].
c10::SymDimVector output_sizes(const at::Tensor& input,
                               const at::Tensor& weight);

}  // namespace hypatia
