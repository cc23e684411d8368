#include "cpp/composite.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>

#include "cpp/check.h"

namespace hypatia::composite {

at::Tensor flatten_rows(const at::Tensor& t) {
  if (t.dim() == 2) return t;
  c10::SymInt rows = 1;
  for (const auto& size : t.sym_sizes().slice(0, t.dim() - 1)) rows *= size;
  return t.reshape_symint({rows, t.sym_size(-1)});
}

at::Tensor sum_of(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined()) return b;
  return b.defined() ? a.add(b) : a;
}

namespace {

// Two dimensions and a dense bias: otherwise linear may be matmul, then add,
// which rounds a 16-bit result twice. What it returns is ours to overwrite.
at::Tensor linear_of_rows(const at::Tensor& input, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias) {
  const bool has_bias = bias.has_value() && bias->defined();
  return at::linear(
      flatten_rows(input), weight,
      has_bias ? std::make_optional(bias->contiguous()) : std::nullopt);
}

at::Tensor dense_result(const at::Tensor& rows, const at::Tensor& input,
                        const at::Tensor& weight) {
  const at::Tensor output = rows.contiguous();
  return input.dim() == 2 ? output
                          : output.view_symint(output_sizes(input, weight));
}

}  // namespace

at::Tensor plain_linear(const at::Tensor& input, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias) {
  return dense_result(linear_of_rows(input, weight, bias), input, weight);
}

at::Tensor linear_relu(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias) {
  return dense_result(linear_of_rows(input, weight, bias).relu_(), input,
                      weight);
}

at::Tensor linear_relu_functional(const at::Tensor& input,
                                  const at::Tensor& weight,
                                  const std::optional<at::Tensor>& bias) {
  return at::relu(at::linear(input, weight, bias));
}

Gradients linear_relu_backward(const at::Tensor& grad_output,
                               const at::Tensor& input,
                               const at::Tensor& weight,
                               const at::Tensor& output,
                               std::array<bool, 3> mask) {
  at::Tensor grad_input, grad_weight, grad_bias;
  const at::Tensor masked = at::threshold_backward(grad_output, output, 0);
  if (mask[0]) {
    grad_input = at::matmul(masked, weight).contiguous();
  }
  if (mask[1] || mask[2]) {
    const at::Tensor rows = flatten_rows(masked);
    if (mask[1]) {
      grad_weight = at::mm(rows.t(), flatten_rows(input)).contiguous();
    }
    if (mask[2]) {
      grad_bias = at::sum(rows, 0);
    }
  }
  return {grad_input, grad_weight, grad_bias};
}

Gradients checked_linear_relu_backward(const at::Tensor& grad_output,
                                       const at::Tensor& input,
                                       const at::Tensor& weight,
                                       const at::Tensor& output,
                                       std::array<bool, 3> mask) {
  check_linear_relu_backward(grad_output, input, weight, output);
  return linear_relu_backward(grad_output, input, weight, output, mask);
}

}  // namespace hypatia::composite
