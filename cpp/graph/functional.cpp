#include "cpp/graph/functional.h"

#include <torch/csrc/jit/ir/constants.h>

#include "cpp/graph/aliases.h"
#include "cpp/graph/kinds.h"

namespace hypatia::graph {
namespace {

// Memory that nothing else holds: made by an operator that returns its own, or
// by a dropout (which may return its argument) whose argument is such memory
// and is used by nothing else.
bool is_fresh(const jit::Value* value) {
  const jit::Node* node = value->node();
  while (is_dropout(node)) {
    const jit::Value* input = node->inputs()[0];
    if (input->uses().size() != 1 ||
        input->node()->owningBlock() != node->owningBlock()) {
      return false;
    }
    node = input->node();
  }
  return returns_fresh(node) && node->outputs().size() == 1;
}

// The node of `block` that is `node` or has it in its blocks.
const jit::Node* within(const jit::Block* block, const jit::Node* node) {
  while (node != nullptr && node->owningBlock() != block) {
    node = node->owningBlock()->owningNode();
  }
  return node;
}

class Functionalizer {
 public:
  Functionalizer(const Attributes& attributes, std::string name,
                 bool random_alike)
      : attributes_(attributes),
        name_(std::move(name)),
        random_alike_(random_alike) {}

  void visit(jit::Graph& graph, jit::Block* block) {
    for (auto it = block->nodes().begin(); it != block->nodes().end();) {
      jit::Node* node = *it;
      ++it;
      for (jit::Block* nested : node->blocks()) visit(graph, nested);
      const auto kind = functional_kind(node);
      if (kind.empty()) continue;
      const auto where = name_ + ": %" + node->output()->debugName();
      const auto reason = refusal(node);
      if (reason.empty()) {
        convert(graph, node, kind);
        result.rewritten.push_back(
            {"functional_" + std::string(node_name(node)), where});
        node->destroy();
      } else {
        result.refused.push_back({reason, where});
      }
    }
  }

  Functionalized result;

 private:
  static const char* node_name(const jit::Node* node) {
    return node->kind().toUnqualString();
  }

  std::string refusal(const jit::Node* node) const {
    const std::string op = node_name(node);
    const jit::Value* written = node->inputs()[0];
    if (written->node()->owningBlock() != node->owningBlock() ||
        written->node()->kind() == jit::prim::Param) {
      return op + " writes to a value from outside the block";
    }
    if (!is_fresh(written)) {
      return op + " writes to memory that something else may hold";
    }
    for (const jit::Use& use : written->uses()) {
      const jit::Node* user = within(node->owningBlock(), use.user);
      if (user == nullptr) return op + " writes to a value used elsewhere";
      if (user == node || user->isAfter(node)) continue;
      if (relation(use.user, use.offset) != Relation::reads) {
        return op + " writes to a value that has a view or is held elsewhere";
      }
    }
    return refusal_of_result(node, op);
  }

  // In place, the result keeps its dtype and shape whatever comes in.
  std::string refusal_of_result(const jit::Node* node,
                                const std::string& op) const {
    if (op == "dropout_" || op == "feature_dropout_") {
      return random_alike_ ? ""
                           : op + " draws other numbers than its functional "
                                  "form on this device";
    }
    if (op != "add_" && op != "clamp_min_") return "";
    const jit::Value* other = node->inputs()[1];
    const at::Tensor weight = weight_of(node->inputs()[0]->node());
    if (!weight.defined() || !weight.is_floating_point()) {
      return op + " writes to a value of unknown dtype";
    }
    if (other->type()->kind() == c10::TypeKind::IntType ||
        other->type()->kind() == c10::TypeKind::FloatType) {
      return "";
    }
    const at::Tensor addend = tensor_of(other);
    if (op == "add_" && addend.defined() && addend.dim() == 1 &&
        addend.scalar_type() == weight.scalar_type() &&
        addend.size(0) == weight.size(0)) {
      return "";
    }
    return op + " may change the dtype or shape in its functional form";
  }

  at::Tensor tensor_of(const jit::Value* value) const {
    if (const auto* attribute = attributes_.find(value)) {
      return attribute->value.isTensor() ? attribute->value.toTensor()
                                         : at::Tensor();
    }
    const auto payload = jit::toIValue(value);
    return payload && payload->isTensor() ? payload->toTensor() : at::Tensor();
  }

  // [N, K] for a product whose result has N columns; undefined if unknown.
  at::Tensor weight_of(const jit::Node* node) const {
    while (is_dropout(node) || node->kind() == jit::aten::relu) {
      node = node->inputs()[0]->node();
    }
    if (!is_matrix_product(node)) return {};
    const bool linear = node->kind() == jit::aten::linear;
    const jit::Value* factor =
        node->inputs()[node->kind() == jit::aten::addmm ? 2 : 1];
    const bool transposed = factor->node()->kind() == jit::aten::t;
    if (transposed) factor = factor->node()->inputs()[0];
    const at::Tensor weight = tensor_of(factor);
    if (!weight.defined() || weight.dim() != 2) return {};
    return linear != transposed ? weight : weight.t();
  }

  // Uses before the write keep the old value, uses after it get the new one.
  static void convert(jit::Graph& graph, jit::Node* node,
                      const std::string& kind) {
    jit::Node* made =
        graph.create(c10::Symbol::fromQualString(kind), node->inputs());
    made->insertBefore(node);
    made->copyMetadata(node);
    made->getOperator();  // Throws if there is none.
    jit::Value* written = node->inputs()[0];
    made->output()->setType(node->output()->type());
    const auto uses = written->uses();
    for (const jit::Use& use : uses) {
      const jit::Node* user = within(node->owningBlock(), use.user);
      if (user != node && user->isAfter(node)) {
        use.user->replaceInput(use.offset, made->output());
      }
    }
    node->output()->replaceAllUsesWith(made->output());
    made->output()->copyMetadata(node->output());
  }

  const Attributes& attributes_;
  const std::string name_;
  const bool random_alike_;
};

}  // namespace

Functionalized functionalize(jit::Graph& graph, const Attributes& attributes,
                             const std::string& name, bool random_alike) {
  Functionalizer functionalizer(attributes, name, random_alike);
  functionalizer.visit(graph, graph.block());
  return std::move(functionalizer.result);
}

}  // namespace hypatia::graph
