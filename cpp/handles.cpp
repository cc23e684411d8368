#include "cpp/handles.h"

#include "cpp/dispatch.h"
#include "hypatia/src/bridge.rs.h"

namespace hypatia::bridge {

std::unique_ptr<at::Tensor> call_fused_linear_relu(const at::Tensor& input,
                                                   const at::Tensor& weight,
                                                   const at::Tensor* bias) {
  const auto optional =
      bias != nullptr ? std::make_optional(*bias) : std::nullopt;
  return std::make_unique<at::Tensor>(
      dispatch::fused_linear_relu(input, weight, optional));
}

Gradients call_fused_linear_relu_backward(const at::Tensor& grad_output,
                                          const at::Tensor& input,
                                          const at::Tensor& weight,
                                          const at::Tensor& output,
                                          std::array<bool, 3> output_mask) {
  auto [x, w, b] = dispatch::fused_linear_relu_backward(
      grad_output, input, weight, output, output_mask);
  const auto owned = [](at::Tensor& t) {
    return t.defined() ? std::make_unique<at::Tensor>(std::move(t)) : nullptr;
  };
  return Gradients{owned(x), owned(w), owned(b)};
}

std::unique_ptr<at::Tensor> call_fused_mlp(const at::Tensor& input,
                                           const at::Tensor* const* weights,
                                           const at::Tensor* const* biases,
                                           size_t layers, bool relu_last) {
  std::vector<at::Tensor> weight_list;
  Biases bias_list;
  for (size_t i = 0; i < layers; ++i) {
    weight_list.push_back(*weights[i]);
    bias_list.push_back(biases[i] != nullptr ? std::make_optional(*biases[i])
                                             : std::nullopt);
  }
  return std::make_unique<at::Tensor>(
      dispatch::fused_mlp(input, weight_list, bias_list, relu_last));
}

}  // namespace hypatia::bridge
