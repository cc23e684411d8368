#include "cpp/graph/export.h"

#include <torch/csrc/jit/ir/constants.h>

#include <unordered_set>

#include "cpp/graph/aliases.h"
#include "cpp/graph/escapes.h"
#include "cpp/graph/kinds.h"
#include "cpp/graph/payload.h"

namespace hypatia::graph {
namespace {

bridge::ValueKind kind_of(const jit::Value* value) {
  const auto& type = *value->type();
  switch (type.kind()) {
    case c10::TypeKind::TensorType:
      return bridge::ValueKind::Tensor;
    case c10::TypeKind::IntType:
      return bridge::ValueKind::Int;
    case c10::TypeKind::FloatType:
      return bridge::ValueKind::Float;
    case c10::TypeKind::BoolType:
      return bridge::ValueKind::Bool;
    case c10::TypeKind::NoneType:
      return bridge::ValueKind::None;
    case c10::TypeKind::ListType: {
      const auto& element = *type.expectRef<c10::ListType>().getElementType();
      if (element.kind() == c10::TypeKind::IntType) {
        return bridge::ValueKind::Ints;
      }
      if (element.isSubtypeOf(*c10::OptionalType::ofTensor())) {
        return bridge::ValueKind::Tensors;
      }
      return bridge::ValueKind::Other;
    }
    default:
      return bridge::ValueKind::Other;
  }
}

class Exporter {
 public:
  Exporter(jit::Block* block, const std::string& name, const Facts& facts,
           const jit::Value* matrix)
      : block_(block), facts_(facts), matrix_(matrix), escapes_(block) {
    result_.record.name = rust::String::lossy(name);
  }

  Exported run() && {
    for (jit::Node* node : block_->nodes()) {
      aliases_.add(node);
      add(node);
    }
    for (jit::Value* output : block_->outputs()) {
      result_.record.outputs.push_back(number(output));
    }
    // Classes are final only when every node was seen.
    std::unordered_map<size_t, uint32_t> classes;
    for (uint32_t i = 0; i < result_.values.size(); ++i) {
      const auto root = aliases_.find(result_.values[i]);
      result_.record.values[i].storage = classes.emplace(root, i).first->second;
    }
    return std::move(result_);
  }

 private:
  void add(jit::Node* node) {
    bridge::Node record;
    record.kind = rust::String::lossy(node->kind().toQualString());
    if (const auto* schema = node->maybeSchema()) {
      record.overload = rust::String::lossy(schema->overload_name());
    }
    for (jit::Value* input : node->inputs()) {
      record.inputs.push_back(number(input));
    }
    // Also what its blocks use, or it would seem unused.
    std::unordered_set<const jit::Value*> captured;
    for (jit::Block* nested : node->blocks()) {
      for_each_capture(nested, [&](jit::Value* value) {
        if (captured.insert(value).second) {
          record.inputs.push_back(number(value));
        }
      });
    }
    for (jit::Value* output : node->outputs()) {
      record.outputs.push_back(number(output));
    }
    const auto& reason = facts_.fixed_reason(node);
    record.movable = reason.empty();
    record.reason = rust::String::lossy(reason);
    result_.record.nodes.push_back(std::move(record));
    result_.nodes.push_back(node);
  }

  uint32_t number(jit::Value* value) {
    const auto next = static_cast<uint32_t>(result_.values.size());
    const auto [it, added] = numbers_.emplace(value, next);
    if (added) {
      result_.values.push_back(value);
      result_.record.values.push_back(describe(value, next));
    }
    return it->second;
  }

  bridge::Value describe(jit::Value* value, uint32_t self) {
    bridge::Value record{};
    record.name = rust::String::lossy(value->debugName());
    record.kind = kind_of(value);
    record.origin = bridge::Origin::Computed;
    record.dtype = -1;
    record.identity = self;
    const bool tensor = record.kind == bridge::ValueKind::Tensor;
    record.needs_grad = tensor || record.kind == bridge::ValueKind::Tensors ||
                        record.kind == bridge::ValueKind::Other;
    const bool inside = value->node()->owningBlock() == block_ &&
                        value->node() != block_->param_node();
    const auto* attribute = facts_.attributes().find(value);
    if (value->node()->kind() == jit::prim::Constant &&
        !facts_.is_written(value)) {
      record.origin = bridge::Origin::Constant;
      record.escapes = !inside || escapes_(value);
      if (const auto payload = jit::toIValue(value)) {
        describe_constant(*payload, tensors_, record);
        if (payload->isTensor()) unite_by_memory(value, payload->toTensor());
      }
    } else if (attribute != nullptr && !facts_.is_written(value)) {
      record.origin = bridge::Origin::Parameter;
      record.name = rust::String::lossy(attribute->path);
      record.escapes = true;  // The module holds it.
      if (attribute->value.isTensor() && tensor) {
        describe_tensor(attribute->value.toTensor(), tensors_, record);
        unite_by_memory(value, attribute->value.toTensor());
      } else {
        const auto key =
            std::make_pair(attribute->owner, value->node()->s(jit::attr::name));
        record.identity = slots_.emplace(key, self).first->second;
      }
    } else {
      if (!inside) record.origin = bridge::Origin::Outside;
      record.escapes = has_memory(value) && (!inside || escapes_(value));
      if (!inside || value->node()->kind() == jit::prim::GetAttr) {
        aliases_.unite_with_unknown(value);
      }
      describe_list(value, facts_, record);
      describe_hint(*value->type(), record);
      if (value == matrix_) {
        record.has_shape = true;
        record.shape = {unknown_size, unknown_size};
      }
    }
    // A type that has one value.
    if (record.kind == bridge::ValueKind::None) record.known = true;
    return record;
  }

  // Two names of one piece of memory that is there already.
  void unite_by_memory(const jit::Value* value, const at::Tensor& tensor) {
    if (const void* key = storage_key(tensor)) {
      aliases_.unite(value, storages_.emplace(key, value).first->second);
    }
  }

  jit::Block* block_;
  static constexpr int64_t unknown_size = -1;

  const Facts& facts_;
  const jit::Value* matrix_;
  Escapes escapes_;
  Aliases aliases_;
  Exported result_;
  TensorNumbers tensors_;
  std::unordered_map<const jit::Value*, uint32_t> numbers_;
  std::unordered_map<const void*, const jit::Value*> storages_;
  std::map<std::pair<const void*, std::string>, uint32_t> slots_;
};

void captures(const jit::Block* block, std::unordered_set<const void*>& inside,
              const std::function<void(jit::Value*)>& visit) {
  inside.insert(block);
  const auto use = [&](const jit::Value* value) {
    if (inside.count(value->node()->owningBlock()) == 0) {
      visit(const_cast<jit::Value*>(value));
    }
  };
  for (const jit::Node* node : block->nodes()) {
    for (const jit::Value* input : node->inputs()) use(input);
    for (const jit::Block* nested : node->blocks()) {
      captures(nested, inside, visit);
    }
  }
  for (const jit::Value* output : block->outputs()) use(output);
}

}  // namespace

void for_each_capture(const jit::Block* block,
                      const std::function<void(jit::Value*)>& visit) {
  std::unordered_set<const void*> inside;
  captures(block, inside, visit);
}

Exported export_block(jit::Block* block, const std::string& name,
                      const Facts& facts, const jit::Value* matrix) {
  return Exporter(block, name, facts, matrix).run();
}

}  // namespace hypatia::graph
