#include "cpp/autograd.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include "cpp/composite.h"
#include "cpp/dispatch.h"

namespace hypatia {

variable_list FusedLinearReluBackward::apply(variable_list&& grads) {
  if (!grads[0].defined()) return variable_list(3);
  const std::array<bool, 3> mask = {task_should_compute_output(0),
                                    task_should_compute_output(1),
                                    task_should_compute_output(2)};
  auto [x, w, b] = dispatch::fused_linear_relu_backward(
      grads[0], input.unpack(), weight.unpack(), output.unpack(getptr()), mask);
  return {x, w, b};
}

void FusedLinearReluBackward::release_variables() {
  input.reset_data();
  weight.reset_data();
  output.reset_data();
}

void FusedLinearReluBackward::compiled_args(
    torch::dynamo::autograd::CompiledNodeArgs& args) const {
  args.collect(input, false);
  args.collect(weight, false);
  args.collect(output, true);
}

variable_list FusedLinearReluBackward::apply_with_saved(
    const variable_list& grads,
    torch::dynamo::autograd::SwapSavedVariables& saved) {
  saved.before(input);
  saved.before(weight);
  saved.before(output);
  variable_list result = apply(variable_list(grads));
  saved.after(input);
  saved.after(weight);
  saved.after(output);
  return result;
}

// With dz = mask(dy): the forward was dx = dz W, dW = dzᵀ x, db = Σ dz.
variable_list FusedLinearReluDoubleBackward::apply(variable_list&& grads) {
  const at::Tensor &gx = grads[0], &gw = grads[1], &gb = grads[2];
  const at::Tensor x = input.unpack(), w = weight.unpack();
  const at::Tensor y = output.unpack();
  variable_list result(4);
  if (task_should_compute_output(0)) {
    at::Tensor sum;
    if (gx.defined()) sum = at::linear(gx, w);
    if (gw.defined()) sum = composite::sum_of(sum, at::linear(x, gw));
    // gb broadcasts over the rows.
    if (gb.defined()) sum = composite::sum_of(sum, gb.expand_as(y));
    if (sum.defined()) result[0] = at::threshold_backward(sum, y, 0);
  }
  const bool for_input = task_should_compute_output(1) && gw.defined();
  const bool for_weight = task_should_compute_output(2) && gx.defined();
  if (for_input || for_weight) {
    const at::Tensor dz = at::threshold_backward(grad_output.unpack(), y, 0);
    if (for_input) result[1] = at::matmul(dz, gw);
    if (for_weight) {
      result[2] =
          at::mm(composite::flatten_rows(dz).t(), composite::flatten_rows(gx));
    }
  }
  return result;
}

void FusedLinearReluDoubleBackward::release_variables() {
  grad_output.reset_data();
  input.reset_data();
  weight.reset_data();
  output.reset_data();
}

void FusedLinearReluDoubleBackward::compiled_args(
    torch::dynamo::autograd::CompiledNodeArgs& args) const {
  args.collect(grad_output, false);
  args.collect(input, false);
  args.collect(weight, false);
  args.collect(output, false);
}

variable_list FusedLinearReluDoubleBackward::apply_with_saved(
    const variable_list& grads,
    torch::dynamo::autograd::SwapSavedVariables& saved) {
  saved.before(grad_output);
  saved.before(input);
  saved.before(weight);
  saved.before(output);
  variable_list result = apply(variable_list(grads));
  saved.after(grad_output);
  saved.after(input);
  saved.after(weight);
  saved.after(output);
  return result;
}

}  // namespace hypatia
