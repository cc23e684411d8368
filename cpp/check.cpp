#include "cpp/check.h"

#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>

namespace hypatia {
namespace {

bool supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf ||
         type == at::kBFloat16;
}

}  // namespace

namespace checks {

std::ostream& operator<<(std::ostream& out, const Name& name) {
  out << name.text;
  return name.index < 0 ? out : out << '[' << name.index << ']';
}

void check_kind(const char* op, const Name& name, const at::Tensor& t) {
  TORCH_CHECK(t.defined(), "hypatia::", op, ": expected a tensor for ", name,
              ", got none");
  TORCH_CHECK(t.layout() == at::kStrided, "hypatia::", op,
              ": expected a strided ", name, ", got layout ", t.layout());
  TORCH_CHECK(supported(t.scalar_type()), "hypatia::", op, ": expected ", name,
              " of dtype Float, Double, Half or BFloat16, got ",
              t.scalar_type());
}

void check_like_input(const char* op, const Name& name, const at::Tensor& t,
                      const at::Tensor& input) {
  check_kind(op, name, t);
  TORCH_CHECK(t.scalar_type() == input.scalar_type(), "hypatia::", op,
              ": expected ", name, " of input's dtype ", input.scalar_type(),
              ", got ", t.scalar_type());
  TORCH_CHECK(t.device() == input.device(), "hypatia::", op, ": expected ",
              name, " on input's device ", input.device(), ", got ",
              t.device());
}

bool same_size(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(b).expect_true(__FILE__, __LINE__);
}

void check_result_shape(const char* op, const Name& name, const at::Tensor& t,
                        const at::Tensor& input, const at::Tensor& weight) {
  check_like_input(op, name, t, input);
  const auto expected = output_sizes(input, weight);
  bool same = t.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) {
    same = same_size(t.sym_size(static_cast<int64_t>(i)), expected[i]);
  }
  TORCH_CHECK(same, "hypatia::", op, ": expected ", name, " of shape ",
              c10::SymIntArrayRef(expected), ", got ", t.sym_sizes());
}

}  // namespace checks

using namespace checks;

namespace {

void check_input_and_weight(const char* op, const at::Tensor& input,
                            const at::Tensor& weight) {
  check_kind(op, "input", input);
  check_like_input(op, "weight", weight, input);
  TORCH_CHECK(input.dim() >= 1, "hypatia::", op,
              ": expected input of shape [*, K], got a scalar");
  TORCH_CHECK(weight.dim() == 2, "hypatia::", op,
              ": expected weight of shape [N, K], got ", weight.sym_sizes());
  TORCH_CHECK(same_size(weight.sym_size(1), input.sym_size(-1)),
              "hypatia::", op, ": expected weight of shape [N, ",
              input.sym_size(-1), "] for input ", input.sym_sizes(), ", got ",
              weight.sym_sizes());
}

}  // namespace

void check_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias) {
  constexpr const char* op = "fused_linear_relu";
  check_input_and_weight(op, input, weight);
  if (bias.has_value() && bias->defined()) {
    check_like_input(op, "bias", *bias, input);
    TORCH_CHECK(
        bias->dim() == 1 && same_size(bias->sym_size(0), weight.sym_size(0)),
        "hypatia::", op, ": expected bias of shape [", weight.sym_size(0),
        "], got ", bias->sym_sizes());
  }
}

void check_linear_relu_backward(const at::Tensor& grad_output,
                                const at::Tensor& input,
                                const at::Tensor& weight,
                                const at::Tensor& output) {
  constexpr const char* op = "fused_linear_relu_backward";
  check_input_and_weight(op, input, weight);
  check_result_shape(op, "grad_output", grad_output, input, weight);
  check_result_shape(op, "output", output, input, weight);
}

c10::SymDimVector output_sizes(const at::Tensor& input,
                               const at::Tensor& weight) {
  c10::SymDimVector sizes(input.sym_sizes().begin(), input.sym_sizes().end());
  sizes.back() = weight.sym_size(0);
  return sizes;
}

}  // namespace hypatia
