// Everything in a block, nested blocks included, in the order of its text.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include "cpp/graph/kinds.h"

namespace hypatia::graph {

template <typename Visit>
void for_each_node(const jit::Block* block, const Visit& visit) {
  for (const jit::Node* node : block->nodes()) {
    visit(node);
    for (const jit::Block* nested : node->blocks()) {
      for_each_node(nested, visit);
    }
  }
}

// Every value with memory, block inputs included.
template <typename Visit>
void for_each_value(const jit::Block* block, const Visit& visit) {
  for (const jit::Value* input : block->inputs()) {
    if (has_memory(input)) visit(input);
  }
  for (const jit::Node* node : block->nodes()) {
    for (const jit::Value* output : node->outputs()) {
      if (has_memory(output)) visit(output);
    }
    for (const jit::Block* nested : node->blocks()) {
      for_each_value(nested, visit);
    }
  }
}

}  // namespace hypatia::graph
