// Memory of the tensors that the CPU kernels return.
#pragma once

#include <ATen/core/Tensor.h>

namespace hypatia::cpu_kernels {

// at::empty, in memory of an earlier result where there is some of the size
// (src/cpu/results.rs says how much is kept).
at::Tensor empty_result(c10::IntArrayRef sizes,
                        const at::TensorOptions& options);

}  // namespace hypatia::cpu_kernels
