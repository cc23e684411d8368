// A block of a graph as the records that the optimizer reads.
#pragma once

#include <string>
#include <vector>

#include "cpp/graph/facts.h"
#include "hypatia/src/bridge/graph.rs.h"

namespace hypatia::graph {

struct Exported {
  bridge::Block record;
  // What the record's numbers stand for.
  std::vector<jit::Value*> values;
  std::vector<jit::Node*> nodes;
};

// `matrix` is a value from outside that surely has two dimensions; null for
// none.
Exported export_block(jit::Block* block, const std::string& name,
                      const Facts& facts, const jit::Value* matrix);

// Calls `visit` with every value from outside `block` that it or a block
// inside it uses; more than once for some.
void for_each_capture(const jit::Block* block,
                      const std::function<void(jit::Value*)>& visit);

}  // namespace hypatia::graph
