// CPU key, and every device without a key of its own: kernels of ours where
// they take the call, else ATen.
#include <torch/library.h>

#include "cpp/check.h"
#include "cpp/composite.h"
#include "cpp/composite_mlp.h"
#include "cpp/cpu_kernels.h"
#include "cpp/register.h"

namespace hypatia {
namespace {

at::Tensor fused_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias) {
  check_linear_relu(input, weight, bias);
  if (auto output = cpu_kernels::linear_relu(input, weight, bias)) {
    return *output;
  }
  return composite::linear_relu(input, weight, bias);
}

at::Tensor fused_mlp(const at::Tensor& input, at::TensorList weights,
                     const Biases& biases, bool relu_last) {
  check_mlp(input, weights, biases);
  if (auto output = cpu_kernels::mlp(input, weights, biases, relu_last)) {
    return *output;
  }
  return composite::mlp(input, weights, biases, relu_last);
}

std::tuple<at::Tensor, at::Tensor> fused_mlp_forward(const at::Tensor& input,
                                                     at::TensorList weights,
                                                     const Biases& biases,
                                                     bool relu_last) {
  check_mlp(input, weights, biases);
  if (auto results =
          cpu_kernels::mlp_forward(input, weights, biases, relu_last)) {
    return *results;
  }
  return composite::mlp_forward(input, weights, biases, relu_last);
}

composite::Gradients fused_linear_relu_backward(const at::Tensor& grad_output,
                                                const at::Tensor& input,
                                                const at::Tensor& weight,
                                                const at::Tensor& output,
                                                std::array<bool, 3> mask) {
  check_linear_relu_backward(grad_output, input, weight, output);
  if (auto gradients = cpu_kernels::linear_relu_backward(
          grad_output, input, weight, output, mask)) {
    return *gradients;
  }
  return composite::linear_relu_backward(grad_output, input, weight, output,
                                         mask);
}

std::vector<at::Tensor> fused_mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const c10::List<bool>& mask) {
  check_mlp_backward(grad_output, input, weights, activations, output, mask);
  const MlpMask wanted(mask);
  if (auto gradients = cpu_kernels::mlp_backward(grad_output, input, weights,
                                                 activations, output, wanted)) {
    return *gradients;
  }
  return wanted.pick(
      composite::mlp_backward(grad_output, /*grad_activations=*/{}, input,
                              weights, activations, output, wanted));
}

void register_kernels(torch::Library& m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &fused_linear_relu);
  m.impl("fused_linear_relu_backward", &fused_linear_relu_backward);
  m.impl("fused_mlp", &fused_mlp);
  m.impl("fused_mlp_forward", &fused_mlp_forward);
  m.impl("fused_mlp_backward", &fused_mlp_backward);
}

TORCH_LIBRARY_IMPL(hypatia, CPU, m) {
  register_kernels(m);
  cpu_kernels::measure();
}

// Also what a layout that no device has a kernel for meets: check's sentence.
TORCH_LIBRARY_IMPL(hypatia, CompositeExplicitAutograd, m) {
  register_kernels(m);
}

}  // namespace
}  // namespace hypatia
