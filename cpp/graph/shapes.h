// Sizes of the values in a graph for one example of its inputs.
#pragma once

#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <vector>

#include "cpp/graph/attributes.h"

namespace hypatia::graph {

// Arguments of forward without the module itself; empty for none.
using Example = std::vector<c10::IValue>;

// Notes the sizes that values have in a call with `example` in their types, as
// torch.jit.trace does. They count as hints, never as facts. No tensor is read
// or written; what depends on contents stays unknown.
void note_shapes(jit::Graph& graph, const Attributes& attributes,
                 const Example& example);

}  // namespace hypatia::graph
