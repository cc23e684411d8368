#include "cpp/graph/apply.h"

#include <torch/csrc/jit/ir/constants.h>

#include <optional>

#include "cpp/graph/fold.h"

namespace hypatia::graph {
namespace {

// What a step stands for. A fold becomes a node when a node reads it.
struct Result {
  jit::Value* value = nullptr;
  at::Tensor folded;
  const bridge::Step* step = nullptr;
};

class Applier {
 public:
  Applier(jit::Block* block, const Exported& exported,
          const bridge::Edits& edits)
      : graph_(*block->owningGraph()),
        block_(block),
        exported_(exported),
        edits_(edits),
        insert_(block) {
    for (const auto& replacement : edits.replacements) {
      replaced_[replacement.old_] = replacement.new_;
    }
    for (jit::Node* node : exported.nodes) pending_.insert(node);
    for (size_t i = 0; i < exported.values.size(); ++i) {
      // Where constants that come from nothing are to be.
      if (!exported.record.values[i].bakeable) continue;
      device_ = jit::toIValue(exported.values[i])->toTensor().device();
      break;
    }
  }

  void run() {
    hoist();
    for (const auto& step : edits_.steps) take(step);
    replace();
    remove();
  }

 private:
  using Kind = bridge::StepKind;

  // Constants and reads of attributes need nothing: first, they are there for
  // every step. All that stays goes to the end in its order, because nodes
  // inserted at one place make LibTorch number the whole block anew.
  void hoist() {
    for (size_t i = 0; i < exported_.nodes.size(); ++i) {
      jit::Node* node = exported_.nodes[i];
      const bool free = node->kind() == jit::prim::Constant ||
                        node->kind() == jit::prim::GetAttr;
      if (!free || !exported_.record.nodes[i].movable) continue;
      node->moveBefore(block_->return_node());
      pending_.erase(node);
      hoisted_.push_back(node);
    }
  }

  void take(const bridge::Step& step) {
    Result result;
    result.step = &step;
    TORCH_CHECK(step.node < exported_.nodes.size() || exported_.nodes.empty(),
                "hypatia::optimize: expected a node of the block, got number ",
                step.node);
    switch (step.kind) {
      case Kind::Keep:
        result.value = keep(step);
        break;
      case Kind::Fold:
        result.folded = evaluate(step);
        break;
      case Kind::Make:
        result.value = make(step);
        break;
      case Kind::Tensors:
        result.value = list(step, c10::TensorType::get());
        break;
      case Kind::OptionalTensors:
        result.value = list(step, c10::OptionalType::ofTensor());
        break;
      default:
        result.value = constant(step, payload(step));
    }
    results_.push_back(std::move(result));
  }

  jit::Value* keep(const bridge::Step& step) {
    TORCH_CHECK(step.node < exported_.nodes.size(),
                "hypatia::optimize: expected a node to keep, got number ",
                step.node);
    jit::Node* node = exported_.nodes[step.node];
    const bool movable = exported_.record.nodes[step.node].movable;
    if (!movable) {
      TORCH_CHECK(step.node >= next_fixed_,
                  "hypatia::optimize: expected nodes with effects in their "
                  "order, got ",
                  node->kind().toQualString(), " too late");
      next_fixed_ = step.node + 1;
    }
    if (pending_.erase(node) != 0) {
      check_inputs(node);
      node->moveBefore(block_->return_node());
    }
    return node->outputs().empty() ? nullptr : node->outputs()[0];
  }

  // Everything that the node and its blocks read is there by now.
  void check_inputs(const jit::Node* node) {
    for (const jit::Value* input : node->inputs()) check_defined(input, node);
    for (const jit::Block* nested : node->blocks()) {
      for_each_capture(nested,
                       [&](jit::Value* value) { check_defined(value, node); });
    }
  }

  void check_defined(const jit::Value* value, const jit::Node* user) {
    const auto number = number_of(value);
    if (number && replaced_.count(*number) != 0) {
      available(*number, /*follow=*/true);
      return;
    }
    TORCH_CHECK(pending_.count(value->node()) == 0,
                "hypatia::optimize: expected %", value->debugName(),
                " to be defined before ", user->kind().toQualString(),
                ", got it later");
  }

  jit::Value* make(const bridge::Step& step) {
    std::vector<jit::Value*> inputs;
    for (const uint32_t input : step.inputs) inputs.push_back(read(input));
    jit::Node* node = graph_.create(
        c10::Symbol::fromQualString(std::string(step.op)), inputs, 1);
    insert(node, step);
    const auto* schema = node->maybeSchema();
    TORCH_CHECK(schema != nullptr && schema->returns().size() == 1,
                "hypatia::optimize: expected an operator with one result, got ",
                std::string(step.op), " with arguments it does not take");
    node->output()->setType(schema->returns()[0].type());
    return node->output();
  }

  jit::Value* list(const bridge::Step& step, const c10::TypePtr& element) {
    std::vector<jit::Value*> inputs;
    for (const uint32_t input : step.inputs) inputs.push_back(read(input));
    jit::Node* node = graph_.createList(element, inputs);
    insert(node, step);
    return node->output();
  }

  static c10::IValue payload(const bridge::Step& step) {
    const auto first = [&] {
      TORCH_CHECK(!step.ints.empty(),
                  "hypatia::optimize: expected a number in a constant, got "
                  "none");
      return step.ints[0];
    };
    switch (step.kind) {
      case Kind::Int:
        return first();
      case Kind::Bool:
        return first() != 0;
      case Kind::Float:
        return step.float_;
      case Kind::None:
        return {};
      case Kind::Ints:
        return std::vector<int64_t>(step.ints.begin(), step.ints.end());
      default:
        TORCH_CHECK(false, "hypatia::optimize: expected a known step, got ",
                    static_cast<int>(step.kind));
    }
  }

  jit::Value* constant(const bridge::Step& step, const c10::IValue& payload) {
    jit::Value* value = graph_.insertConstant(payload);
    made_.insert(value->node());
    describe(value->node(), step);
    return value;
  }

  void insert(jit::Node* node, const bridge::Step& step) {
    graph_.insertNode(node);
    made_.insert(node);
    describe(node, step);
  }

  void describe(jit::Node* node, const bridge::Step& step) {
    if (step.node < exported_.nodes.size()) {
      node->copyMetadata(exported_.nodes[step.node]);
    }
  }

  at::Tensor evaluate(const bridge::Step& step) {
    std::vector<at::Tensor> inputs;
    for (const uint32_t input : step.inputs) inputs.push_back(tensor(input));
    auto result = fold(step, inputs);
    if (inputs.empty()) result = result.to(device_);
    return result;
  }

  at::Tensor tensor(uint32_t number) {
    if (number >= exported_.values.size()) {
      const auto& result = results_.at(number - exported_.values.size());
      if (result.folded.defined()) return result.folded;
    }
    const auto payload = jit::toIValue(read(number));
    TORCH_CHECK(
        payload && payload->isTensor() && !payload->toTensor().requires_grad(),
        "hypatia::optimize: expected a tensor constant to fold, got "
        "value ",
        number);
    return payload->toTensor();
  }

  std::optional<uint32_t> number_of(const jit::Value* value) {
    if (numbers_.empty()) {
      for (uint32_t i = 0; i < exported_.values.size(); ++i) {
        numbers_.emplace(exported_.values[i], i);
      }
    }
    const auto found = numbers_.find(value);
    return found == numbers_.end() ? std::nullopt
                                   : std::make_optional(found->second);
  }

  // For a step's input: what it names, or what replaces that if it is gone.
  jit::Value* read(uint32_t number) {
    jit::Value* value = available(number, /*follow=*/false);
    return value != nullptr ? value : available(number, /*follow=*/true);
  }

  // Null if an original value is not there yet and `follow` is false.
  jit::Value* available(uint32_t number, bool follow) {
    for (size_t hops = 0; follow && replaced_.count(number) != 0; ++hops) {
      TORCH_CHECK(hops <= replaced_.size(),
                  "hypatia::optimize: expected replacements that end, got a "
                  "circle");
      number = replaced_.at(number);
    }
    if (number >= exported_.values.size()) {
      const size_t index = number - exported_.values.size();
      TORCH_CHECK(index < results_.size(),
                  "hypatia::optimize: expected a step's result to be used "
                  "after it, got result ",
                  index, " at step ", results_.size());
      auto& result = results_[index];
      if (result.value == nullptr && result.folded.defined()) {
        const auto made = as_constant(result.folded, result.step->dtype);
        result.value = constant(*result.step, made);
      }
      TORCH_CHECK(result.value != nullptr,
                  "hypatia::optimize: expected a step with a result, got step ",
                  index);
      return result.value;
    }
    jit::Value* value = exported_.values[number];
    const bool there = pending_.count(value->node()) == 0;
    TORCH_CHECK(there || !follow, "hypatia::optimize: expected %",
                value->debugName(),
                " to be defined before its use, got it "
                "later");
    return there ? value : nullptr;
  }

  void replace() {
    for (const auto& replacement : edits_.replacements) {
      TORCH_CHECK(replacement.old_ < exported_.values.size(),
                  "hypatia::optimize: expected an original value to replace, "
                  "got number ",
                  replacement.old_);
      jit::Value* old = exported_.values[replacement.old_];
      TORCH_CHECK(old->node()->owningBlock() == block_,
                  "hypatia::optimize: expected a value of the block to "
                  "replace, got %",
                  old->debugName());
      jit::Value* with = available(replacement.old_, /*follow=*/true);
      const auto uses = old->uses();
      for (const jit::Use& use : uses) {
        // A step names its inputs itself.
        if (made_.count(use.user) != 0) continue;
        use.user->replaceInput(use.offset, with);
      }
    }
  }

  void remove() {
    for (size_t i = exported_.nodes.size(); i-- > 0;) {
      jit::Node* node = exported_.nodes[i];
      if (pending_.count(node) == 0) continue;
      TORCH_CHECK(exported_.record.nodes[i].movable,
                  "hypatia::optimize: expected nodes with effects to be kept, "
                  "got none for ",
                  node->kind().toQualString());
      TORCH_CHECK(!node->hasUses(),
                  "hypatia::optimize: expected no use of a "
                  "removed ",
                  node->kind().toQualString(), ", got one");
      node->destroy();
    }
    for (auto it = hoisted_.rbegin(); it != hoisted_.rend(); ++it) {
      if (!(*it)->hasUses()) (*it)->destroy();
    }
  }

  jit::Graph& graph_;
  jit::Block* block_;
  const Exported& exported_;
  const bridge::Edits& edits_;
  const jit::WithInsertPoint insert_;
  at::Device device_ = at::kCPU;
  std::vector<Result> results_;
  std::unordered_map<uint32_t, uint32_t> replaced_;
  std::unordered_map<const jit::Value*, uint32_t> numbers_;
  // Original nodes that no step has placed yet.
  std::unordered_set<const jit::Node*> pending_;
  std::unordered_set<const jit::Node*> made_;
  std::vector<jit::Node*> hoisted_;
  uint32_t next_fixed_ = 0;
};

}  // namespace

void apply(jit::Block* block, const Exported& exported,
           const bridge::Edits& edits) {
  Applier(block, exported, edits).run();
}

}  // namespace hypatia::graph
