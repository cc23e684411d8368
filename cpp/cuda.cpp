// CUDA key: device guard, checks, allocation; then one call over the bridge.
// What the bridge refuses, ATen computes.
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cpp/check.h"
#include "cpp/composite.h"
#include "cpp/convert.h"
#include "cpp/register.h"
#include "cpp/report.h"
#include "cpp/workspace.h"

namespace hypatia {
namespace {

at::Tensor fused_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias) {
  check_linear_relu(input, weight, bias);
  const c10::OptionalDeviceGuard guard(input.device());
  auto call = make_call(input);
  if (!call || input.numel() == 0 || weight.numel() == 0) {
    return composite::linear_relu(input, weight, bias);
  }
  const MatrixView x = as_matrix(input);
  const MatrixView w = as_matrix(weight);
  const bool has_bias = bias.has_value() && bias->defined();
  const at::Tensor b = has_bias ? bias->contiguous() : at::Tensor();
  const at::Tensor output =
      at::empty_symint(output_sizes(input, weight), input.options());
  const bridge::Layer layer{w.matrix, has_bias ? address(b) : 0,
                            address(output), /*relu=*/true};
  const bridge::Report report =
      with_workspace(*call, [&](const bridge::Call& c) {
        return bridge::linear_relu(c, x.matrix, layer);
      });
  if (done("fused_linear_relu", report)) return output;
  return composite::linear_relu(input, weight, bias);
}

composite::Gradients fused_linear_relu_backward(const at::Tensor& grad_output,
                                                const at::Tensor& input,
                                                const at::Tensor& weight,
                                                const at::Tensor& output,
                                                std::array<bool, 3> mask) {
  check_linear_relu_backward(grad_output, input, weight, output);
  if (!mask[0] && !mask[1] && !mask[2]) return {};
  const c10::OptionalDeviceGuard guard(input.device());
  auto call = make_call(input);
  if (!call || input.numel() == 0 || weight.numel() == 0) {
    return composite::linear_relu_backward(grad_output, input, weight, output,
                                           mask);
  }
  // The mask kernel reads gradients with any strides: y.sum().backward()
  // brings one with none at all.
  const MatrixView dy = as_matrix(grad_output, /*any_strides=*/true);
  // Only what a wanted gradient reads: the other may be a stand-in that a
  // view cannot express, not worth a copy.
  const MatrixView x = mask[1] ? as_matrix(input) : MatrixView{};
  const MatrixView w = mask[0] ? as_matrix(weight) : MatrixView{};
  const at::Tensor y = output.contiguous();
  const auto options = input.options();
  const auto wanted = [&](bool want, at::IntArrayRef sizes) {
    return want ? at::empty(sizes, options) : at::Tensor();
  };
  const at::Tensor masked = wanted(mask[0] || mask[1], y.sizes());
  at::Tensor grad_input = wanted(mask[0], input.sizes());
  at::Tensor grad_weight = wanted(mask[1], weight.sizes());
  at::Tensor grad_bias = wanted(mask[2], {weight.size(0)});
  const auto optional_address = [](const at::Tensor& t) {
    return t.defined() ? address(t) : 0;
  };
  const bridge::LayerBackward layer{x.matrix,
                                    w.matrix,
                                    address(y),
                                    optional_address(masked),
                                    optional_address(grad_input),
                                    optional_address(grad_weight),
                                    optional_address(grad_bias)};
  const bridge::Report report =
      with_workspace(*call, [&](const bridge::Call& c) {
        return bridge::linear_relu_backward(c, dy.matrix, layer);
      });
  if (done("fused_linear_relu_backward", report)) {
    return {grad_input, grad_weight, grad_bias};
  }
  return composite::linear_relu_backward(grad_output, input, weight, output,
                                         mask);
}

TORCH_LIBRARY_IMPL(hypatia, CUDA, m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &fused_linear_relu);
  m.impl("fused_linear_relu_backward", &fused_linear_relu_backward);
}

}  // namespace
}  // namespace hypatia
