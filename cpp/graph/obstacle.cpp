#include "cpp/graph/obstacle.h"

#include <algorithm>
#include <unordered_set>
#include <vector>

#include "cpp/graph/kinds.h"
#include "cpp/graph/walk.h"

namespace hypatia::graph {
namespace {

using Values = std::unordered_set<const jit::Value*>;

// Adds every value whose memory `value` may be: back to where it was made.
void trace(const jit::Value* value, Values& found) {
  if (!has_memory(value) || !found.insert(value).second) return;
  const jit::Node* node = value->node();
  if (returns_fresh(node)) return;
  for (const jit::Value* input : node->inputs()) trace(input, found);
  for (const jit::Block* nested : node->blocks()) {
    for (const jit::Value* output : nested->outputs()) trace(output, found);
  }
}

// Values that results and effects are computed from, writes left aside.
class Live {
 public:
  explicit Live(const jit::Block* graph) {
    for (const jit::Value* output : graph->outputs()) mark(output);
    for_each_node(graph, [&](const jit::Node* node) {
      if (!node->hasSideEffects()) return;
      for (const jit::Value* input : node->inputs()) mark(input);
      mark_conditions(node);
    });
    // No recursion: chains are long.
    while (!pending_.empty()) {
      const jit::Value* value = pending_.back();
      pending_.pop_back();
      follow(value);
    }
  }

  bool made_by(const jit::Node* node) const {
    const auto outputs = node->outputs();
    return std::any_of(outputs.begin(), outputs.end(), [&](const auto* value) {
      return values_.count(value) != 0;
    });
  }

 private:
  void mark(const jit::Value* value) {
    if (values_.insert(value).second) pending_.push_back(value);
  }

  void follow(const jit::Value* value) {
    const jit::Node* node = value->node();
    const size_t i = value->offset();
    mark_conditions(node);
    if (node->kind() == jit::prim::Param) {
      const jit::Node* loop = node->owningBlock()->owningNode();
      if (loop != nullptr && loop->kind() == jit::prim::Loop && i > 0) {
        mark(loop->inputs()[i + 1]);
        mark(node->owningBlock()->outputs()[i]);
      }
    } else if (node->kind() == jit::prim::If) {
      mark(node->inputs()[0]);
      for (const jit::Block* b : node->blocks()) mark(b->outputs()[i]);
    } else if (node->kind() == jit::prim::Loop) {
      mark(node->inputs()[0]);
      mark(node->inputs()[1]);
      mark(node->inputs()[i + 2]);
      mark(node->blocks()[0]->outputs()[0]);
      mark(node->blocks()[0]->outputs()[i + 1]);
    } else {
      for (const jit::Value* input : node->inputs()) mark(input);
    }
  }

  // What decides whether the node runs.
  void mark_conditions(const jit::Node* node) {
    const jit::Node* owner = node->owningBlock()->owningNode();
    for (; owner != nullptr; owner = owner->owningBlock()->owningNode()) {
      for (const jit::Value* input :
           owner->inputs().slice(0, owner->kind() == jit::prim::Loop ? 2 : 1)) {
        mark(input);
      }
      if (owner->kind() == jit::prim::Loop) {
        mark(owner->blocks()[0]->outputs()[0]);
      }
    }
  }

  Values values_;
  std::vector<const jit::Value*> pending_;
};

bool is_carried(const jit::Value* value) {
  const jit::Node* node = value->node();
  const jit::Node* owner = node->owningBlock()->owningNode();
  return node->kind() == jit::prim::Param && owner != nullptr &&
         owner->kind() == jit::prim::Loop;
}

// Where values from outside the block come in: any two may share memory.
bool comes_in(const jit::Value* value) {
  const auto kind = value->node()->kind();
  return kind == jit::prim::Param || kind == jit::prim::GetAttr ||
         kind == jit::prim::Constant;
}

bool may_share(const Values& a, const Values& b) {
  const auto shared = [&](const auto* value) { return b.count(value) != 0; };
  return std::any_of(a.begin(), a.end(), shared) ||
         (std::any_of(a.begin(), a.end(), comes_in) &&
          std::any_of(b.begin(), b.end(), comes_in));
}

// A cat whose result is an element of another's list: LibTorch's peephole pass
// makes one of both, in the place of the second and whatever is written to the
// first one's elements between them.
struct NestedCat {
  const jit::Node* inner;
  const jit::Node* outer;
  Values elements;
};

std::vector<NestedCat> nested_cats(const jit::Block* block) {
  std::vector<NestedCat> found;
  for_each_node(block, [&](const jit::Node* outer) {
    if (outer->kind() != jit::aten::cat) return;
    for (const jit::Value* element : outer->input(0)->node()->inputs()) {
      const jit::Node* inner = element->node();
      if (inner->kind() != jit::aten::cat) continue;
      found.push_back({inner, outer, {}});
      trace(inner->input(0), found.back().elements);
    }
  });
  return found;
}

bool is_between(const jit::Node* write, const NestedCat& cats) {
  return write->isAfter(cats.inner) &&
         (cats.inner->owningBlock() != cats.outer->owningBlock() ||
          write->isBefore(cats.outer));
}

}  // namespace

std::string obstacle(const jit::Graph& graph) {
  const jit::Block* block = graph.block();
  std::string reason;
  // Outside training dropout returns its very input, whatever its schema says.
  Values passed;
  for_each_node(block, [&](const jit::Node* node) {
    if (is_dropout(node)) trace(node->output(), passed);
    if (node->kind() == jit::prim::Enter) {
      reason = "it has a with statement, whose bounds operators must not cross";
    }
  });
  if (!reason.empty()) return reason;
  const Live live(block);
  const auto cats = nested_cats(block);
  for_each_node(block, [&](const jit::Node* node) {
    const auto* schema = node->maybeSchema();
    if (schema == nullptr || !schema->is_mutable() || node->inputs().empty()) {
      return;
    }
    const bool seen = live.made_by(node);
    if (seen && cats.empty()) return;
    Values written;
    trace(node->inputs()[0], written);
    for (const auto& pair : cats) {
      if (is_between(node, pair) && may_share(written, pair.elements)) {
        reason = "it writes to an element of a cat before a cat of that cat";
      }
    }
    if (seen) return;
    // TorchScript's dead code elimination, which is part of its other passes,
    // would take such writes for ones that nobody sees: it does not know what
    // dropout returns, nor what a loop carries into its second round.
    for (const jit::Value* value : written) {
      if (passed.count(value) != 0) {
        reason = "it writes into what a dropout may have passed through";
      } else if (is_carried(value)) {
        reason = "it writes into what a loop carries";
      }
    }
  });
  return reason;
}

}  // namespace hypatia::graph
