// The operators of libhypatia.so for C++, header-only, over LibTorch's
// dispatcher: autograd, autocast, inference mode and tracing apply to them as
// to ATen's own.
//
// Errors are c10::Error; what_without_backtrace() is one sentence,
// `hypatia::op: expected …, got …`. Where library, header and LibTorch do not
// belong together, the first call throws std::runtime_error instead, because
// c10::Error itself may then not be what the program was compiled with.
#pragma once

#include <torch/version.h>

// Defined by the CMake target: the LibTorch that the library was built for.
#if defined(HYPATIA_LIBTORCH_MAJOR) && defined(HYPATIA_LIBTORCH_MINOR)
#define HYPATIA_TEXT_OF(x) #x
#define HYPATIA_TEXT(x) HYPATIA_TEXT_OF(x)
#define HYPATIA_EXPECTED               \
  HYPATIA_TEXT(HYPATIA_LIBTORCH_MAJOR) \
  "." HYPATIA_TEXT(HYPATIA_LIBTORCH_MINOR)
static_assert(TORCH_VERSION_MAJOR == HYPATIA_LIBTORCH_MAJOR &&
                  TORCH_VERSION_MINOR == HYPATIA_LIBTORCH_MINOR,
              "hypatia: expected the headers of LibTorch " HYPATIA_EXPECTED
              ", got " TORCH_VERSION);
#undef HYPATIA_EXPECTED
#undef HYPATIA_TEXT
#undef HYPATIA_TEXT_OF
#endif

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "hypatia/hypatia.h"

namespace hypatia {
namespace detail {

// Needs the library before main, so a linker with --as-needed keeps it. The
// number is judged at the first call: nothing may throw this early.
inline const std::uint32_t loaded_abi = hypatia_abi_version();

inline void check_versions() {
  if (loaded_abi != HYPATIA_ABI_VERSION) {
    throw std::runtime_error("hypatia: expected a library of ABI version " +
                             std::to_string(HYPATIA_ABI_VERSION) + ", got " +
                             std::to_string(loaded_abi));
  }
  const std::string built = hypatia_libtorch_version();
  const std::string expected = built.substr(0, built.rfind('.'));
  const std::string got = std::to_string(TORCH_VERSION_MAJOR) + "." +
                          std::to_string(TORCH_VERSION_MINOR);
  if (expected != got) {
    throw std::runtime_error("hypatia: expected LibTorch " + expected +
                             ", got " + got);
  }
}

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  check_versions();
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<Signature>();
}

inline c10::List<std::optional<at::Tensor>> list_of(
    at::ArrayRef<std::optional<at::Tensor>> tensors) {
  c10::List<std::optional<at::Tensor>> list;
  list.reserve(tensors.size());
  for (const auto& tensor : tensors) list.push_back(tensor);
  return list;
}

}  // namespace detail

// relu(input · weightᵀ + bias), differentiable to any order.
//
//   input  [*, K]  any strides; * may be empty and any size 0
//   weight [N, K]
//   bias   [N], or none
//   result [*, N]
//
// All of one dtype (float32, float64, float16, bfloat16) and one device;
// under autocast the dtypes may differ.
inline at::Tensor fused_linear_relu(
    const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias = std::nullopt) {
  static const auto op = detail::find<at::Tensor(
      const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&)>(
      "hypatia::fused_linear_relu");
  return op.call(input, weight, bias);
}

// Gradients of fused_linear_relu for input [*, K], weight [N, K] and bias [N];
// one whose mask is false is an undefined tensor. Autograd calls this by
// itself: it is here for programs that have their own backward pass.
//
//   grad_output [*, N]
//   output      [*, N], what the forward call returned
inline std::tuple<at::Tensor, at::Tensor, at::Tensor>
fused_linear_relu_backward(const at::Tensor& grad_output,
                           const at::Tensor& input, const at::Tensor& weight,
                           const at::Tensor& output,
                           std::array<bool, 3> output_mask = {true, true,
                                                              true}) {
  static const auto op =
      detail::find<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
          const at::Tensor&, const at::Tensor&, const at::Tensor&,
          const at::Tensor&, std::array<bool, 3>)>(
          "hypatia::fused_linear_relu_backward");
  return op.call(grad_output, input, weight, output, output_mask);
}

// Linear layers in turn, each but the last followed by a ReLU, the last only
// with relu_last; differentiable to any order.
//
//   input   [*, K]
//   weights [N, K] each, the K of each the N of the one before; at least one
//   biases  [N] or none (nullopt) each, as many as weights
//   result  [*, N of the last layer]
//
// Strides, dtypes and devices as for fused_linear_relu.
inline at::Tensor fused_mlp(const at::Tensor& input, at::TensorList weights,
                            at::ArrayRef<std::optional<at::Tensor>> biases,
                            bool relu_last = false) {
  using Biases = c10::List<std::optional<at::Tensor>>;
  static const auto op =
      detail::find<at::Tensor(const at::Tensor&, at::TensorList, const Biases&,
                              bool)>("hypatia::fused_mlp");
  return op.call(input, weights, detail::list_of(biases), relu_last);
}

// What fused_mlp returns, and the results of all layers but the last in one
// tensor, for fused_mlp_backward: for programs that have their own backward
// pass.
inline std::tuple<at::Tensor, at::Tensor> fused_mlp_forward(
    const at::Tensor& input, at::TensorList weights,
    at::ArrayRef<std::optional<at::Tensor>> biases, bool relu_last = false) {
  using Biases = c10::List<std::optional<at::Tensor>>;
  static const auto op = detail::find<std::tuple<at::Tensor, at::Tensor>(
      const at::Tensor&, at::TensorList, const Biases&, bool)>(
      "hypatia::fused_mlp_forward");
  return op.call(input, weights, detail::list_of(biases), relu_last);
}

// The gradients that output_mask asks for, in the order input, weights, biases,
// of which it has an entry for each; of those alone.
//
//   grad_output [*, N of the last layer]
//   activations the second result of fused_mlp_forward
//   output      its first, with relu_last; otherwise it may be none
inline std::vector<at::Tensor> fused_mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, at::ArrayRef<bool> output_mask) {
  static const auto op = detail::find<std::vector<at::Tensor>(
      const at::Tensor&, const at::Tensor&, at::TensorList, const at::Tensor&,
      const std::optional<at::Tensor>&, const c10::List<bool>&)>(
      "hypatia::fused_mlp_backward");
  return op.call(grad_output, input, weights, activations, output,
                 c10::List<bool>(output_mask));
}

// What the loaded library is, as JSON: version, LibTorch, CUDA architectures,
// CPU features, revision.
inline std::string build_info() {
  static const auto op = detail::find<std::string()>("hypatia::build_info");
  return op.call();
}

}  // namespace hypatia
