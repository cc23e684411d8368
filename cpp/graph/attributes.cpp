#include "cpp/graph/attributes.h"

#include <unordered_set>

namespace hypatia::graph {
namespace {

bool is_object(const jit::Value* value) {
  return value->type()->kind() == c10::TypeKind::ClassType ||
         value->type()->kind() == c10::TypeKind::InterfaceType;
}

bool reads_or_sets(const jit::Node* node) {
  return node->kind() == jit::prim::GetAttr ||
         node->kind() == jit::prim::SetAttr;
}

}  // namespace

Attributes::Attributes(jit::Graph& graph, const jit::Module& module)
    : graph_(graph) {
  if (graph.inputs().empty() || !is_object(graph.inputs()[0])) return;
  values_[graph.inputs()[0]] = {"", module._ivalue(), nullptr};
  // Twice: what is set is known only when all objects are.
  collect_writes(graph.block());
  gather(graph.block(), /*resolve=*/false);
  set_.clear();
  set_anywhere_.clear();
  collect_writes(graph.block());
  auto self = values_.at(graph.inputs()[0]);
  values_.clear();
  first_.clear();
  values_[graph.inputs()[0]] = std::move(self);
  if (!opaque_) gather(graph.block(), /*resolve=*/true);
  check_separate();
}

const Attributes::Attribute* Attributes::find(const jit::Value* value) const {
  // A read that was removed may have left its address to another value.
  if (value->node()->kind() != jit::prim::GetAttr) return nullptr;
  const auto found = values_.find(value);
  return found == values_.end() || found->second.owner == nullptr
             ? nullptr
             : &found->second;
}

const c10::ivalue::Object* Attributes::object(const jit::Value* value) const {
  const auto found = values_.find(value);
  if (found == values_.end() || !found->second.value.isObject()) return nullptr;
  return found->second.value.toObjectRef().type()->is_module()
             ? &found->second.value.toObjectRef()
             : nullptr;
}

void Attributes::collect_writes(jit::Block* block) {
  for (jit::Node* node : block->nodes()) {
    for (jit::Block* nested : node->blocks()) collect_writes(nested);
    if (node->kind() == jit::prim::SetAttr) {
      const auto& name = node->s(jit::attr::name);
      if (const auto* owner = object(node->inputs()[0])) {
        set_[{owner, name}] = true;
      } else {
        set_anywhere_[name] = true;
      }
    }
    // A call, a fork or a container: code that is not here may set anything.
    for (size_t i = 0; i < node->inputs().size(); ++i) {
      const bool through = i == 0 && reads_or_sets(node);
      opaque_ = opaque_ || (is_object(node->inputs()[i]) && !through);
    }
    opaque_ = opaque_ || node->hasAttribute(jit::attr::Subgraph);
  }
  for (const jit::Value* output : block->outputs()) {
    opaque_ = opaque_ || is_object(output);
  }
}

bool Attributes::is_set(const c10::ivalue::Object* owner,
                        const std::string& name) const {
  return set_.count({owner, name}) != 0 || set_anywhere_.count(name) != 0;
}

// ClassType looks names up one by one: quadratic for a long Sequential.
size_t Attributes::slot(const c10::ClassTypePtr& type,
                        const std::string& name) {
  auto& names = slots_[type.get()];
  if (names.empty()) {
    for (size_t i = 0; i < type->numAttributes(); ++i) {
      names.emplace(type->getAttributeName(i), i);
    }
  }
  return names.at(name);
}

void Attributes::gather(jit::Block* block, bool resolve) {
  // The last read that was moved to the top, in the order of their uses.
  jit::Node* top = graph_.param_node();
  const auto visit = [&](auto&& self, jit::Block* current) -> void {
    for (auto it = current->nodes().begin(); it != current->nodes().end();) {
      jit::Node* node = *it;
      ++it;
      for (jit::Block* nested : node->blocks()) self(self, nested);
      if (node->kind() != jit::prim::GetAttr) continue;
      const auto* owner = object(node->input());
      if (owner == nullptr) continue;
      const auto& name = node->s(jit::attr::name);
      if (is_set(owner, name)) continue;
      const auto value = owner->getSlot(slot(owner->type(), name));
      const auto& prefix = values_.at(node->input()).path;
      values_[node->output()] = {prefix.empty() ? name : prefix + "." + name,
                                 value, owner};
      if (!resolve) continue;
      auto& first = first_[{owner, name}];
      if (first == nullptr) {
        first = node->output();
        node->moveAfter(top);
        top = node;
      } else {
        node->output()->replaceAllUsesWith(first);
        values_.erase(node->output());
        node->destroy();
      }
    }
  };
  visit(visit, block);
}

void Attributes::check_separate() {
  if (opaque_) return;
  std::unordered_set<const void*> seen;
  for (const auto& [slot, value] : first_) {
    const auto& attribute = values_.at(value).value;
    if (!attribute.isTensor()) {
      // Lists and dicts: their tensors may be anybody's.
      if (attribute.isList() || attribute.isGenericDict()) return;
      continue;
    }
    const auto& tensor = attribute.toTensor();
    if (!tensor.defined() || !tensor.has_storage()) continue;
    if (!seen.insert(tensor.storage().unsafeGetStorageImpl()).second) return;
  }
  separate_ = true;
}

}  // namespace hypatia::graph
