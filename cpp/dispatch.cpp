#include "cpp/dispatch.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace hypatia::dispatch {

at::Tensor fused_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("hypatia::fused_linear_relu", "")
          .typed<decltype(fused_linear_relu)>();
  return op.call(input, weight, bias);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fused_linear_relu_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    const at::Tensor& weight, const at::Tensor& output,
    std::array<bool, 3> mask) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("hypatia::fused_linear_relu_backward", "")
          .typed<decltype(fused_linear_relu_backward)>();
  return op.call(grad_output, input, weight, output, mask);
}

at::Tensor fused_mlp(const at::Tensor& input, at::TensorList weights,
                     const Biases& biases, bool relu_last) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hypatia::fused_mlp", "")
                             .typed<decltype(fused_mlp)>();
  return op.call(input, weights, biases, relu_last);
}

std::tuple<at::Tensor, at::Tensor> fused_mlp_forward(const at::Tensor& input,
                                                     at::TensorList weights,
                                                     const Biases& biases,
                                                     bool relu_last) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("hypatia::fused_mlp_forward", "")
          .typed<decltype(fused_mlp_forward)>();
  return op.call(input, weights, biases, relu_last);
}

std::vector<at::Tensor> fused_mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const c10::List<bool>& mask) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("hypatia::fused_mlp_backward", "")
          .typed<decltype(fused_mlp_backward)>();
  return op.call(grad_output, input, weights, activations, output, mask);
}

}  // namespace hypatia::dispatch
