// Memory for the gradients of one backward call.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace hypatia {

// While one lives, this thread's `empty_gradients` may give small gradients one
// storage. For the autograd node only: an operator's results must not share
// memory that its schema does not speak of.
class SharedGradients {
 public:
  SharedGradients();
  ~SharedGradients();
  SharedGradients(const SharedGradients&) = delete;
  SharedGradients& operator=(const SharedGradients&) = delete;
};

// Dense tensors of the wanted sizes, undefined ones for the others.
std::vector<at::Tensor> empty_gradients(
    const std::vector<c10::IntArrayRef>& sizes, const std::vector<bool>& wanted,
    const at::TensorOptions& options);

}  // namespace hypatia
