// torch.func.vmap: under a batching level the operators are ATen's own
// operations, which have batching rules. Without this vmap would loop.
#include <torch/library.h>

#include "cpp/composite.h"
#include "cpp/register.h"

namespace hypatia {
namespace {

TORCH_LIBRARY_IMPL(hypatia, FuncTorchBatchedDecomposition, m) {
  if (!registers_operators()) return;
  m.impl("fused_linear_relu", &composite::linear_relu_functional);
  m.impl("fused_linear_relu_backward", &composite::linear_relu_backward);
}

}  // namespace
}  // namespace hypatia
