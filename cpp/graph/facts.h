// What is true of a graph's nodes before anything is rewritten. Made once for
// each method; it stays true of nodes in blocks that were not rewritten yet,
// because only movable nodes are, and nothing writes to what those touch.
#pragma once

#include <torch/csrc/jit/ir/alias_analysis.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "cpp/graph/attributes.h"

namespace hypatia::graph {

class Facts {
 public:
  // `attributes` belongs to the same graph and outlives this.
  Facts(const std::shared_ptr<jit::Graph>& graph, const Attributes& attributes);

  // Why the node may not be removed, moved or repeated; empty if it may.
  const std::string& fixed_reason(const jit::Node* node) const;

  // Something in the graph may write to the value's memory.
  bool is_written(const jit::Value* value) const {
    return written_.count(value) != 0;
  }

  const Attributes& attributes() const { return attributes_; }

 private:
  void judge(const jit::Block* block, const jit::AliasDb& db);
  std::string judge(const jit::Node* node, const jit::AliasDb& db) const;
  bool touches_written(const jit::Node* node) const;

  const Attributes& attributes_;
  std::unordered_set<const jit::Value*> written_;
  // Absent: movable.
  std::unordered_map<const jit::Node*, std::string> reasons_;
};

}  // namespace hypatia::graph
