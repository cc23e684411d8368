// Layers on few rows on the CPU, in kernels of ours (src/cpu/few_rows.rs).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "cpp/composite_mlp.h"

namespace hypatia::few_rows {

// The chain's result, or nothing where ATen's products are the faster or the
// only way: more than eight rows, other dtypes than fp32 and bfloat16, other
// strides than unit ones along K, no elements. Arguments are checked.
std::optional<at::Tensor> mlp(const at::Tensor& input, at::TensorList weights,
                              const Biases& biases, bool relu_last);

// The same for one layer and its ReLU.
std::optional<at::Tensor> linear_relu(const at::Tensor& input,
                                      const at::Tensor& weight,
                                      const std::optional<at::Tensor>& bias);

}  // namespace hypatia::few_rows
