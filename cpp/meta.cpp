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

TORCH_LIBRARY_IMPL(hypatia, Meta, m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &fused_linear_relu);
  m.impl("fused_linear_relu_backward", &fused_linear_relu_backward);
}

}  // namespace
}  // namespace hypatia
