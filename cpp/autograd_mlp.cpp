#include "cpp/autograd_mlp.h"

#include <ATen/ops/empty.h>

#include "cpp/composite_mlp.h"
#include "cpp/dispatch.h"
#include "cpp/gradients.h"

namespace hypatia {

variable_list mlp_gradients(const variable_list& grads,
                            const FusedMlpBackward::Saved& saved,
                            const MlpMask& mask) {
  const at::Tensor &grad_output = grads[0], &grad_activations = grads[1];
  const bool nothing = mask.lowest() == mask.layers();
  if (nothing || (!grad_output.defined() && !grad_activations.defined())) {
    return variable_list(mask.bits().size());
  }
  // Only second derivatives have gradients of the activations.
  if (grad_activations.defined()) {
    return composite::mlp_backward(grad_output, grad_activations, saved.input,
                                   saved.weights, saved.activations,
                                   saved.output, mask);
  }
  const SharedGradients may_share;
  return mask.spread(dispatch::fused_mlp_backward(
      grad_output, saved.input, saved.weights, saved.activations, saved.output,
      mask.list()));
}

MlpMask FusedMlpBackward::mask() const {
  std::vector<bool> bits;
  for (size_t i = 0; i < 1 + 2 * widths.size(); ++i) {
    bits.push_back(task_should_compute_output(i));
  }
  return MlpMask(std::move(bits));
}

FusedMlpBackward::Saved FusedMlpBackward::unpack() {
  Saved saved;
  saved.activations = activations.unpack(getptr());
  if (relu_last) saved.output = output.unpack(getptr());
  // Elements that nobody reads, in the right shape.
  const auto or_stand_in = [&](at::Tensor t, c10::SymIntArrayRef sizes) {
    if (t.defined()) return t;
    const auto options = saved.activations.options();
    return at::empty_symint({1}, options).expand_symint(sizes);
  };
  saved.input = or_stand_in(input.unpack(), input_sizes);
  c10::SymInt width = input_sizes.back();
  for (size_t i = 0; i < widths.size(); ++i) {
    saved.weights.push_back(
        or_stand_in(weights[i].unpack(), {widths[i], width}));
    width = widths[i];
  }
  return saved;
}

variable_list FusedMlpBackward::apply(variable_list&& grads) {
  return mlp_gradients(grads, unpack(), mask());
}

void FusedMlpBackward::release_variables() {
  input.reset_data();
  for (SavedVariable& weight : weights) weight.reset_data();
  activations.reset_data();
  output.reset_data();
}

}  // namespace hypatia
