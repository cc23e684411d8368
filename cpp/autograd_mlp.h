// The node of fused_mlp in the autograd graph; see autograd.h.
#pragma once

#include <optional>
#include <vector>

#include "cpp/autograd.h"
#include "cpp/mlp.h"

namespace hypatia {

// d fused_mlp_forward: edges to input, weights, biases. Both results count as
// differentiable: a second derivative reaches the activations that the first
// was computed from, and comes back here through them.
struct FusedMlpBackward : public torch::autograd::Node {
  // What the node's gradients are computed from.
  struct Saved {
    at::Tensor input;
    std::vector<at::Tensor> weights;
    at::Tensor activations;
    std::optional<at::Tensor> output;
  };

  SavedVariable input;  // only if the first weight's gradient is wanted
  std::vector<SavedVariable> weights;  // each if something in front is wanted
  SavedVariable activations;
  SavedVariable output;  // only behind a last ReLU
  std::vector<c10::SymInt> input_sizes;
  std::vector<c10::SymInt> widths;  // rows of each weight
  bool relu_last = false;

  MlpMask mask() const;  // which gradients this run wants
  Saved unpack();        // with stand-ins for what was not saved
  std::string name() const override { return "FusedMlpBackward"; }
  variable_list apply(variable_list&& grads) override;
  void release_variables() override;
  void compiled_args(
      torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  variable_list apply_with_saved(
      const variable_list& grads,
      torch::dynamo::autograd::SwapSavedVariables& saved) override;
};

// The gradients of input, weights and biases where `mask` asks for them, from
// those of the two results; undefined means zero.
variable_list mlp_gradients(const variable_list& grads,
                            const FusedMlpBackward::Saved& saved,
                            const MlpMask& mask);

}  // namespace hypatia
