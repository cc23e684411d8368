#include "cpp/graph/rank_guard.h"

#include <torch/csrc/jit/ir/constants.h>

#include <string>
#include <vector>

#include "cpp/graph/walk.h"

namespace hypatia::graph {
namespace {

constexpr int64_t matrix_rank = 2;

bool is_constant_two(const jit::Value* value) {
  const auto constant = jit::toIValue(value);
  return constant && constant->isInt() && constant->toInt() == matrix_rank;
}

bool may_fold(const jit::Node* batch_norm) {
  static const std::string convolution = "aten::conv";
  const std::string of = batch_norm->input(0)->node()->kind().toQualString();
  return batch_norm->input(3)->node()->kind() == jit::prim::Constant &&
         of.compare(0, convolution.size(), convolution) != 0 &&
         of != "aten::_convolution";
}

// The graph's nodes as a branch: what the inputs of the copy were is outside.
void add_branch(jit::Node* node, const jit::Graph& body,
                at::ArrayRef<jit::Value*> inputs) {
  jit::Block* branch = node->addBlock();
  branch->cloneFrom(const_cast<jit::Graph&>(body).block(), nullptr);
  for (size_t i = inputs.size(); i-- > 0;) {
    branch->inputs()[i]->replaceAllUsesWith(inputs[i]);
    branch->eraseInput(i);
  }
}

}  // namespace

RankGuard find_rank_guard(jit::Graph& graph) {
  const jit::Block* block = graph.block();
  if (block->outputs().empty()) return {};
  jit::Node* guard = graph.outputs()[0]->node();
  if (guard->kind() != jit::prim::If || guard->owningBlock() != block ||
      guard->outputs() != graph.outputs()) {
    return {};
  }
  const jit::Node* equal = guard->inputs()[0]->node();
  if (equal->kind() != jit::aten::eq || !is_constant_two(equal->input(1))) {
    return {};
  }
  const jit::Node* dim = equal->input(0)->node();
  if (dim->kind() != jit::aten::dim ||
      dim->input(0)->node() != block->param_node()) {
    return {};
  }
  return {dim->input(0), guard->blocks()[0], guard->blocks()[1]};
}

void add_rank_guard(jit::Graph& graph, size_t input) {
  const auto body = graph.copy();
  std::vector<jit::Node*> old(graph.nodes().begin(), graph.nodes().end());
  const jit::WithInsertPoint at_the_end(graph.block());
  auto* dim = graph.insert(jit::aten::dim, {graph.inputs()[input]});
  auto* condition = graph.insert(jit::aten::eq, {dim, matrix_rank});
  auto* guard = graph.insertNode(
      graph.create(jit::prim::If, {condition}, graph.outputs().size()));
  for (int branch = 0; branch < 2; ++branch) {
    add_branch(guard, *body, graph.inputs());
  }
  for (size_t i = 0; i < graph.outputs().size(); ++i) {
    guard->outputs()[i]->copyMetadata(graph.outputs()[i]);
    graph.block()->replaceOutput(i, guard->outputs()[i]);
  }
  for (auto node = old.rbegin(); node != old.rend(); ++node) {
    (*node)->destroy();
  }
}

size_t count_batch_norms(const jit::Block* block) {
  size_t count = 0;
  for_each_node(block, [&](const jit::Node* node) {
    if (node->kind() == jit::aten::batch_norm && may_fold(node)) ++count;
  });
  return count;
}

}  // namespace hypatia::graph
