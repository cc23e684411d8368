// hypatia::optimize and hypatia::explain, as the dispatcher calls them.
#pragma once

#include <ATen/core/stack.h>

namespace c10 {
class OperatorHandle;
}

namespace hypatia {

void optimize(const c10::OperatorHandle& op, torch::jit::Stack* stack);

void explain(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace hypatia
