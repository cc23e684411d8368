// What is known of operators by name, where their schemas say too little.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <string>

namespace hypatia::graph {

namespace jit = torch::jit;

// Reads its arguments and returns memory of its own (or no memory at all).
// Listed, not deduced: operators such as dropout, type_as or einsum may return
// an argument and their schemas do not say so.
bool returns_fresh(const jit::Node* node);

// Random only while training. Every member returns its argument otherwise.
bool is_dropout(const jit::Node* node);

// The result has the dtype and the leading sizes of the first argument and the
// columns of its weight, which is floating point: linear and its spellings.
bool is_matrix_product(const jit::Node* node);

// The operator that does the same without writing; empty where none is known.
std::string functional_kind(const jit::Node* node);

// A tensor, a list or another value that has memory of its own.
bool has_memory(const jit::Value* value);

// A block is run by something else than the node's own control flow.
bool has_foreign_blocks(const jit::Node* node);

}  // namespace hypatia::graph
