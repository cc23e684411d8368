// torch.func.vmap: under a batching level the operators are ATen's own
// operations, which have batching rules. Without this vmap would loop.
#include <torch/library.h>

#include "cpp/check.h"
#include "cpp/composite.h"
#include "cpp/register.h"

namespace hypatia {
namespace {

at::Tensor fused_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias) {
  check_linear_relu(input, weight, bias);
  return composite::linear_relu_functional(input, weight, bias);
}

TORCH_LIBRARY_IMPL(hypatia, FuncTorchBatchedDecomposition, m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &fused_linear_relu);
  m.impl("fused_linear_relu_backward",
         &composite::checked_linear_relu_backward);
}

}  // namespace
}  // namespace hypatia
