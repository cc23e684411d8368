#include "cpp/graph/handles.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace hypatia::bridge {
namespace {

c10::IValue call(const char* name, const torch::jit::Module& module) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  torch::jit::Stack stack = {module._ivalue()};
  op.callBoxed(&stack);
  return std::move(stack.at(0));
}

}  // namespace

std::unique_ptr<torch::jit::Module> call_optimize(
    const torch::jit::Module& module) {
  return std::make_unique<torch::jit::Module>(
      call("hypatia::optimize", module).toModule());
}

rust::String call_explain(const torch::jit::Module& module) {
  return rust::String::lossy(call("hypatia::explain", module).toStringRef());
}

}  // namespace hypatia::bridge
