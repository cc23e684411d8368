// One method, from its graph to the optimized one.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <memory>
#include <string>

#include "cpp/graph/shapes.h"
#include "hypatia/src/bridge/graph.rs.h"

namespace hypatia::graph {

namespace jit = torch::jit;

// The new graph of the method `name` of `module`, whose graph is `original`
// and which is called with arguments like `example`; null if nothing was to be
// done, or if it failed, which the session then reports.
std::shared_ptr<jit::Graph> optimize_method(const jit::Module& module,
                                            const std::string& name,
                                            jit::Graph& original,
                                            const Example& example,
                                            bridge::Session& session);

}  // namespace hypatia::graph
