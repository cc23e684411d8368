#include "cpp/graph/method.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>

#include <array>
#include <vector>

#include "cpp/graph/apply.h"
#include "cpp/graph/attributes.h"
#include "cpp/graph/export.h"
#include "cpp/graph/facts.h"
#include "cpp/graph/functional.h"
#include "cpp/graph/kinds.h"
#include "cpp/graph/obstacle.h"
#include "cpp/graph/rank_guard.h"

namespace hypatia::graph {
namespace {

// Inlining takes graphs in which an active autocast may have put casts; those
// would stay in the module when autocast is off again.
class WithoutAutocast {
 public:
  WithoutAutocast() {
    for (size_t i = 0; i < devices_.size(); ++i) {
      enabled_[i] = at::autocast::is_autocast_enabled(devices_[i]);
      at::autocast::set_autocast_enabled(devices_[i], false);
    }
  }
  ~WithoutAutocast() {
    for (size_t i = 0; i < devices_.size(); ++i) {
      at::autocast::set_autocast_enabled(devices_[i], enabled_[i]);
    }
  }
  WithoutAutocast(const WithoutAutocast&) = delete;
  WithoutAutocast& operator=(const WithoutAutocast&) = delete;

 private:
  std::array<at::DeviceType, 2> devices_ = {at::kCPU, at::kCUDA};
  std::array<bool, 2> enabled_{};
};

bool calls_a_graph(jit::Block* block) {
  for (jit::Node* node : block->nodes()) {
    if (node->kind() == jit::prim::CallFunction &&
        jit::tryToGraphFunction(node) != nullptr) {
      return true;
    }
    if (node->kind() == jit::prim::CallMethod) {
      const auto type = node->inputs()[0]->type()->cast<c10::ClassType>();
      auto* method =
          type ? type->findMethod(node->s(jit::attr::name)) : nullptr;
      if (method != nullptr && method->isGraphFunction()) return true;
    }
    for (jit::Block* nested : node->blocks()) {
      if (calls_a_graph(nested)) return true;
    }
  }
  return false;
}

// What TorchScript's own executor does first, in its order.
void prepare(std::shared_ptr<jit::Graph>& graph) {
  // Once does for a callee that was inlined itself; one that ran under
  // torch.jit.optimized_execution(False) is kept as it was written.
  constexpr int deepest = 1000;
  for (int i = 0; i < deepest && calls_a_graph(graph->block()); ++i) {
    jit::Inline(*graph);
  }
  jit::PeepholeOptimize(graph, /*disable_shape_peepholes=*/true);
  jit::ConstantPropagationImmutableTypes(graph);
  jit::LowerSimpleTuples(graph);
}

class BlockOptimizer {
 public:
  BlockOptimizer(const Facts& facts, bridge::Session& session)
      : facts_(facts), session_(session) {}

  // `matrix`: as for export_block.
  void visit(jit::Block* block, const std::string& name,
             const jit::Value* matrix = nullptr) {
    const auto exported = export_block(block, name, facts_, matrix);
    const auto edits = session_.optimize_block(exported.record);
    if (edits.changed) {
      apply(block, exported, edits);
      changed = true;
    }
    size_t ifs = 0;
    size_t loops = 0;
    for (jit::Node* node : block->nodes()) {
      if (has_foreign_blocks(node)) {
        session_.note_skipped(
            rust::String::lossy(name),
            rust::String::lossy("the body of " +
                                std::string(node->kind().toQualString()) +
                                " is run elsewhere"));
      } else if (node->kind() == jit::prim::If) {
        const auto inner = name + "/if." + std::to_string(++ifs);
        visit(node->blocks()[0], inner + "/then", matrix);
        visit(node->blocks()[1], inner + "/else", matrix);
      } else if (node->kind() == jit::prim::Loop) {
        visit(node->blocks()[0],
              name + "/loop." + std::to_string(++loops) + "/body", matrix);
      }
    }
  }

  bool changed = false;

 private:
  const Facts& facts_;
  bridge::Session& session_;
};

bool on_cpu(const jit::Module& module) {
  for (const auto& tensor : module.parameters()) {
    if (!tensor.is_cpu()) return false;
  }
  return true;
}

// One method of a module, and how it is called.
struct Method {
  const jit::Module& module;
  const std::string& name;
  const Example& example;
};

// Rewrites a prepared graph; whether anything changed.
bool rewrite(const std::shared_ptr<jit::Graph>& graph, const Method& method,
             bridge::Session& session) {
  const Attributes attributes(*graph, method.module);
  const auto notes =
      functionalize(*graph, attributes, method.name, on_cpu(method.module));
  note_shapes(*graph, attributes, method.example);
  const Facts facts(graph, attributes);
  bool changed = false;
  const auto visit = [&](jit::Block* block, const std::string& name,
                         const jit::Value* matrix, bridge::Session& report) {
    BlockOptimizer blocks(facts, report);
    blocks.visit(block, name, matrix);
    changed = changed || blocks.changed;
  };
  if (const auto guard = find_rank_guard(*graph); guard.input != nullptr) {
    // The report is about the calls that the guard is for.
    auto others = bridge::new_session(session.options());
    visit(guard.others, method.name + "/others", nullptr, *others);
    visit(guard.matrix, method.name, guard.input, session);
  } else {
    visit(graph->block(), method.name, nullptr, session);
  }
  for (const auto& note : notes.refused) {
    session.note_skipped(rust::String::lossy(note.where),
                         rust::String::lossy(note.what));
  }
  // An operator made functional wins nothing by itself.
  if (!changed) return false;
  graph->lint();
  for (const auto& note : notes.rewritten) {
    session.note_rewrite(rust::String::lossy(note.what),
                         rust::String::lossy(note.where));
  }
  return true;
}

// Splits the graph in two versions if that lets a batch norm be folded, which
// is tried: no rule can tell before.
void guard_rank(jit::Graph& graph, const Method& method,
                bridge::Session& session) {
  if (count_batch_norms(graph.block()) == 0 ||
      find_rank_guard(graph).input != nullptr) {
    return;
  }
  for (size_t i = 1; i < graph.inputs().size(); ++i) {
    if (graph.inputs()[i]->type()->kind() != c10::TypeKind::TensorType) {
      continue;
    }
    const auto trial = graph.copy();
    add_rank_guard(*trial, i);
    auto unreported = bridge::new_session(session.options());
    rewrite(trial, method, *unreported);
    const auto guard = find_rank_guard(*trial);
    if (guard.input == nullptr ||
        count_batch_norms(guard.matrix) >= count_batch_norms(guard.others)) {
      continue;
    }
    add_rank_guard(graph, i);
    session.note_rewrite(
        "rank_guard",
        rust::String::lossy(method.name + ": " +
                            graph.inputs()[i]->debugName() + ".dim() == 2"));
    return;
  }
}

std::shared_ptr<jit::Graph> optimized(const Method& method,
                                      jit::Graph& original,
                                      bridge::Session& session) {
  auto graph = original.copy();
  jit::Inline(*graph);
  const auto reason = obstacle(*graph);
  TORCH_CHECK(reason.empty(), reason);
  prepare(graph);
  session.begin_method();
  const auto untouched = graph->copy();
  guard_rank(*graph, method, session);
  if (!rewrite(graph, method, session)) return nullptr;
  const auto risk = obstacle(*graph);
  if (!risk.empty()) {
    session.discard_method();
    rewrite(untouched, method, session);  // Only counts.
    TORCH_CHECK(false, "the new graph would be unsafe: ", risk);
  }
  // Numbers its values anew, so that the text of a graph does not tell how it
  // came about.
  return graph->copy();
}

}  // namespace

std::shared_ptr<jit::Graph> optimize_method(const jit::Module& module,
                                            const std::string& name,
                                            jit::Graph& original,
                                            const Example& example,
                                            bridge::Session& session) {
  const WithoutAutocast without_autocast;
  std::string reason;
  try {
    return optimized({module, name, example}, original, session);
  } catch (const c10::Error& error) {
    reason = error.what_without_backtrace();
  } catch (const std::exception& error) {
    reason = error.what();
  }
  session.note_skipped(rust::String::lossy(name), rust::String::lossy(reason));
  return nullptr;
}

}  // namespace hypatia::graph
