#include "cpp/graph/escapes.h"

#include <algorithm>

#include "cpp/graph/aliases.h"

namespace hypatia::graph {

// Backwards, so that the results of every use are judged before the value.
void Escapes::visit(const jit::Block* block) {
  for (const jit::Node* node : block->nodes().reverse()) {
    for (const jit::Block* nested : node->blocks()) visit(nested);
    for (const jit::Value* output : node->outputs()) {
      if (escapes(output)) escaping_.insert(output);
    }
  }
  for (const jit::Value* input : block->inputs()) {
    if (escapes(input)) escaping_.insert(input);
  }
}

bool Escapes::escapes(const jit::Value* value) const {
  for (const jit::Use& use : value->uses()) {
    switch (relation(use.user, use.offset)) {
      case Relation::reads:
        break;
      case Relation::aliases: {
        const auto results = use.user->outputs();
        if (std::any_of(results.begin(), results.end(),
                        [&](const jit::Value* result) {
                          return escaping_.count(result) != 0;
                        })) {
          return true;
        }
        break;
      }
      default:
        return true;
    }
  }
  return false;
}

}  // namespace hypatia::graph
