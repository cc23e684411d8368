// Meta key: shapes alone, symbolic ones too.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpp/check.h"
#include "cpp/composite.h"
#include "cpp/register.h"

namespace hypatia {
namespace {

at::Tensor fused_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias) {
  check_linear_relu(input, weight, bias);
  return at::empty_symint(output_sizes(input, weight), input.options());
}

composite::Gradients fused_linear_relu_backward(const at::Tensor& grad_output,
                                                const at::Tensor& input,
                                                const at::Tensor& weight,
                                                const at::Tensor& output,
                                                std::array<bool, 3> mask) {
  check_linear_relu_backward(grad_output, input, weight, output);
  const auto options = input.options();
  at::Tensor grad_input, grad_weight, grad_bias;
  if (mask[0]) grad_input = at::empty_symint(input.sym_sizes(), options);
  if (mask[1]) grad_weight = at::empty_symint(weight.sym_sizes(), options);
  if (mask[2]) grad_bias = at::empty_symint({weight.sym_size(0)}, options);
  return {grad_input, grad_weight, grad_bias};
}

at::Tensor fused_mlp(const at::Tensor& input, at::TensorList weights,
                     const Biases& biases, bool) {
  check_mlp(input, weights, biases);
  return at::empty_symint(mlp_output_sizes(input, weights), input.options());
}

std::tuple<at::Tensor, at::Tensor> fused_mlp_forward(const at::Tensor& input,
                                                     at::TensorList weights,
                                                     const Biases& biases,
                                                     bool relu_last) {
  const at::Tensor output = fused_mlp(input, weights, biases, relu_last);
  const c10::SymDimVector total = {MlpLayout::of(input, weights).total};
  return {output, at::empty_symint(total, input.options())};
}

std::vector<at::Tensor> fused_mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const c10::List<bool>& mask) {
  check_mlp_backward(grad_output, input, weights, activations, output, mask);
  const MlpMask wanted(mask);
  std::vector<at::Tensor> gradients;
  const auto add = [&](bool want, c10::SymIntArrayRef sizes) {
    if (want) gradients.push_back(at::empty_symint(sizes, input.options()));
  };
  add(wanted.input(), input.sym_sizes());
  for (size_t i = 0; i < weights.size(); ++i) {
    add(wanted.weight(i), weights[i].sym_sizes());
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    add(wanted.bias(i), {weights[i].sym_size(0)});
  }
  return gradients;
}

TORCH_LIBRARY_IMPL(hypatia, Meta, m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &fused_linear_relu);
  m.impl("fused_linear_relu_backward", &fused_linear_relu_backward);
  m.impl("fused_mlp", &fused_mlp);
  m.impl("fused_mlp_forward", &fused_mlp_forward);
  m.impl("fused_mlp_backward", &fused_mlp_backward);
}

}  // namespace
}  // namespace hypatia
