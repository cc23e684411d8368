// A graph in two versions: one for calls whose input is a matrix, one for all
// others. Batch norm behind a layer can be folded in the first only, and a
// scripted module does not say how many dimensions it will be given.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <memory>

namespace hypatia::graph {

namespace jit = torch::jit;

// `if input.dim() == 2: … else: …` around everything.
struct RankGuard {
  const jit::Value* input = nullptr;
  jit::Block* matrix = nullptr;
  jit::Block* others = nullptr;
};

// The guard that the graph consists of; no input if there is none.
RankGuard find_rank_guard(jit::Graph& graph);

// Makes the graph two versions of itself.
void add_rank_guard(jit::Graph& graph, size_t input);

// How many batch norms with constant statistics a block has, not counting those
// behind a convolution; nested blocks included.
size_t count_batch_norms(const jit::Block* block);

}  // namespace hypatia::graph
