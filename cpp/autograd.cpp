#include "cpp/autograd.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/threshold_backward.h>

#include "cpp/composite.h"
#include "cpp/dispatch.h"

namespace hypatia {

variable_list gradients(const at::Tensor& grad_output, const at::Tensor& input,
                        const at::Tensor& weight, const at::Tensor& output,
                        std::array<bool, 3> mask) {
  if (!grad_output.defined()) return variable_list(3);
  auto [grad_input, grad_weight, grad_bias] =
      dispatch::fused_linear_relu_backward(grad_output, input, weight, output,
                                           mask);
  return {grad_input, grad_weight, grad_bias};
}

void complete(at::Tensor& input, at::Tensor& weight, const at::Tensor& output) {
  const c10::SymInt k = weight.defined()  ? weight.sym_size(1)
                        : input.defined() ? input.sym_size(-1)
                                          : c10::SymInt(1);
  const auto stand_in = [&](c10::SymIntArrayRef sizes) {
    return at::empty_symint({1}, output.options()).expand_symint(sizes);
  };
  if (!input.defined()) {
    c10::SymDimVector sizes(output.sym_sizes().begin(),
                            output.sym_sizes().end());
    sizes.back() = k;
    input = stand_in(sizes);
  }
  if (!weight.defined()) weight = stand_in({output.sym_size(-1), k});
}

// With dz = mask(dy): the forward was dx = dz W, dW = dzᵀ x, db = Σ dz.
variable_list second_gradients(const variable_list& grads,
                               const at::Tensor& grad_output,
                               const at::Tensor& input,
                               const at::Tensor& weight,
                               const at::Tensor& output,
                               std::array<bool, 4> mask) {
  const at::Tensor &gx = grads[0], &gw = grads[1], &gb = grads[2];
  variable_list result(4);
  if (mask[0]) {
    at::Tensor sum;
    if (gx.defined()) sum = at::linear(gx, weight);
    if (gw.defined()) sum = composite::sum_of(sum, at::linear(input, gw));
    if (gb.defined()) sum = composite::sum_of(sum, gb.expand_as(output));
    if (sum.defined()) result[0] = at::threshold_backward(sum, output, 0);
  }
  const bool for_input = mask[1] && gw.defined();
  const bool for_weight = mask[2] && gx.defined();
  if (for_input || for_weight) {
    const at::Tensor dz = at::threshold_backward(grad_output, output, 0);
    if (for_input) result[1] = at::matmul(dz, gw);
    if (for_weight) {
      result[2] =
          at::mm(composite::flatten_rows(dz).t(), composite::flatten_rows(gx));
    }
  }
  return result;
}

std::array<bool, 3> FusedLinearReluBackward::mask() const {
  return {task_should_compute_output(0), task_should_compute_output(1),
          task_should_compute_output(2)};
}

variable_list FusedLinearReluBackward::apply(variable_list&& grads) {
  at::Tensor x = input.unpack(), w = weight.unpack();
  const at::Tensor y = output.unpack(getptr());
  complete(x, w, y);
  return gradients(grads[0], x, w, y, mask());
}

void FusedLinearReluBackward::release_variables() {
  input.reset_data();
  weight.reset_data();
  output.reset_data();
}

std::array<bool, 4> FusedLinearReluDoubleBackward::mask() const {
  return {task_should_compute_output(0), task_should_compute_output(1),
          task_should_compute_output(2), task_should_compute_output(3)};
}

variable_list FusedLinearReluDoubleBackward::apply(variable_list&& grads) {
  return second_gradients(grads, grad_output.unpack(), input.unpack(),
                          weight.unpack(), output.unpack(), mask());
}

void FusedLinearReluDoubleBackward::release_variables() {
  grad_output.reset_data();
  input.reset_data();
  weight.reset_data();
  output.reset_data();
}

}  // namespace hypatia
