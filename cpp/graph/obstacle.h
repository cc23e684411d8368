// Graphs that are left alone as a whole.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <string>

namespace hypatia::graph {

namespace jit = torch::jit;

// Why TorchScript's own passes, which go before ours and again before the graph
// runs, could not be trusted with it; empty if they can.
std::string obstacle(const jit::Graph& graph);

}  // namespace hypatia::graph
