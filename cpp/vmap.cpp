// torch.func.vmap: under a batching level the operators are ATen's own
// operations, which have batching rules. Without this vmap would loop.
#include <torch/library.h>

#include "cpp/check.h"
#include "cpp/composite.h"
#include "cpp/composite_mlp.h"
#include "cpp/register.h"

namespace hypatia {
namespace {

at::Tensor fused_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias) {
  check_linear_relu(input, weight, bias);
  return composite::linear_relu_functional(input, weight, bias);
}

at::Tensor fused_mlp(const at::Tensor& input, at::TensorList weights,
                     const Biases& biases, bool relu_last) {
  check_mlp(input, weights, biases);
  return composite::mlp_functional(input, weights, biases, relu_last);
}

std::tuple<at::Tensor, at::Tensor> fused_mlp_forward(const at::Tensor& input,
                                                     at::TensorList weights,
                                                     const Biases& biases,
                                                     bool relu_last) {
  check_mlp(input, weights, biases);
  return composite::mlp_forward_functional(input, weights, biases, relu_last);
}

void register_mlp(torch::Library& m) {
  m.impl("fused_mlp", &fused_mlp);
  m.impl("fused_mlp_forward", &fused_mlp_forward);
  m.impl("fused_mlp_backward", &composite::checked_mlp_backward);
}

TORCH_LIBRARY_IMPL(hypatia, FuncTorchBatchedDecomposition, m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &fused_linear_relu);
  m.impl("fused_linear_relu_backward",
         &composite::checked_linear_relu_backward);
  register_mlp(m);
}

// The older vmap, behind torch.autograd.grad(is_grads_batched=True): it loops
// over what it does not know, but not with lists of tensors.
TORCH_LIBRARY_IMPL(hypatia, Batched, m) {
  if (!registers_operators()) return;
  register_mlp(m);
}

}  // namespace
}  // namespace hypatia
