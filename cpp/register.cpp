// Schemas, nothing else. Each dispatch key has its own file.
#include "cpp/register.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>

#include "cpp/graph/optimize.h"
#include "hypatia/src/bridge.rs.h"

namespace hypatia {

bool registers_operators() {
  // Asked before this copy defines anything, whichever of its files comes
  // first: an operator that exists now is another copy's.
  static const bool first = !c10::Dispatcher::singleton()
                                 .findSchema({"hypatia::fused_linear_relu", ""})
                                 .has_value();
  return first;
}

namespace {

std::string build_info() { return std::string(bridge::build_info()); }

// A fragment, not TORCH_LIBRARY: the latter refuses a second copy by aborting.
TORCH_LIBRARY_FRAGMENT(hypatia, m) {
  if (!registers_operators()) return;
  const std::vector<at::Tag> compliant = {at::Tag::pt2_compliant_tag};
  m.def(
      "fused_linear_relu(Tensor input, Tensor weight, Tensor? bias=None) -> "
      "Tensor",
      compliant);
  m.def(
      "fused_linear_relu_backward(Tensor grad_output, Tensor input, Tensor "
      "weight, Tensor output, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
      compliant);
  m.def(
      "fused_mlp(Tensor input, Tensor[] weights, Tensor?[] biases, bool "
      "relu_last=False) -> Tensor",
      compliant);
  // For training, with autograd or without: with the activations, as MlpLayout
  // has them.
  m.def(
      "fused_mlp_forward(Tensor input, Tensor[] weights, Tensor?[] biases, "
      "bool relu_last=False) -> (Tensor, Tensor)",
      compliant);
  // A list of the wanted gradients alone: lists of tensors have no holes.
  m.def(
      "fused_mlp_backward(Tensor grad_output, Tensor input, Tensor[] weights, "
      "Tensor activations, Tensor? output, bool[] output_mask) -> Tensor[]",
      compliant);
  m.def("build_info() -> str", &build_info, compliant);
  // Boxed: no typed call can pass `Any`.
  m.def("optimize(Any module) -> Any", compliant);
  m.def("explain(Any module) -> str", compliant);
  // The same with arguments of forward, whose sizes predictions learn from.
  m.def("optimize_for(Any module, Any[] example_inputs) -> Any", compliant);
  m.def("explain_for(Any module, Any[] example_inputs) -> str", compliant);
  m.impl("optimize", torch::CppFunction::makeFromBoxedFunction<&optimize>());
  m.impl("explain", torch::CppFunction::makeFromBoxedFunction<&explain>());
  m.impl("optimize_for",
         torch::CppFunction::makeFromBoxedFunction<&optimize_for>());
  m.impl("explain_for",
         torch::CppFunction::makeFromBoxedFunction<&explain_for>());
}

}  // namespace
}  // namespace hypatia
