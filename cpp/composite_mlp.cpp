#include "cpp/composite_mlp.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>

#include "cpp/check.h"
#include "cpp/composite.h"

namespace hypatia::composite {
namespace {

// What linear does with rows, without asking again what they are: a layer on
// little data costs its calls, not its products. Into `out` if that is defined.
at::Tensor layer(const at::Tensor& rows, const at::Tensor& weight,
                 const std::optional<at::Tensor>& bias, bool relu,
                 at::Tensor out = {}) {
  const at::Tensor transposed = weight.t();
  if (!bias.has_value() || !bias->defined()) {
    out = out.defined() ? at::mm_out(out, rows, transposed)
                        : at::mm(rows, transposed);
  } else if (out.defined()) {
    at::addmm_out(out, bias->contiguous(), rows, transposed);
  } else {
    out = at::addmm(bias->contiguous(), rows, transposed);
  }
  return relu ? out.relu_() : out;
}

// What every layer returns, without in-place operations.
std::vector<at::Tensor> all_layers(const at::Tensor& input,
                                   at::TensorList weights, const Biases& biases,
                                   bool relu_last) {
  std::vector<at::Tensor> results;
  at::Tensor h = input;
  for (size_t i = 0; i < weights.size(); ++i) {
    h = at::linear(h, weights[i], biases.get(i));
    if (i + 1 < weights.size() || relu_last) h = at::relu(h);
    results.push_back(h);
  }
  return results;
}

}  // namespace

at::Tensor mlp(const at::Tensor& input, at::TensorList weights,
               const Biases& biases, bool relu_last) {
  at::Tensor h = flatten_rows(input);
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool last = i + 1 == weights.size();
    h = layer(h, weights[i], biases.get(i), !last || relu_last);
  }
  return h.contiguous().view_symint(mlp_output_sizes(input, weights));
}

std::tuple<at::Tensor, at::Tensor> mlp_forward(const at::Tensor& input,
                                               at::TensorList weights,
                                               const Biases& biases,
                                               bool relu_last) {
  const MlpLayout layout = MlpLayout::of(input, weights);
  const at::Tensor activations = empty_activations(layout, input);
  at::Tensor h = flatten_rows(input);
  const auto parts = split_activations(activations, h, weights);
  for (size_t i = 0; i < parts.size(); ++i) {
    h = layer(h, weights[i], biases.get(i), /*relu=*/true, parts[i]);
  }
  const size_t last = weights.size() - 1;
  h = layer(h, weights[last], biases.get(last), relu_last);
  return {h.contiguous().view_symint(mlp_output_sizes(input, weights)),
          activations};
}

at::Tensor mlp_functional(const at::Tensor& input, at::TensorList weights,
                          const Biases& biases, bool relu_last) {
  return all_layers(input, weights, biases, relu_last).back();
}

std::tuple<at::Tensor, at::Tensor> mlp_forward_functional(
    const at::Tensor& input, at::TensorList weights, const Biases& biases,
    bool relu_last) {
  const auto results = all_layers(input, weights, biases, relu_last);
  const MlpLayout layout = MlpLayout::of(input, weights);
  std::vector<at::Tensor> parts = {at::empty({0}, input.options())};
  c10::SymInt end = 0;
  for (size_t i = 0; i + 1 < results.size(); ++i) {
    const c10::SymInt gap = layout.offsets[i] - end;
    if (gap.maybe_as_int() != 0) {
      parts.push_back(at::zeros_symint({gap}, input.options()));
    }
    const c10::SymInt length = results[i].sym_numel();
    parts.push_back(results[i].reshape_symint({length}));
    end = layout.offsets[i] + length;
  }
  return {results.back(), at::cat(parts)};
}

std::vector<at::Tensor> mlp_backward(const at::Tensor& grad_output,
                                     const at::Tensor& grad_activations,
                                     const at::Tensor& input,
                                     at::TensorList weights,
                                     const at::Tensor& activations,
                                     const std::optional<at::Tensor>& output,
                                     const MlpMask& mask) {
  const size_t layers = weights.size();
  const auto hidden = split_activations(activations, input, weights);
  const auto hidden_grads =
      grad_activations.defined()
          ? split_activations(grad_activations, input, weights)
          : std::vector<at::Tensor>(hidden.size());
  std::vector<at::Tensor> result(1 + 2 * layers);
  at::Tensor grad = grad_output;  // of what layer i returned
  for (size_t i = layers; i-- > mask.lowest();) {
    const bool last = i + 1 == layers;
    if (!last) grad = sum_of(grad, hidden_grads[i]);
    if (!grad.defined()) continue;
    const at::Tensor y = last ? output.value_or(at::Tensor()) : hidden[i];
    // The mask is piecewise constant, so nothing flows through it.
    if (y.defined()) grad = at::threshold_backward(grad, y.detach(), 0);
    if (mask.weight(i)) {
      const at::Tensor& x = i == 0 ? input : hidden[i - 1];
      result[1 + i] =
          at::mm(flatten_rows(grad).t(), flatten_rows(x)).contiguous();
    }
    if (mask.bias(i)) {
      result[1 + layers + i] = at::sum(flatten_rows(grad), 0);
    }
    if (mask.in_front_of(i)) {
      grad = at::matmul(grad, weights[i]).contiguous();
    }
  }
  if (mask.input()) result[0] = grad;
  return result;
}

std::vector<at::Tensor> checked_mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const c10::List<bool>& mask) {
  check_mlp_backward(grad_output, input, weights, activations, output, mask);
  const MlpMask wanted(mask);
  return wanted.pick(mlp_backward(grad_output, /*grad_activations=*/{}, input,
                                  weights, activations, output, wanted));
}

}  // namespace hypatia::composite
