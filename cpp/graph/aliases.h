// Which values may share memory, near-linear in the size of the graph: a
// union-find along the edges that schemas declare, that operators hide, and
// that control flow makes.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <unordered_map>
#include <vector>

namespace hypatia::graph {

namespace jit = torch::jit;

// How an operator's inputs relate to its outputs.
enum class Relation {
  reads,    // no output shares memory with this input
  aliases,  // some output may
  writes,   // the input is written
  unknown,  // it may be kept anywhere
};

// What `node` does with input `index`.
Relation relation(const jit::Node* node, size_t index);

// A list or tuple whose elements nothing takes out again: it is only read, or
// returned by the graph. Its elements share no memory through it.
bool is_sealed(const jit::Node* node);

class Aliases {
 public:
  // Adds the edges of `node`, and of its blocks.
  void add(const jit::Node* node);

  // Values that may share memory have the same class.
  size_t find(const jit::Value* value);

  void unite(const jit::Value* a, const jit::Value* b);

  // The class of everything whose origin is not known.
  void unite_with_unknown(const jit::Value* value);

 private:
  size_t root(size_t i);
  size_t number(const jit::Value* value);
  void unite(size_t a, size_t b);
  void add_block(const jit::Block* block);

  static constexpr size_t unknown_ = 0;
  std::vector<size_t> parent_ = {unknown_};
  std::unordered_map<const jit::Value*, size_t> numbers_;
};

}  // namespace hypatia::graph
