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

template <c10::DeviceType device, c10::DispatchKey key>
void register_for(torch::Library& m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &fused_linear_relu<device, key>);
  m.impl("fused_linear_relu_backward",
         &fused_linear_relu_backward<device, key>);
}

TORCH_LIBRARY_IMPL(hypatia, AutocastCPU, m) {
  register_for<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(hypatia, AutocastCUDA, m) {
  register_for<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>(m);
}

}  // namespace
}  // namespace hypatia
