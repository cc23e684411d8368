// Autograd key: records the node, runs the operator below autograd, carries
// forward-mode tangents. The same steps as LibTorch's generated kernels.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "cpp/autograd.h"
#include "cpp/composite.h"
#include "cpp/dispatch.h"
#include "cpp/register.h"

namespace hypatia {
namespace {

using torch::autograd::collect_next_edges;
using torch::autograd::compute_requires_grad;
using torch::autograd::isFwGradDefined;
using torch::autograd::set_history;

constexpr uint64_t kLevel = 0;  // the only level of forward-mode AD there is

at::Tensor primal(const at::Tensor& t) { return t._fw_primal(kLevel); }

// The tangent of t, undefined where it has none.
at::Tensor tangent(const at::Tensor& t) {
  return t.defined() ? t._fw_grad(kLevel) : at::Tensor();
}

at::Tensor fused_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias_argument) {
  const at::Tensor bias = bias_argument.value_or(at::Tensor());
  NodePtr<FusedLinearReluBackward> node;
  if (compute_requires_grad(input, weight, bias)) {
    node = make_node<FusedLinearReluBackward>();
    node->set_next_edges(collect_next_edges(input, weight, bias));
    // As linear does: what no wanted gradient reads is not kept, so that a
    // frozen layer frees its input and lets it change.
    if (node->should_compute_output(1)) {
      node->input = SavedVariable(input, /*is_output=*/false);
    }
    if (node->should_compute_output(0)) {
      node->weight = SavedVariable(weight, /*is_output=*/false);
    }
  }
  at::Tensor output = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatch::fused_linear_relu(input, weight, bias_argument);
  }();
  if (node) {
    set_history(output, node);
  }
  if (isFwGradDefined(input) || isFwGradDefined(weight) ||
      isFwGradDefined(bias)) {
    const at::Tensor x_t = tangent(input), w_t = tangent(weight);
    at::Tensor sum;
    if (x_t.defined()) sum = at::linear(x_t, primal(weight));
    if (w_t.defined())
      sum = composite::sum_of(sum, at::linear(primal(input), w_t));
    const at::Tensor b_t = tangent(bias);
    if (b_t.defined()) sum = composite::sum_of(sum, b_t.expand_as(output));
    output._set_fw_grad(at::threshold_backward(sum, output, 0), kLevel,
                        /*is_inplace_op=*/false);
  }
  if (node) {
    node->output = SavedVariable(output, /*is_output=*/true);
  }
  return output;
}

// Tangents of the three gradients, where there are any.
void set_backward_tangents(const at::Tensor& grad_output,
                           const at::Tensor& input, const at::Tensor& weight,
                           const at::Tensor& output,
                           composite::Gradients& gradients) {
  auto& [grad_input, grad_weight, grad_bias] = gradients;
  const at::Tensor y = primal(output);
  const at::Tensor dy_t = tangent(grad_output);
  const at::Tensor x_t = tangent(input), w_t = tangent(weight);
  at::Tensor dz;  // only the tangents of input and weight need it
  if (x_t.defined() || w_t.defined()) {
    dz = at::threshold_backward(primal(grad_output), y, 0);
  }
  const at::Tensor dz_t =
      dy_t.defined() ? at::threshold_backward(dy_t, y, 0) : at::Tensor();
  const auto set = [](const at::Tensor& of, const at::Tensor& value) {
    if (of.defined() && value.defined()) {
      of._set_fw_grad(value, kLevel, /*is_inplace_op=*/false);
    }
  };
  at::Tensor dx_t, dw_t, db_t;
  if (dz_t.defined()) {
    const at::Tensor rows_t = composite::flatten_rows(dz_t);
    dx_t = at::matmul(dz_t, primal(weight));
    dw_t = at::mm(rows_t.t(), composite::flatten_rows(primal(input)));
    db_t = at::sum(rows_t, 0);
  }
  if (w_t.defined()) dx_t = composite::sum_of(dx_t, at::matmul(dz, w_t));
  if (x_t.defined()) {
    dw_t = composite::sum_of(dw_t, at::mm(composite::flatten_rows(dz).t(),
                                          composite::flatten_rows(x_t)));
  }
  set(grad_input, dx_t);
  set(grad_weight, dw_t);
  set(grad_bias, db_t);
}

composite::Gradients fused_linear_relu_backward(const at::Tensor& grad_output,
                                                const at::Tensor& input,
                                                const at::Tensor& weight,
                                                const at::Tensor& output,
                                                std::array<bool, 3> mask) {
  NodePtr<FusedLinearReluDoubleBackward> node;
  if (compute_requires_grad(grad_output, input, weight, output)) {
    node = make_node<FusedLinearReluDoubleBackward>();
    node->set_next_edges(
        collect_next_edges(grad_output, input, weight, output));
    node->grad_output = SavedVariable(grad_output, /*is_output=*/false);
    node->input = SavedVariable(input, /*is_output=*/false);
    node->weight = SavedVariable(weight, /*is_output=*/false);
    node->output = SavedVariable(output, /*is_output=*/false);
  }
  composite::Gradients gradients = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatch::fused_linear_relu_backward(grad_output, input, weight,
                                                output, mask);
  }();
  if (node) {
    const auto& [grad_input, grad_weight, grad_bias] = gradients;
    // Undefined ones count too: apply() expects three inputs.
    set_history({grad_input, grad_weight, grad_bias}, node);
  }
  if (isFwGradDefined(grad_output) || isFwGradDefined(input) ||
      isFwGradDefined(weight)) {
    set_backward_tangents(grad_output, input, weight, output, gradients);
  }
  return gradients;
}

TORCH_LIBRARY_IMPL(hypatia, Autograd, m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &fused_linear_relu);
  m.impl("fused_linear_relu_backward", &fused_linear_relu_backward);
}

}  // namespace
}  // namespace hypatia
