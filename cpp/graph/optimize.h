// hypatia::optimize and hypatia::explain, as the dispatcher calls them.
#pragma once

#include <ATen/core/stack.h>
#include <torch/csrc/jit/api/module.h>

namespace c10 {
class OperatorHandle;
}

namespace hypatia {

namespace bridge {
struct Session;
}  // namespace bridge

// A copy that shares the module's tensors; the session has the report.
torch::jit::Module optimized(const torch::jit::Module& module,
                             bridge::Session& session);

void optimize(const c10::OperatorHandle& op, torch::jit::Stack* stack);

void explain(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace hypatia
