// Argument checks of fused_mlp and its backward.
#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>

#include "cpp/check.h"

namespace hypatia {

using namespace checks;

namespace {

void check_input_and_weights(const char* op, const at::Tensor& input,
                             at::TensorList weights) {
  check_kind(op, "input", input);
  TORCH_CHECK(input.dim() >= 1, "hypatia::", op,
              ": expected input of shape [*, K], got a scalar");
  TORCH_CHECK(!weights.empty(), "hypatia::", op,
              ": expected weights of at least one layer, got none");
  c10::SymInt width = input.sym_size(-1);
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    const Name name("weights", static_cast<int64_t>(i));
    check_like_input(op, name, weight, input);
    TORCH_CHECK(weight.dim() == 2, "hypatia::", op, ": expected ", name,
                " of shape [N, K], got ", weight.sym_sizes());
    if (!same_size(weight.sym_size(1), width)) {
      if (i == 0) {
        TORCH_CHECK(false, "hypatia::", op, ": expected ", name,
                    " of shape [N, ", width, "] for input ", input.sym_sizes(),
                    ", got ", weight.sym_sizes());
      }
      TORCH_CHECK(false, "hypatia::", op, ": expected ", name, " of shape [N, ",
                  width, "] behind weights[", i - 1, "] ",
                  weights[i - 1].sym_sizes(), ", got ", weight.sym_sizes());
    }
    width = weight.sym_size(0);
  }
}

}  // namespace

void check_mlp(const at::Tensor& input, at::TensorList weights,
               const Biases& biases) {
  constexpr const char* op = "fused_mlp";
  check_input_and_weights(op, input, weights);
  TORCH_CHECK(biases.size() == weights.size(), "hypatia::", op,
              ": expected as many biases as weights, ", weights.size(),
              ", got ", biases.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const std::optional<at::Tensor> bias = biases.get(i);
    if (!bias.has_value() || !bias->defined()) continue;
    const Name name("biases", static_cast<int64_t>(i));
    check_like_input(op, name, *bias, input);
    const c10::SymInt width = weights[i].sym_size(0);
    TORCH_CHECK(bias->dim() == 1 && same_size(bias->sym_size(0), width),
                "hypatia::", op, ": expected ", name, " of shape [", width,
                "], got ", bias->sym_sizes());
  }
}

void check_mlp_backward(const at::Tensor& grad_output, const at::Tensor& input,
                        at::TensorList weights, const at::Tensor& activations,
                        const std::optional<at::Tensor>& output,
                        const c10::List<bool>& mask) {
  constexpr const char* op = "fused_mlp_backward";
  check_input_and_weights(op, input, weights);
  check_result_shape(op, "grad_output", grad_output, input, weights.back());
  check_like_input(op, "activations", activations, input);
  const c10::SymInt total = MlpLayout::of(input, weights).total;
  TORCH_CHECK(
      activations.dim() == 1 && same_size(activations.sym_size(0), total),
      "hypatia::", op, ": expected activations of shape [", total,
      "], as the forward call returned, got ", activations.sym_sizes());
  if (output.has_value() && output->defined()) {
    check_result_shape(op, "output", *output, input, weights.back());
  }
  TORCH_CHECK(mask.size() == 1 + 2 * weights.size(), "hypatia::", op,
              ": expected output_mask of ", 1 + 2 * weights.size(),
              " entries, one for input and two a layer, got ", mask.size());
}

}  // namespace hypatia
