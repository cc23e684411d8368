// In-place operators that nothing can see, as the functional ones.
//
// Not RemoveTensorMutation: that pass believes that dropout returns fresh
// memory, and outside training it returns its argument.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <string>
#include <vector>

#include "cpp/graph/attributes.h"

namespace hypatia::graph {

struct Note {
  std::string what;  // the rule, or the reason
  std::string where;
};

struct Functionalized {
  std::vector<Note> rewritten;
  std::vector<Note> refused;
};

// `random_alike`: the device draws the same numbers for dropout_ as for
// dropout.
Functionalized functionalize(jit::Graph& graph, const Attributes& attributes,
                             const std::string& name, bool random_alike);

}  // namespace hypatia::graph
