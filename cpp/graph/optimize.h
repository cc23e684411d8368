// hypatia::optimize, hypatia::explain and their forms with example inputs, as
// the dispatcher calls them.
#pragma once

#include <ATen/core/stack.h>
#include <torch/csrc/jit/api/module.h>

#include "cpp/graph/shapes.h"

namespace c10 {
class OperatorHandle;
}

namespace hypatia {

namespace bridge {
struct Session;
}  // namespace bridge

// A copy that shares the module's tensors; the session has the report.
// `example`: arguments of forward, of whose sizes predictions may learn; empty
// for none.
torch::jit::Module optimized(const torch::jit::Module& module,
                             const graph::Example& example,
                             bridge::Session& session);

void optimize(const c10::OperatorHandle& op, torch::jit::Stack* stack);

void explain(const c10::OperatorHandle& op, torch::jit::Stack* stack);

void optimize_for(const c10::OperatorHandle& op, torch::jit::Stack* stack);

void explain_for(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace hypatia
