// The optimizer's steps, applied to a block of a graph.
#pragma once

#include "cpp/graph/export.h"

namespace hypatia::graph {

// Rewrites `block`, which `exported` describes. Throws c10::Error where a step
// does not fit; the graph is then to be thrown away.
void apply(jit::Block* block, const Exported& exported,
           const bridge::Edits& edits);

}  // namespace hypatia::graph
