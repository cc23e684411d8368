#include "cpp/graph/facts.h"

#include <torch/csrc/jit/runtime/operator.h>

#include "cpp/graph/aliases.h"
#include "cpp/graph/kinds.h"
#include "cpp/graph/walk.h"

namespace hypatia::graph {
namespace {

bool is_plain_list(const jit::Node* node) {
  if (node->kind() != jit::prim::ListConstruct) return false;
  const auto element =
      node->output()->type()->expectRef<c10::ListType>().getElementType();
  return element->kind() == c10::TypeKind::IntType ||
         element->isSubtypeOf(*c10::OptionalType::ofTensor());
}

}  // namespace

Facts::Facts(const std::shared_ptr<jit::Graph>& graph,
             const Attributes& attributes)
    : attributes_(attributes) {
  // With isFrozen, attributes are not one wildcard with the graph's inputs: a
  // batch norm that updates its statistics then writes to those alone. True
  // where the attributes' memory was seen to be separate.
  const jit::AliasDb db(graph, /*isFrozen=*/attributes.all_separate());

  // AliasDb believes schemas, and they do not tell what dropout returns; nor
  // does it ask whether the elements of a list are written. Aliases does.
  Aliases aliases;
  for_each_node(graph->block(), [&](const jit::Node* node) {
    if (node->owningBlock() == graph->block()) aliases.add(node);
    if (node->kind() == jit::prim::GetAttr &&
        attributes.find(node->output()) == nullptr) {
      aliases.unite_with_unknown(node->output());
    }
  });
  for (const jit::Value* input : graph->inputs()) {
    // A list that comes in holds tensors that may be any input.
    if (input->type()->kind() != c10::TypeKind::TensorType) {
      aliases.unite_with_unknown(input);
    }
  }
  std::unordered_set<size_t> written;
  for_each_node(graph->block(), [&](const jit::Node* node) {
    for (size_t i = 0; i < node->inputs().size(); ++i) {
      if (has_memory(node->inputs()[i]) &&
          relation(node, i) == Relation::writes) {
        written.insert(aliases.find(node->inputs()[i]));
      }
    }
  });
  for_each_value(graph->block(), [&](const jit::Value* value) {
    if (db.hasWriters(value)) written.insert(aliases.find(value));
  });
  for_each_value(graph->block(), [&](const jit::Value* value) {
    if (written.count(aliases.find(value)) != 0) written_.insert(value);
  });
  judge(graph->block(), db);
}

const std::string& Facts::fixed_reason(const jit::Node* node) const {
  static const std::string none;
  const auto found = reasons_.find(node);
  return found == reasons_.end() ? none : found->second;
}

void Facts::judge(const jit::Block* block, const jit::AliasDb& db) {
  for (const jit::Node* node : block->nodes()) {
    for (const jit::Block* nested : node->blocks()) judge(nested, db);
    auto reason = judge(node, db);
    if (!reason.empty()) reasons_.emplace(node, std::move(reason));
  }
}

bool Facts::touches_written(const jit::Node* node) const {
  for (const jit::Value* value : node->inputs()) {
    if (is_written(value)) return true;
    // Who reads a list reads its elements.
    if (is_sealed(value->node()) && touches_written(value->node())) return true;
  }
  for (const jit::Value* value : node->outputs()) {
    if (is_written(value)) return true;
  }
  return false;
}

std::string Facts::judge(const jit::Node* node, const jit::AliasDb& db) const {
  if (node->kind() == jit::prim::Constant) {
    // One that is written to is a variable.
    return touches_written(node) ? "something writes to the constant" : "";
  }
  if (node->kind() == jit::prim::GetAttr) {
    return attributes_.find(node->output()) != nullptr
               ? ""
               : "the attribute may be set";
  }
  if (!node->blocks().empty()) return "it has blocks of its own";
  if (!is_plain_list(node)) {
    const auto* op = node->maybeOperator();
    if (op == nullptr) return "it is not an operator with a schema";
    if (op->aliasAnalysisKind() == c10::AliasAnalysisKind::CONSERVATIVE) {
      return "it may have side effects";
    }
  }
  if (node->hasSideEffects()) return "it has side effects";
  for (size_t i = 0; i < node->inputs().size(); ++i) {
    const auto how = relation(node, i);
    if (how == Relation::writes) return "it writes to its argument";
    if (how == Relation::unknown && has_memory(node->inputs()[i])) {
      return "it may keep its argument";
    }
  }
  if (node->isNondeterministic() && !is_dropout(node)) return "it is random";
  if (touches_written(node)) {
    return "something writes to what it reads or returns";
  }
  // The same question to the framework's analysis, which knows more kinds.
  if (db.hasWriters(node)) {
    return "something may write to what it reads or returns";
  }
  return "";
}

}  // namespace hypatia::graph
