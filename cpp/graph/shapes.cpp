#include "cpp/graph/shapes.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <optional>
#include <unordered_map>

namespace hypatia::graph {
namespace {

// The graph run on tensors without memory: sizes, strides and dtypes come out
// of the operators themselves, and nothing is computed or written.
class Trial {
 public:
  explicit Trial(const Attributes& attributes) : attributes_(attributes) {}

  void know(const jit::Value* value, const c10::IValue& content) {
    values_[value] = without_memory(content);
  }

  void run(const jit::Block* block) {
    for (const jit::Node* node : block->nodes()) {
      try {
        step(node);
      } catch (const std::exception&) {
        // What depends on contents, or on a wrong example: unknown.
      }
    }
  }

  const c10::IValue* find(const jit::Value* value) const {
    const auto found = values_.find(value);
    return found == values_.end() ? nullptr : &found->second;
  }

 private:
  static c10::IValue without_memory(const c10::IValue& content) {
    if (!content.isTensor()) return content;
    const auto& tensor = content.toTensor();
    const bool plain = tensor.defined() && tensor.layout() == at::kStrided &&
                       !tensor.is_nested() && !tensor.is_quantized();
    if (!plain) return {};
    return at::empty_strided(tensor.sizes(), tensor.strides(),
                             tensor.options().device(at::kMeta));
  }

  // The contents of all of `values`, if every one is known.
  std::optional<jit::Stack> contents(at::ArrayRef<const jit::Value*> values) {
    jit::Stack stack;
    for (const jit::Value* value : values) {
      const auto* content = find(value);
      if (content == nullptr) return std::nullopt;
      stack.push_back(*content);
    }
    return stack;
  }

  void pass(at::ArrayRef<const jit::Value*> from,
            at::ArrayRef<const jit::Value*> to) {
    for (size_t i = 0; i < std::min(from.size(), to.size()); ++i) {
      if (const auto* content = find(from[i])) values_[to[i]] = *content;
    }
  }

  void step(const jit::Node* node) {
    const auto kind = node->kind();
    if (kind == jit::prim::Constant) {
      if (const auto content = jit::toIValue(node->output())) {
        know(node->output(), *content);
      }
    } else if (kind == jit::prim::GetAttr) {
      if (const auto* attribute = attributes_.find(node->output())) {
        know(node->output(), attribute->value);
      }
    } else if (kind == jit::prim::If) {
      branch(node);
    } else if (kind == jit::prim::Loop) {
      // One round, as if all were like it.
      const jit::Block* body = node->blocks()[0];
      pass(node->inputs().slice(2), body->inputs().slice(1));
      run(body);
      pass(body->outputs().slice(1), node->outputs());
    } else if (kind == jit::prim::ListConstruct) {
      list(node);
    } else if (kind.is_aten() || kind.ns() == own_) {
      // Everything else may have effects.
      auto stack = contents(node->inputs());
      const auto* op = node->maybeOperator();
      if (!stack || op == nullptr) return;
      op->getOperation(node)(*stack);
      if (stack->size() != node->outputs().size()) return;
      for (size_t i = 0; i < stack->size(); ++i) {
        know(node->outputs()[i], (*stack)[i]);
      }
    }
  }

  void branch(const jit::Node* node) {
    const auto* condition = find(node->inputs()[0]);
    const bool known = condition != nullptr && condition->isBool();
    for (const bool taken : {false, true}) {
      if (known && condition->toBool() != taken) continue;
      const jit::Block* block = node->blocks()[taken ? 0 : 1];
      run(block);
      pass(block->outputs(), node->outputs());
    }
  }

  void list(const jit::Node* node) {
    const auto contents_of = contents(node->inputs());
    if (!contents_of) return;
    const auto element =
        node->output()->type()->expectRef<c10::ListType>().getElementType();
    c10::impl::GenericList list(element);
    for (const auto& content : *contents_of) list.push_back(content);
    values_[node->output()] = std::move(list);
  }

  const Attributes& attributes_;
  const c10::Symbol own_ = c10::Symbol::fromQualString("namespaces::hypatia");
  std::unordered_map<const jit::Value*, c10::IValue> values_;
};

void note(jit::Block* block, const Trial& trial) {
  const auto take = [&](jit::Value* value) {
    const auto* content = trial.find(value);
    const bool attribute = value->node()->kind() == jit::prim::GetAttr ||
                           value->node()->kind() == jit::prim::Constant;
    if (content == nullptr || attribute || !content->isTensor()) return;
    if (value->type()->kind() != c10::TypeKind::TensorType) return;
    const auto& sizes = content->toTensor().sizes();
    value->setType(c10::TensorType::get()->withSizes(sizes));
  };
  for (jit::Value* input : block->inputs()) take(input);
  for (jit::Node* node : block->nodes()) {
    for (jit::Block* nested : node->blocks()) note(nested, trial);
    for (jit::Value* output : node->outputs()) take(output);
  }
}

}  // namespace

void note_shapes(jit::Graph& graph, const Attributes& attributes,
                 const Example& example) {
  if (example.empty()) return;
  const at::NoGradGuard no_grad;
  Trial trial(attributes);
  const auto inputs = graph.inputs().slice(1);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (i < example.size()) trial.know(inputs[i], example[i]);
  }
  trial.run(graph.block());
  note(graph.block(), trial);
}

}  // namespace hypatia::graph
