// The nodes of the autograd graph. Hand-written, because
// torch::autograd::Function does not work under torch.func.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/version.h>

#include <array>
#include <memory>
#include <string>

namespace hypatia {

// Node ownership changed in LibTorch 2.13.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
template <typename T>
using NodePtr = c10::intrusive_ptr<T>;
template <typename T>
NodePtr<T> make_node() {
  return c10::make_intrusive<T>();
}
#else
template <typename T>
using NodePtr = std::shared_ptr<T>;
template <typename T>
NodePtr<T> make_node() {
  return std::shared_ptr<T>(new T(), torch::autograd::deleteNode);
}
#endif

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// The gradients of fused_linear_relu where `mask` asks for them. input and
// weight may be stand-ins where no wanted gradient reads them.
variable_list gradients(const at::Tensor& grad_output, const at::Tensor& input,
                        const at::Tensor& weight, const at::Tensor& output,
                        std::array<bool, 3> mask);

// Puts a tensor of the right shape, whose elements nobody reads, where input
// or weight was not saved.
void complete(at::Tensor& input, at::Tensor& weight, const at::Tensor& output);

// The gradients of fused_linear_relu_backward's grad_output, input, weight and
// output from those of its three results; undefined means zero.
variable_list second_gradients(const variable_list& grads,
                               const at::Tensor& grad_output,
                               const at::Tensor& input,
                               const at::Tensor& weight,
                               const at::Tensor& output,
                               std::array<bool, 4> mask);

// d fused_linear_relu: edges to input, weight, bias.
struct FusedLinearReluBackward : public torch::autograd::Node {
  SavedVariable input;   // only if the weight's gradient is wanted
  SavedVariable weight;  // only if the input's gradient is wanted
  SavedVariable output;

  std::array<bool, 3> mask() const;  // which gradients this run wants
  std::string name() const override { return "FusedLinearReluBackward"; }
  variable_list apply(variable_list&& grads) override;
  void release_variables() override;
  void compiled_args(
      torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  variable_list apply_with_saved(
      const variable_list& grads,
      torch::dynamo::autograd::SwapSavedVariables& saved) override;
};

// d fused_linear_relu_backward: edges to grad_output, input, weight, output
// (the last gets none: ReLU's mask is piecewise constant).
struct FusedLinearReluDoubleBackward : public torch::autograd::Node {
  SavedVariable grad_output;
  SavedVariable input;
  SavedVariable weight;
  SavedVariable output;

  std::array<bool, 4> mask() const;
  std::string name() const override { return "FusedLinearReluDoubleBackward"; }
  variable_list apply(variable_list&& grads) override;
  void release_variables() override;
  void compiled_args(
      torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  variable_list apply_with_saved(
      const variable_list& grads,
      torch::dynamo::autograd::SwapSavedVariables& saved) override;
};

}  // namespace hypatia
