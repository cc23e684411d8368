// Which values of a block something else may still hold when the nodes that
// plainly read them are done.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <unordered_set>

namespace hypatia::graph {

namespace jit = torch::jit;

class Escapes {
 public:
  explicit Escapes(const jit::Block* block) { visit(block); }

  // For values made in the block or in one inside it.
  bool operator()(const jit::Value* value) const {
    return escaping_.count(value) != 0;
  }

 private:
  void visit(const jit::Block* block);
  bool escapes(const jit::Value* value) const;

  std::unordered_set<const jit::Value*> escaping_;
};

}  // namespace hypatia::graph
