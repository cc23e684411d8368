// Tensors as the CPU kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include "hypatia/src/bridge/cpu.rs.h"

namespace hypatia::cpu_kernels {

// Whether its elements can be read. Memory that is not PyTorch's own may lie at
// any address.
bool readable(const at::Tensor& t);

bool has_unit_stride(const at::Tensor& t);

// Rows of [*, K]: 2-D with unit stride along K, or dense.
bridge::CpuMatrix as_rows(const at::Tensor& t);

// `t`, or a dense copy where as_rows cannot take it.
at::Tensor rows_or_copy(const at::Tensor& t);

}  // namespace hypatia::cpu_kernels
