// Autograd key of fused_mlp. Forward mode and derivatives of the backward are
// ATen's own operations: only first derivatives have a fused path.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "cpp/autograd_mlp.h"
#include "cpp/check.h"
#include "cpp/composite_mlp.h"
#include "cpp/dispatch.h"
#include "cpp/register.h"

namespace hypatia {
namespace {

using torch::autograd::collect_next_edges;
using torch::autograd::compute_requires_grad;
using torch::autograd::isFwGradDefined;
using torch::autograd::isFwGradDefinedTensorList;
using torch::autograd::set_history;

std::vector<at::Tensor> defined_or_not(const Biases& biases) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(biases.size());
  for (size_t i = 0; i < biases.size(); ++i) {
    tensors.push_back(biases.get(i).value_or(at::Tensor()));
  }
  return tensors;
}

bool has_tangent(const at::Tensor& input, at::TensorList weights,
                 const Biases& biases) {
  return isFwGradDefined(input) || isFwGradDefinedTensorList(weights) ||
         isFwGradDefinedTensorList(biases);
}

bool requires_grad(const at::Tensor& input, at::TensorList weights,
                   const Biases& biases) {
  return compute_requires_grad(input, weights, defined_or_not(biases));
}

// Runs the forward and records its node.
std::tuple<at::Tensor, at::Tensor> recorded(const at::Tensor& input,
                                            at::TensorList weights,
                                            const Biases& biases,
                                            bool relu_last) {
  auto [output, activations] = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatch::fused_mlp_forward(input, weights, biases, relu_last);
  }();
  const auto node = make_node<FusedMlpBackward>();
  node->set_next_edges(
      collect_next_edges(input, weights, defined_or_not(biases)));
  node->relu_last = relu_last;
  node->input_sizes = input.sym_sizes().vec();
  std::vector<bool> bits;
  for (size_t i = 0; i < 1 + 2 * weights.size(); ++i) {
    bits.push_back(node->should_compute_output(i));
  }
  const MlpMask mask(std::move(bits));
  // As linear does: what no wanted gradient reads is not kept, so that a
  // frozen layer frees its input and lets it change.
  if (mask.weight(0)) {
    node->input = SavedVariable(input, /*is_output=*/false);
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    node->widths.push_back(weights[i].sym_size(0));
    node->weights.push_back(mask.in_front_of(i)
                                ? SavedVariable(weights[i], /*is_output=*/false)
                                : SavedVariable());
  }
  set_history(output, node);
  set_history(activations, node);
  if (relu_last) node->output = SavedVariable(output, /*is_output=*/true);
  node->activations = SavedVariable(activations, /*is_output=*/true);
  return {output, activations};
}

at::Tensor fused_mlp(const at::Tensor& input, at::TensorList weights,
                     const Biases& biases, bool relu_last) {
  if (has_tangent(input, weights, biases)) {
    check_mlp(input, weights, biases);
    return composite::mlp_functional(input, weights, biases, relu_last);
  }
  if (requires_grad(input, weights, biases)) {
    return std::get<0>(recorded(input, weights, biases, relu_last));
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch::fused_mlp(input, weights, biases, relu_last);
}

std::tuple<at::Tensor, at::Tensor> fused_mlp_forward(const at::Tensor& input,
                                                     at::TensorList weights,
                                                     const Biases& biases,
                                                     bool relu_last) {
  if (has_tangent(input, weights, biases)) {
    check_mlp(input, weights, biases);
    return composite::mlp_forward_functional(input, weights, biases, relu_last);
  }
  if (requires_grad(input, weights, biases)) {
    return recorded(input, weights, biases, relu_last);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch::fused_mlp_forward(input, weights, biases, relu_last);
}

std::vector<at::Tensor> fused_mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const c10::List<bool>& mask) {
  if (compute_requires_grad(grad_output, input, weights, activations) ||
      isFwGradDefined(grad_output) || isFwGradDefined(input) ||
      isFwGradDefinedTensorList(weights) || isFwGradDefined(activations)) {
    return composite::checked_mlp_backward(grad_output, input, weights,
                                           activations, output, mask);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch::fused_mlp_backward(grad_output, input, weights, activations,
                                      output, mask);
}

TORCH_LIBRARY_IMPL(hypatia, Autograd, m) {
  if (!registers_operators()) return;
  m.impl("fused_mlp", &fused_mlp);
  m.impl("fused_mlp_forward", &fused_mlp_forward);
  m.impl("fused_mlp_backward", &fused_mlp_backward);
}

}  // namespace
}  // namespace hypatia
