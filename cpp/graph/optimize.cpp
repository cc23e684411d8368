#include "cpp/graph/optimize.h"

#include <torch/csrc/jit/api/method.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "cpp/graph/method.h"
#include "cpp/graph/module.h"

namespace hypatia {
namespace {

namespace jit = torch::jit;

jit::Module module_argument(const char* op, const c10::IValue& value) {
  TORCH_CHECK(value.isModule(), "hypatia::", op,
              ": expected a TorchScript module, got ", value.tagKind());
  return value.toModule();
}

using Replacement = std::pair<std::string, std::shared_ptr<jit::Graph>>;

// The new graphs of those methods that change. What one pass made may be read
// by the next: passes go on until one changes nothing.
std::vector<Replacement> new_graphs(const jit::Module& module,
                                    bridge::Session& session) {
  constexpr int passes = 8;
  std::vector<Replacement> found;
  const auto graph_of = [&](const std::string& name, jit::GraphFunction& f) {
    for (const auto& [known, graph] : found) {
      if (known == name) return graph;
    }
    return f.graph();
  };
  for (int pass = 0; pass < passes; ++pass) {
    session.begin_pass();
    bool changed = false;
    for (const auto& method : module.get_methods()) {
      auto* function = jit::tryToGraphFunction(method.function());
      if (function == nullptr) {
        session.note_skipped(rust::String::lossy(method.name()),
                             "the method has no graph");
        continue;
      }
      function->ensure_defined();
      const auto before = graph_of(method.name(), *function);
      auto graph =
          graph::optimize_method(module, method.name(), *before, session);
      if (!graph) continue;
      changed = true;
      const auto old = std::find_if(
          found.begin(), found.end(),
          [&](const auto& entry) { return entry.first == method.name(); });
      if (old != found.end()) found.erase(old);
      found.emplace_back(method.name(), std::move(graph));
    }
    if (!changed) break;
  }
  return found;
}

// A Rust error is a std::exception, which LibTorch's callers do not expect.
template <typename Body>
auto with_errors_of(const char* op, const Body& body) {
  try {
    return body();
  } catch (const c10::Error&) {
    throw;
  } catch (const std::exception& error) {
    TORCH_CHECK(false, "hypatia::", op, ": expected no internal failure, got ",
                error.what());
  }
}

}  // namespace

jit::Module optimized(const jit::Module& module, bridge::Session& session) {
  auto copy = graph::copy_sharing_tensors(module);
  // All graphs first: a method inlines others as the user wrote them.
  for (auto& [name, graph] : new_graphs(copy, session)) {
    graph::replace_method(copy, name, std::move(graph));
  }
  return copy;
}

void optimize(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto module = module_argument("optimize", torch::jit::pop(*stack));
  const auto result = with_errors_of("optimize", [&] {
    auto session = bridge::new_session(graph::options_for(module));
    return optimized(module, *session);
  });
  torch::jit::push(*stack, result._ivalue());
}

void explain(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto module = module_argument("explain", torch::jit::pop(*stack));
  torch::jit::push(*stack, with_errors_of("explain", [&] {
    // The graphs are copies already: nothing to clone.
    auto session = bridge::new_session(graph::options_for(module));
    new_graphs(module, *session);
    return std::string(session->report());
  }));
}

}  // namespace hypatia
