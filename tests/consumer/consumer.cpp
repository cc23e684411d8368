// A C++ program on the installed package: hypatia.hpp against ATen.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <exception>
#include <hypatia/hypatia.hpp>
#include <iostream>
#include <vector>

#include "checks.h"

namespace {

at::Tensor reference(const at::Tensor& x, const at::Tensor& w,
                     const std::optional<at::Tensor>& b) {
  return at::relu(at::linear(x, w, b));
}

void check_forward() {
  const std::vector<std::vector<int64_t>> shapes = {
      {5, 7}, {7}, {2, 3, 7}, {0, 7}};
  for (const auto type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    const auto w = at::randn({4, 7}).to(type);
    const auto b = at::randn({4}).to(type);
    for (const auto& shape : shapes) {
      const auto x = at::randn(shape).to(type);
      const auto what =
          c10::str("forward of ", x.sizes(), " in ", c10::toString(type));
      check_close(hypatia::fused_linear_relu(x, w, b), reference(x, w, b),
                  what);
      check_close(hypatia::fused_linear_relu(x, w), reference(x, w, {}),
                  what + " without bias");
    }
  }
  const auto x = at::randn({7, 5}).t();
  const auto w = at::randn({7, 8}).t().slice(0, 0, 8, 2);
  check_close(hypatia::fused_linear_relu(x, w), reference(x, w, {}),
              "forward of strided tensors");
}

void check_backward() {
  std::vector<at::Tensor> ours, theirs;
  for (const auto& shape :
       std::vector<std::vector<int64_t>>{{2, 5, 7}, {4, 7}, {4}}) {
    const auto value = at::randn(shape, at::kDouble);
    ours.push_back(value.clone().requires_grad_());
    theirs.push_back(value.clone().requires_grad_());
  }
  const auto y = hypatia::fused_linear_relu(ours[0], ours[1], ours[2]);
  const auto grad = at::randn_like(y);
  y.backward(grad);
  reference(theirs[0], theirs[1], theirs[2]).backward(grad);
  for (size_t i = 0; i < ours.size(); ++i) {
    check_close(ours[i].grad(), theirs[i].grad(),
                "autograd of argument " + std::to_string(i));
  }

  const auto [x, w, b] = hypatia::fused_linear_relu_backward(
      grad, theirs[0].detach(), theirs[1].detach(), y.detach());
  check_close(x, theirs[0].grad(), "backward of input");
  check_close(w, theirs[1].grad(), "backward of weight");
  check_close(b, theirs[2].grad(), "backward of bias");
  const auto [no_x, only_w, no_b] = hypatia::fused_linear_relu_backward(
      grad, theirs[0].detach(), theirs[1].detach(), y.detach(),
      {false, true, false});
  check(!no_x.defined() && !no_b.defined(), "backward obeys the mask");
  check_close(only_w, theirs[1].grad(), "backward of weight alone");
}

void check_mlp() {
  const auto type = at::kDouble;
  const auto x = at::randn({2, 5, 7}, type);
  const std::vector<at::Tensor> weights = {at::randn({6, 7}, type),
                                           at::randn({4, 6}, type)};
  std::vector<at::Tensor> ours, theirs;
  for (const auto& weight : weights) {
    ours.push_back(weight.clone().requires_grad_());
    theirs.push_back(weight.clone().requires_grad_());
  }
  const auto b = at::randn({6}, type);
  const std::vector<std::optional<at::Tensor>> biases = {b, std::nullopt};
  const auto want = at::linear(reference(x, theirs[0], b), theirs[1]);
  const auto y = hypatia::fused_mlp(x, ours, biases);
  check_close(y, want, "mlp");
  check_close(hypatia::fused_mlp(x, ours, biases, /*relu_last=*/true),
              at::relu(want), "mlp with a last ReLU");
  const auto grad = at::randn_like(y);
  y.backward(grad);
  want.backward(grad);
  for (size_t i = 0; i < ours.size(); ++i) {
    check_close(ours[i].grad(), theirs[i].grad(),
                "mlp's autograd of weight " + std::to_string(i));
  }
  const auto [kept, activations] =
      hypatia::fused_mlp_forward(x, weights, biases);
  check(at::equal(kept, y), "forward of one's own training is mlp's");
  const auto gradients =
      hypatia::fused_mlp_backward(grad, x, weights, activations, std::nullopt,
                                  {false, true, true, false, false});
  check(gradients.size() == 2, "backward of mlp obeys the mask");
  for (size_t i = 0; i < gradients.size(); ++i) {
    check_close(gradients[i], theirs[i].grad(),
                "backward of mlp of weight " + std::to_string(i));
  }
  check_error([&] { hypatia::fused_mlp(x, weights, {}); },
              "hypatia::fused_mlp: expected as many biases as weights, 2, "
              "got 0",
              "text of an error in mlp");
}

void check_autocast() {
  const auto x = at::randn({5, 7});
  const auto w = at::randn({4, 7});
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const auto y = hypatia::fused_linear_relu(x, w);
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  check(y.scalar_type() == at::autocast::get_autocast_dtype(at::kCPU),
        "autocast's dtype");
}

void check_errors() {
  check_error(
      [] { hypatia::fused_linear_relu(at::ones({2, 3}), at::ones({4, 5})); },
      "hypatia::fused_linear_relu: expected weight of shape [N, 3] for input "
      "[2, 3], got [4, 5]",
      "text of a shape error");
  check_error(
      [] {
        hypatia::fused_linear_relu_backward(at::ones({2, 9}), at::ones({2, 3}),
                                            at::ones({4, 3}), at::ones({2, 4}));
      },
      "hypatia::fused_linear_relu_backward: expected grad_output of shape "
      "[2, 4], got [2, 9]",
      "text of an error in backward");
}

void check_build_info() {
  const auto info = hypatia::build_info();
  check(info.size() > 2 && info.front() == '{' && info.back() == '}',
        "build_info is a JSON object");
  const auto libtorch = std::string("\"libtorch\": \"") +
                        std::to_string(TORCH_VERSION_MAJOR) + "." +
                        std::to_string(TORCH_VERSION_MINOR) + ".";
  check(info.find(libtorch) != std::string::npos, "build_info names LibTorch");
}

}  // namespace

int main() try {
  at::manual_seed(1);
  check_forward();
  check_backward();
  check_mlp();
  check_autocast();
  check_errors();
  check_build_info();
  check_capi();
  return 0;
} catch (const std::exception& error) {
  std::cout << "consumer: " << error.what() << std::endl;
  return 1;
}
