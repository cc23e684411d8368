// Autocast keys: the operators are matrix products, so like linear they run in
// autocast's lower precision.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "cpp/dispatch.h"
#include "cpp/register.h"

namespace hypatia {
namespace {

using at::autocast::cached_cast;

template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor fused_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const auto type = at::autocast::get_autocast_dtype(device);
  return dispatch::fused_linear_relu(cached_cast(type, input, device),
                                     cached_cast(type, weight, device),
                                     cached_cast(type, bias, device));
}

template <c10::DeviceType device, c10::DispatchKey key>
std::tuple<at::Tensor, at::Tensor, at::Tensor> fused_linear_relu_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    const at::Tensor& weight, const at::Tensor& output,
    std::array<bool, 3> mask) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const auto type = at::autocast::get_autocast_dtype(device);
  return dispatch::fused_linear_relu_backward(
      cached_cast(type, grad_output, device), cached_cast(type, input, device),
      cached_cast(type, weight, device), cached_cast(type, output, device),
      mask);
}

Biases cast_each(at::ScalarType type, const Biases& biases,
                 c10::DeviceType device) {
  Biases cast;
  cast.reserve(biases.size());
  for (size_t i = 0; i < biases.size(); ++i) {
    cast.push_back(cached_cast(type, biases.get(i), device));
  }
  return cast;
}

template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor fused_mlp(const at::Tensor& input, at::TensorList weights,
                     const Biases& biases, bool relu_last) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const auto type = at::autocast::get_autocast_dtype(device);
  return dispatch::fused_mlp(cached_cast(type, input, device),
                             cached_cast(type, weights, device),
                             cast_each(type, biases, device), relu_last);
}

template <c10::DeviceType device, c10::DispatchKey key>
std::tuple<at::Tensor, at::Tensor> fused_mlp_forward(const at::Tensor& input,
                                                     at::TensorList weights,
                                                     const Biases& biases,
                                                     bool relu_last) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const auto type = at::autocast::get_autocast_dtype(device);
  return dispatch::fused_mlp_forward(
      cached_cast(type, input, device), cached_cast(type, weights, device),
      cast_each(type, biases, device), relu_last);
}

template <c10::DeviceType device, c10::DispatchKey key>
std::vector<at::Tensor> fused_mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const c10::List<bool>& mask) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const auto type = at::autocast::get_autocast_dtype(device);
  return dispatch::fused_mlp_backward(cached_cast(type, grad_output, device),
                                      cached_cast(type, input, device),
                                      cached_cast(type, weights, device),
                                      cached_cast(type, activations, device),
                                      cached_cast(type, output, device), mask);
}

template <c10::DeviceType device, c10::DispatchKey key>
void register_for(torch::Library& m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &fused_linear_relu<device, key>);
  m.impl("fused_linear_relu_backward",
         &fused_linear_relu_backward<device, key>);
  m.impl("fused_mlp", &fused_mlp<device, key>);
  m.impl("fused_mlp_forward", &fused_mlp_forward<device, key>);
  m.impl("fused_mlp_backward", &fused_mlp_backward<device, key>);
}

TORCH_LIBRARY_IMPL(hypatia, AutocastCPU, m) {
  register_for<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(hypatia, AutocastCUDA, m) {
  register_for<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>(m);
}

}  // namespace
}  // namespace hypatia
