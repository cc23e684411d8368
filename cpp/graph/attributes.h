// The module's attributes as the graph reads them: which are never set, what
// they are, and one prim::GetAttr for each.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <map>
#include <string>
#include <unordered_map>
#include <utility>

namespace hypatia::graph {

namespace jit = torch::jit;

class Attributes {
 public:
  // Reads the graph of a method of `module`, and gathers its reads of
  // attributes that it never sets: each once, at the top of the graph.
  Attributes(jit::Graph& graph, const jit::Module& module);

  struct Attribute {
    std::string path;  // `layers.0.weight`
    c10::IValue value;
    // Tells slots apart, not tensors: two slots may hold one tensor.
    const void* owner;
  };

  // Null for anything but a read of an attribute that is never set.
  const Attribute* find(const jit::Value* value) const;

  // Every read is of an attribute of its own memory, and no code that this
  // graph does not show can reach one.
  bool all_separate() const { return separate_; }

 private:
  using Slot = std::pair<const void*, std::string>;

  void gather(jit::Block* block, bool resolve);
  void collect_writes(jit::Block* block);
  const c10::ivalue::Object* object(const jit::Value* value) const;
  bool is_set(const c10::ivalue::Object* owner, const std::string& name) const;
  size_t slot(const c10::ClassTypePtr& type, const std::string& name);
  void check_separate();

  jit::Graph& graph_;
  std::unordered_map<const jit::Value*, Attribute> values_;
  std::map<Slot, jit::Value*> first_;
  std::map<Slot, bool> set_;
  std::map<std::string, bool> set_anywhere_;
  std::unordered_map<const c10::ClassType*,
                     std::unordered_map<std::string, size_t>>
      slots_;
  bool opaque_ = false;
  bool separate_ = false;
};

}  // namespace hypatia::graph
