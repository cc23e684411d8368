// optimize and explain on module handles, for the C ABI.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <memory>

#include "rust/cxx.h"

namespace hypatia::bridge {

std::unique_ptr<torch::jit::Module> call_optimize(
    const torch::jit::Module& module);

rust::String call_explain(const torch::jit::Module& module);

}  // namespace hypatia::bridge
