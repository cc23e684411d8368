#include "cpp/graph/aliases.h"

#include "cpp/graph/kinds.h"

namespace hypatia::graph {
namespace {

// `(a)` and `(a!)`, but nothing that mentions elements or the wildcard.
bool is_plain(const c10::AliasInfo* info) {
  return info == nullptr ||
         (info->containedTypes().empty() && !info->isWildcardBefore() &&
          !info->isWildcardAfter());
}

bool intersects(const c10::AliasInfo& a, const c10::AliasInfo& b) {
  for (const auto& set : a.beforeSets()) {
    if (b.beforeSets().count(set) != 0) return true;
  }
  return false;
}

// ListConstruct keeps its elements; who reads the list reads them.
bool is_container(const jit::Node* node) {
  return node->kind() == jit::prim::ListConstruct ||
         node->kind() == jit::prim::TupleConstruct ||
         node->kind() == jit::prim::ListUnpack ||
         node->kind() == jit::prim::TupleUnpack ||
         node->kind() == jit::prim::TupleIndex;
}

// The schema where it can be believed: of the framework's operators and ours.
const c10::FunctionSchema* believed_schema(const jit::Node* node) {
  const auto kind = node->kind();
  if (!kind.is_aten() && !kind.is_prim() &&
      std::string_view(kind.toQualString()).substr(0, 9) != "hypatia::") {
    return nullptr;
  }
  return node->maybeSchema();
}

bool is_list_of_numbers(const jit::Value* value) {
  if (value->type()->kind() != c10::TypeKind::ListType) return false;
  switch (value->type()->expectRef<c10::ListType>().getElementType()->kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::BoolType:
      return true;
    default:
      return false;
  }
}

}  // namespace

Relation relation(const jit::Node* node, size_t index) {
  if (is_container(node)) return Relation::aliases;
  const auto* schema = believed_schema(node);
  if (schema == nullptr || schema->is_vararg() || schema->is_varret() ||
      index >= schema->arguments().size() || !node->blocks().empty()) {
    return Relation::unknown;
  }
  const auto* info = schema->arguments()[index].alias_info();
  if (info != nullptr && info->isWrite()) return Relation::writes;
  if (!is_plain(info)) return Relation::unknown;
  bool aliased = false;
  for (const auto& result : schema->returns()) {
    const auto* other = result.alias_info();
    if (other == nullptr || info == nullptr) continue;
    // `split` returns `Tensor(a)[]`: its elements are views.
    aliased = aliased || intersects(*info, *other);
    for (const auto& contained : other->containedTypes()) {
      aliased = aliased || intersects(*info, contained);
    }
  }
  if (aliased) return Relation::aliases;
  if (returns_fresh(node)) return Relation::reads;
  // Not on the list: its schema is believed only if it returns no memory that
  // could be the argument's. A tensor is never a list of sizes.
  const bool sizes = is_list_of_numbers(node->inputs()[index]);
  for (const jit::Value* output : node->outputs()) {
    const bool tensor = output->type()->kind() == c10::TypeKind::TensorType;
    if (has_memory(output) && !(sizes && tensor)) return Relation::aliases;
  }
  return Relation::reads;
}

bool is_sealed(const jit::Node* node) {
  if (node->kind() != jit::prim::ListConstruct &&
      node->kind() != jit::prim::TupleConstruct) {
    return false;
  }
  for (const jit::Use& use : node->output()->uses()) {
    const bool returned = use.user == node->owningGraph()->return_node();
    if (!returned && !is_sealed(use.user) &&
        relation(use.user, use.offset) != Relation::reads) {
      return false;
    }
  }
  return true;
}

size_t Aliases::root(size_t i) {
  while (parent_[i] != i) i = parent_[i] = parent_[parent_[i]];
  return i;
}

size_t Aliases::number(const jit::Value* value) {
  const auto [it, added] = numbers_.emplace(value, parent_.size());
  if (added) parent_.push_back(it->second);
  return it->second;
}

void Aliases::unite(size_t a, size_t b) {
  a = root(a);
  b = root(b);
  // The smaller number leads, so that results do not depend on the order.
  if (a < b) {
    parent_[b] = a;
  } else {
    parent_[a] = b;
  }
}

size_t Aliases::find(const jit::Value* value) { return root(number(value)); }

void Aliases::unite(const jit::Value* a, const jit::Value* b) {
  if (has_memory(a) && has_memory(b)) unite(number(a), number(b));
}

void Aliases::unite_with_unknown(const jit::Value* value) {
  if (has_memory(value)) unite(number(value), unknown_);
}

void Aliases::add_block(const jit::Block* block) {
  for (const jit::Node* node : block->nodes()) add(node);
}

void Aliases::add(const jit::Node* node) {
  for (const jit::Block* block : node->blocks()) add_block(block);
  const auto outputs = node->outputs();
  if (node->kind() == jit::prim::Constant ||
      node->kind() == jit::prim::GetAttr || is_sealed(node)) {
    return;  // The caller knows whose they are.
  }
  if (node->kind() == jit::prim::If) {
    for (const jit::Block* block : node->blocks()) {
      for (size_t i = 0; i < outputs.size(); ++i) {
        unite(outputs[i], block->outputs()[i]);
      }
    }
    return;
  }
  if (node->kind() == jit::prim::Loop) {
    const jit::Block* body = node->blocks()[0];
    for (size_t i = 0; i < outputs.size(); ++i) {
      unite(outputs[i], node->inputs()[i + 2]);
      unite(outputs[i], body->inputs()[i + 1]);
      unite(outputs[i], body->outputs()[i + 1]);
    }
    return;
  }
  for (size_t i = 0; i < node->inputs().size(); ++i) {
    const jit::Value* input = node->inputs()[i];
    const auto how = relation(node, i);
    if (how == Relation::reads) continue;
    for (const jit::Value* output : outputs) unite(input, output);
    if (how == Relation::unknown) unite_with_unknown(input);
  }
  const auto* schema = believed_schema(node);
  if (is_container(node)) return;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const bool known = schema != nullptr && !schema->is_varret() &&
                       i < schema->returns().size();
    const auto* info = known ? schema->returns()[i].alias_info() : nullptr;
    bool plain = is_plain(info);
    if (info != nullptr && !plain) {
      // `Tensor(a)[]` of an argument `a` is joined to it above.
      plain = !info->isWildcardAfter() && !info->isWildcardBefore();
      for (const auto& contained : info->containedTypes()) {
        plain = plain && is_plain(&contained);
      }
    }
    if (!known || !plain) unite_with_unknown(outputs[i]);
  }
}

}  // namespace hypatia::graph
