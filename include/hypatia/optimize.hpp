// hypatia::optimize and hypatia::explain for C++ programs that hold TorchScript
// modules. Apart from hypatia.hpp, because that header needs ATen alone and
// this one LibTorch's TorchScript.
//
// Errors are as in hypatia.hpp.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <string>
#include <utility>
#include <vector>

#include "hypatia/hypatia.hpp"

namespace hypatia {
namespace detail {

// Boxed, because no typed call can pass `Any`.
inline c10::IValue call_with_module(const char* name, torch::jit::Stack stack) {
  check_versions();
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  op.callBoxed(&stack);
  return std::move(stack.at(0));
}

}  // namespace detail

// A module that computes the same, faster where Hypatia knows how. It is new,
// but its parameters and buffers are those of `module`, which is untouched:
// training one trains the other.
inline torch::jit::Module optimize(const torch::jit::Module& module) {
  return detail::call_with_module("hypatia::optimize", {module._ivalue()})
      .toModule();
}

// The same for calls like forward(example...): what pays at its sizes is done,
// instead of only what pays at every size. Right for other sizes too.
inline torch::jit::Module optimize(const torch::jit::Module& module,
                                   const std::vector<c10::IValue>& example) {
  c10::impl::GenericList list(c10::AnyType::get());
  for (const auto& argument : example) list.push_back(argument);
  return detail::call_with_module("hypatia::optimize_for",
                                  {module._ivalue(), std::move(list)})
      .toModule();
}

// What optimize would do and why, as JSON.
inline std::string explain(const torch::jit::Module& module) {
  return detail::call_with_module("hypatia::explain", {module._ivalue()})
      .toStringRef();
}

}  // namespace hypatia
