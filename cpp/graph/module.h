// Modules as the optimizer needs them: a copy that shares its tensors, and
// methods that can be exchanged.
#pragma once

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>

#include <memory>
#include <string>

#include "hypatia/src/bridge/graph.rs.h"

namespace hypatia::graph {

namespace jit = torch::jit;

// Types, graphs and objects are new; tensors are the same. A submodule that is
// there twice stays one.
jit::Module copy_sharing_tensors(const jit::Module& module);

// The method `name` becomes one with this graph.
void replace_method(const jit::Module& module, const std::string& name,
                    std::shared_ptr<jit::Graph> graph);

// Where the module's tensors are.
bridge::Options options_for(const jit::Module& module);

}  // namespace hypatia::graph
