#include "cpp/graph/optimize.h"

#include <torch/csrc/jit/api/method.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

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

using Graphs = std::map<std::string, std::shared_ptr<jit::Graph>>;

// The new graphs of those methods that change. What one pass made may be read
// by the next: passes go on until one changes nothing.
Graphs new_graphs(const jit::Module& module, const graph::Example& example,
                  bridge::Session& session) {
  constexpr int passes = 8;
  Graphs found;
  for (int pass = 0; pass < passes; ++pass) {
    session.begin_pass();
    bool changed = false;
    for (const auto& method : module.get_methods()) {
      const auto& name = method.name();
      auto* function = jit::tryToGraphFunction(method.function());
      if (function == nullptr) {
        session.note_skipped(rust::String::lossy(name),
                             "the method has no graph");
        continue;
      }
      function->ensure_defined();
      const auto known = found.find(name);
      const auto before =
          known == found.end() ? function->graph() : known->second;
      auto graph = graph::optimize_method(
          module, name, *before, name == "forward" ? example : graph::Example(),
          session);
      if (!graph) continue;
      changed = true;
      found[name] = std::move(graph);
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

jit::Module optimized(const jit::Module& module, const graph::Example& example,
                      bridge::Session& session) {
  auto copy = graph::copy_sharing_tensors(module);
  // All graphs first: a method inlines others as the user wrote them.
  for (auto& [name, graph] : new_graphs(copy, example, session)) {
    graph::replace_method(copy, name, graph);
  }
  return copy;
}

namespace {

using Session = rust::Box<bridge::Session>;

Session session_for(const jit::Module& module, const graph::Example& example) {
  auto options = graph::options_for(module);
  options.example = !example.empty();
  return bridge::new_session(options);
}

c10::IValue optimize_as(const char* op, const c10::IValue& argument,
                        const graph::Example& example) {
  const auto module = module_argument(op, argument);
  return with_errors_of(op, [&] {
    auto session = session_for(module, example);
    return optimized(module, example, *session)._ivalue();
  });
}

c10::IValue explain_as(const char* op, const c10::IValue& argument,
                       const graph::Example& example) {
  const auto module = module_argument(op, argument);
  return with_errors_of(op, [&] {
    // The graphs are copies already: nothing to clone.
    auto session = session_for(module, example);
    new_graphs(module, example, *session);
    return std::string(session->report());
  });
}

// Pops the example, of which there must be one; arguments that it leaves out
// have their defaults.
graph::Example example_argument(const char* op, torch::jit::Stack& stack) {
  auto example = torch::jit::pop(stack).toListRef().vec();
  TORCH_CHECK(!example.empty(), "hypatia::", op,
              ": expected the arguments of a call as example_inputs, got none");
  const auto module = module_argument(op, torch::jit::peek(stack, 0, 1));
  if (const auto forward = module.find_method("forward")) {
    const auto& arguments = forward->function().getSchema().arguments();
    for (size_t i = example.size() + 1; i < arguments.size(); ++i) {
      const auto& value = arguments[i].default_value();
      if (!value) break;
      example.push_back(*value);
    }
  }
  return example;
}

}  // namespace

void optimize(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto module = torch::jit::pop(*stack);
  torch::jit::push(*stack, optimize_as("optimize", module, {}));
}

void explain(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto module = torch::jit::pop(*stack);
  torch::jit::push(*stack, explain_as("explain", module, {}));
}

void optimize_for(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto example = example_argument("optimize_for", *stack);
  const auto module = torch::jit::pop(*stack);
  torch::jit::push(*stack, optimize_as("optimize_for", module, example));
}

void explain_for(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  const auto example = example_argument("explain_for", *stack);
  const auto module = torch::jit::pop(*stack);
  torch::jit::push(*stack, explain_as("explain_for", module, example));
}

}  // namespace hypatia
