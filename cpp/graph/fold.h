// Tensor constants computed while the graph is rewritten.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "hypatia/src/bridge/graph.rs.h"

namespace hypatia::graph {

// `step.op` over `inputs`, in fp64. Throws c10::Error on an operator that it
// does not know, on shapes that do not fit and on a result that is not finite.
at::Tensor fold(const bridge::Step& step,
                const std::vector<at::Tensor>& inputs);

// A fold's result as a constant of `dtype`.
at::Tensor as_constant(const at::Tensor& folded, int32_t dtype);

}  // namespace hypatia::graph
