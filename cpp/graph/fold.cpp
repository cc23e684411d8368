#include "cpp/graph/fold.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mv.h>
#include <ATen/ops/rsqrt.h>

#include <functional>
#include <string>
#include <unordered_map>

namespace hypatia::graph {
namespace {

using Tensors = std::vector<at::Tensor>;

struct Operation {
  size_t tensors;
  size_t ints;
  std::function<at::Tensor(const Tensors&, const bridge::Step&)> run;
};

constexpr size_t any_number = SIZE_MAX;

// No broadcasting: an unexpected shape is a mistake of the rule that asks.
void expect_same(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.sizes() == b.sizes(),
              "hypatia::optimize: expected operands of ", a.sizes(),
              " to fold, got ", b.sizes());
}

void expect_rank(const at::Tensor& t, int64_t rank) {
  TORCH_CHECK(t.dim() == rank, "hypatia::optimize: expected ", rank,
              " dimensions to fold, got ", t.sizes());
}

void expect_length(const at::Tensor& v, int64_t length) {
  expect_rank(v, 1);
  TORCH_CHECK(v.size(0) == length, "hypatia::optimize: expected [", length,
              "] to fold, got ", v.sizes());
}

at::Tensor narrow(const at::Tensor& w, int64_t dimension,
                  const bridge::Step& step) {
  return w.narrow(dimension, step.ints[0], step.ints[1]);
}

at::Tensor scale(const at::Tensor& w, const at::Tensor& s, bool rows) {
  expect_rank(w, 2);
  expect_length(s, w.size(rows ? 0 : 1));
  return rows ? w * s.unsqueeze(1) : w * s;
}

at::Tensor filled(const bridge::Step& step, double value) {
  return at::full({step.ints[0]}, value, at::kDouble);
}

at::Tensor broadcast(const at::Tensor& a, int64_t n) {
  TORCH_CHECK(a.numel() == 1,
              "hypatia::optimize: expected one element to "
              "broadcast, got ",
              a.sizes());
  return a.reshape({1}).expand({n});
}

at::Tensor row(const at::Tensor& a) {
  expect_rank(a, 2);
  TORCH_CHECK(a.size(0) == 1,
              "hypatia::optimize: expected [1, N] to fold, got ", a.sizes());
  return a.reshape({a.size(1)});
}

const Operation& find(const std::string& name) {
  using S = bridge::Step;
  static const std::unordered_map<std::string, Operation> operations = {
      {"matmul",
       {2, 0,
        [](const Tensors& t, const S&) {
          expect_rank(t[0], 2);
          expect_rank(t[1], 2);
          return at::matmul(t[0], t[1]);
        }}},
      {"mv",
       {2, 0, [](const Tensors& t, const S&) { return at::mv(t[0], t[1]); }}},
      {"add",
       {2, 0,
        [](const Tensors& t, const S&) {
          expect_same(t[0], t[1]);
          return t[0] + t[1];
        }}},
      {"sub",
       {2, 0,
        [](const Tensors& t, const S&) {
          expect_same(t[0], t[1]);
          return t[0] - t[1];
        }}},
      {"mul",
       {2, 0,
        [](const Tensors& t, const S&) {
          expect_same(t[0], t[1]);
          return t[0] * t[1];
        }}},
      {"div",
       {2, 0,
        [](const Tensors& t, const S&) {
          expect_same(t[0], t[1]);
          return t[0] / t[1];
        }}},
      {"times",
       {1, 0, [](const Tensors& t, const S& s) { return t[0] * s.float_; }}},
      {"scale_rows",
       {2, 0,
        [](const Tensors& t, const S&) { return scale(t[0], t[1], true); }}},
      {"scale_columns",
       {2, 0,
        [](const Tensors& t, const S&) { return scale(t[0], t[1], false); }}},
      {"rsqrt",
       {1, 0,
        [](const Tensors& t, const S& s) {
          return at::rsqrt(t[0] + s.float_);
        }}},
      {"cat0",
       {any_number, 0,
        [](const Tensors& t, const S&) { return at::cat(t, 0); }}},
      {"cat1",
       {any_number, 0,
        [](const Tensors& t, const S&) { return at::cat(t, 1); }}},
      {"columns",
       {1, 2, [](const Tensors& t, const S& s) { return narrow(t[0], 1, s); }}},
      {"rows",
       {1, 2, [](const Tensors& t, const S& s) { return narrow(t[0], 0, s); }}},
      {"transpose",
       {1, 0,
        [](const Tensors& t, const S&) {
          expect_rank(t[0], 2);
          return t[0].t();
        }}},
      {"fill",
       {0, 1, [](const Tensors&, const S& s) { return filled(s, s.float_); }}},
      {"zeros",
       {0, 1, [](const Tensors&, const S& s) { return filled(s, 0); }}},
      {"broadcast",
       {1, 1,
        [](const Tensors& t, const S& s) {
          return broadcast(t[0], s.ints[0]);
        }}},
      {"reshape1",
       {1, 0, [](const Tensors& t, const S&) { return row(t[0]); }}}};
  const auto found = operations.find(name);
  TORCH_CHECK(found != operations.end(),
              "hypatia::optimize: expected a known fold, got ", name);
  return found->second;
}

}  // namespace

at::Tensor fold(const bridge::Step& step, const Tensors& inputs) {
  const at::NoGradGuard no_grad;
  const auto& operation = find(std::string(step.op));
  const bool counted = operation.tensors == any_number
                           ? !inputs.empty()
                           : inputs.size() == operation.tensors;
  TORCH_CHECK(counted && step.ints.size() >= operation.ints,
              "hypatia::optimize: expected other arguments for the fold ",
              std::string(step.op), ", got ", inputs.size(), " tensors and ",
              step.ints.size(), " numbers");
  Tensors wide;
  for (const auto& input : inputs) {
    wide.push_back(input.detach().to(at::kDouble));
  }
  auto result = operation.run(wide, step);
  TORCH_CHECK(at::isfinite(result).all().item<bool>(),
              "hypatia::optimize: expected a finite constant from the fold ",
              std::string(step.op), ", got inf or nan");
  return result;
}

at::Tensor as_constant(const at::Tensor& folded, int32_t dtype) {
  const at::NoGradGuard no_grad;
  auto result = folded.to(static_cast<at::ScalarType>(dtype)).contiguous();
  TORCH_CHECK(at::isfinite(result).all().item<bool>(),
              "hypatia::optimize: expected a folded constant that ",
              result.scalar_type(), " can hold, got inf");
  // Its own memory, also where nothing had to be cast or copied.
  return result.is_alias_of(folded) ? result.clone() : result;
}

}  // namespace hypatia::graph
