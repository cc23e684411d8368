// The C ABI on real tensors, from C++ because C cannot make one.
#include <ATen/ATen.h>
#include <hypatia/hypatia.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "checks.h"

namespace {

struct Free {
  void operator()(HypatiaTensor* t) const { hypatia_tensor_free(t); }
};
using Handle = std::unique_ptr<HypatiaTensor, Free>;

const HypatiaTensor* borrow(const at::Tensor& t) {
  return reinterpret_cast<const HypatiaTensor*>(&t);
}

const at::Tensor& tensor_of(const Handle& handle) {
  return *reinterpret_cast<const at::Tensor*>(handle.get());
}

void check_results() {
  const auto x = at::randn({5, 7});
  const auto w = at::randn({4, 7});
  const auto b = at::randn({4});
  const auto y = at::relu(at::linear(x, w, b));

  HypatiaTensor* raw = nullptr;
  check(hypatia_fused_linear_relu(borrow(x), borrow(w), borrow(b), &raw) ==
            HYPATIA_OK,
        "C forward succeeds");
  check(*hypatia_last_error() == '\0', "no message after a success");
  const Handle result(raw);
  check_close(tensor_of(result), y, "C forward");
  check(tensor_of(result).use_count() == 1, "the result is the caller's alone");
  check(x.use_count() == 1, "arguments are only borrowed");

  check(hypatia_fused_linear_relu(borrow(x), borrow(w), nullptr, &raw) ==
            HYPATIA_OK,
        "C forward without bias succeeds");
  check_close(tensor_of(Handle(raw)), at::relu(at::linear(x, w)),
              "C forward without bias");

  const auto grad = at::randn_like(y);
  const auto masked = at::where(y > 0, grad, at::zeros_like(grad));
  HypatiaTensor* grad_input = nullptr;
  HypatiaTensor* grad_bias = nullptr;
  check(hypatia_fused_linear_relu_backward(borrow(grad), borrow(x), borrow(w),
                                           borrow(y), &grad_input, nullptr,
                                           &grad_bias) == HYPATIA_OK,
        "C backward succeeds");
  check_close(tensor_of(Handle(grad_input)), masked.matmul(w), "C grad_input");
  check_close(tensor_of(Handle(grad_bias)), masked.sum(0), "C grad_bias");
}

void check_mlp() {
  const auto x = at::randn({5, 7});
  const auto w = at::randn({4, 7});
  const auto v = at::randn({3, 4});
  const auto b = at::randn({4});
  const HypatiaTensor* weights[] = {borrow(w), borrow(v)};
  const HypatiaTensor* biases[] = {borrow(b), nullptr};
  HypatiaTensor* raw = nullptr;
  check(hypatia_fused_mlp(borrow(x), weights, biases, 2, 0, &raw) == HYPATIA_OK,
        "C mlp succeeds");
  const Handle result(raw);
  check_close(tensor_of(result), at::linear(at::relu(at::linear(x, w, b)), v),
              "C mlp");
  check(tensor_of(result).use_count() == 1 && w.use_count() == 1,
        "C mlp borrows its layers");
  check(
      hypatia_fused_mlp(borrow(x), weights, nullptr, 1, 1, &raw) == HYPATIA_OK,
      "C mlp of one layer without bias succeeds");
  check_close(tensor_of(Handle(raw)), at::relu(at::linear(x, w)),
              "C mlp of one layer without bias");
}

void check_messages() {
  const auto x = at::randn({5, 7});
  const auto w = at::randn({4, 6});
  const std::string expected =
      "hypatia::fused_linear_relu: expected weight of shape [N, 7] for input "
      "[5, 7], got [4, 6]";
  HypatiaTensor* result = nullptr;
  check(hypatia_fused_linear_relu(borrow(x), borrow(w), nullptr, &result) ==
            HYPATIA_ERROR,
        "a wrong shape is an error in C");
  check(result == nullptr, "nothing is written on an error");
  check(hypatia_last_error() == expected, "LibTorch's text without a trace");

  std::string elsewhere = "none";
  std::thread([&] { elsewhere = hypatia_last_error(); }).join();
  check(elsewhere.empty(), "messages are per thread");
  check(hypatia_last_error() == expected, "the message stays");
}

}  // namespace

void check_capi() {
  check_results();
  check_mlp();
  check_messages();
}
