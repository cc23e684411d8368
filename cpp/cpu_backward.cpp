#include <ATen/ops/empty.h>

#include <algorithm>

#include "cpp/convert.h"
#include "cpp/cpu_kernels.h"
#include "cpp/cpu_matrix.h"
#include "cpp/gradients.h"
#include "cpp/threads.h"

namespace hypatia::cpu_kernels {
namespace {

// What the bridge is told of the layers, and the tensors behind it.
struct Layers {
  std::vector<bridge::CpuLayerBackward> layers;
  std::vector<at::Tensor> owners;

  // A description of `t`, which is kept.
  bridge::CpuMatrix rows_of(const at::Tensor& t) {
    owners.push_back(rows_or_copy(t));
    return as_rows(owners.back());
  }
};

// A weight's sizes alone.
bridge::CpuMatrix sizes_of(const at::Tensor& weight) {
  bridge::CpuMatrix matrix{};
  matrix.rows = static_cast<size_t>(weight.size(0));
  matrix.k = static_cast<size_t>(weight.size(1));
  return matrix;
}

bool is_half(const at::Tensor& t) {
  return t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf;
}

bool takes(const at::Tensor& grad_output, const at::Tensor& input,
           at::TensorList weights) {
  const bool half = is_half(input);
  const auto fits = [half](const at::Tensor& t) {
    return readable(t) && (half || t.scalar_type() == at::kFloat);
  };
  if (!fits(grad_output) || !fits(input) ||
      !std::all_of(weights.begin(), weights.end(), fits)) {
    return false;
  }
  std::vector<bridge::CpuMatrix> sizes;
  for (const at::Tensor& weight : weights) sizes.push_back(sizes_of(weight));
  return bridge::cpu_takes_backward(
      half, static_cast<size_t>(input.numel() / input.size(-1)),
      {sizes.data(), sizes.size()}, threads_at_most());
}

size_t optional_address(const at::Tensor& t) {
  return t.defined() ? address(t) : 0;
}

// All gradients as the mask counts them; `hidden` are the results of all layers
// but the last.
std::vector<at::Tensor> gradients_of(const at::Tensor& grad_output,
                                     const at::Tensor& input,
                                     at::TensorList weights,
                                     const std::vector<at::Tensor>& hidden,
                                     const at::Tensor& output,
                                     const MlpMask& mask) {
  const size_t count = weights.size();
  std::vector<c10::IntArrayRef> sizes(mask.bits().size());
  std::vector<int64_t> widths;
  widths.reserve(count);  // `sizes` points into it
  sizes[0] = input.sizes();
  for (size_t i = 0; i < count; ++i) {
    widths.push_back(weights[i].size(0));
    sizes[1 + i] = weights[i].sizes();
    sizes[1 + count + i] = {&widths[i], 1};
  }
  auto gradients = empty_gradients(sizes, mask.bits(), input.options());

  Layers description;
  const auto rows = static_cast<size_t>(input.numel() / input.size(-1));
  for (size_t i = mask.lowest(); i < count; ++i) {
    bridge::CpuLayerBackward layer{};
    // Only what a wanted gradient reads: the others may be stand-ins, not worth
    // a copy. Their sizes count.
    layer.weight = sizes_of(weights[i]);
    layer.input.rows = rows;
    layer.input.k = layer.weight.k;
    if (mask.in_front_of(i)) layer.weight = description.rows_of(weights[i]);
    if (mask.weight(i)) {
      layer.input = description.rows_of(i == 0 ? input : hidden[i - 1]);
    }
    const at::Tensor& y = i + 1 == count ? output : hidden[i];
    if (y.defined()) {
      description.owners.push_back(y.contiguous());
      layer.output = address(description.owners.back());
    }
    layer.grad_weight = optional_address(gradients[1 + i]);
    layer.grad_bias = optional_address(gradients[1 + count + i]);
    description.layers.push_back(layer);
  }
  const auto backward = bridge::cpu_backward(
      description.rows_of(grad_output),
      {description.layers.data(), description.layers.size()},
      optional_address(gradients[0]), threads_at_most());
  in_threads(backward->threads(), [&](size_t me) { backward->work(me); });
  return gradients;
}

// The same of 16-bit tensors, in fp32 and rounded once. Layer by layer, so that
// no more than one layer's operands are there twice.
std::vector<at::Tensor> widened(const at::Tensor& grad_output,
                                const at::Tensor& input, at::TensorList weights,
                                const std::vector<at::Tensor>& hidden,
                                const at::Tensor& output, const MlpMask& mask) {
  const size_t count = weights.size();
  std::vector<at::Tensor> all(mask.bits().size());
  const auto narrowed = [&](const at::Tensor& t) {
    return t.defined() ? t.to(input.scalar_type()) : t;
  };
  at::Tensor gradient = grad_output.to(at::kFloat);
  for (size_t i = count; i-- > mask.lowest();) {
    const at::Tensor& x = i == 0 ? input : hidden[i - 1];
    const at::Tensor& y = i + 1 == count ? output : hidden[i];
    const MlpMask wanted(
        std::vector<bool>{mask.in_front_of(i), mask.weight(i), mask.bias(i)});
    // What nobody reads may be a stand-in.
    const auto wide = [](const at::Tensor& t, bool read) {
      return read ? t.to(at::kFloat)
                  : at::empty({1}, at::kFloat).expand(t.sizes());
    };
    const at::Tensor weight = wide(weights[i], wanted.input());
    const auto of_layer =
        gradients_of(gradient, wide(x, wanted.weight(0)), weight, {},
                     y.defined() ? y.to(at::kFloat) : y, wanted);
    all[1 + i] = narrowed(of_layer[1]);
    all[1 + count + i] = narrowed(of_layer[2]);
    gradient = of_layer[0];
  }
  if (mask.input()) all[0] = narrowed(gradient);
  return all;
}

// All gradients of a chain that `takes` takes.
std::vector<at::Tensor> any_gradients(const at::Tensor& grad_output,
                                      const at::Tensor& input,
                                      at::TensorList weights,
                                      const std::vector<at::Tensor>& hidden,
                                      const at::Tensor& output,
                                      const MlpMask& mask) {
  const auto gradients = is_half(input) ? widened : gradients_of;
  return gradients(grad_output, input, weights, hidden, output, mask);
}

}  // namespace

std::optional<std::vector<at::Tensor>> mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const MlpMask& mask) {
  if (mask.lowest() == weights.size() || !takes(grad_output, input, weights)) {
    return std::nullopt;
  }
  return mask.pick(
      any_gradients(grad_output, input, weights,
                    split_activations(activations.contiguous(), input, weights),
                    output.value_or(at::Tensor()), mask));
}

std::optional<std::tuple<at::Tensor, at::Tensor, at::Tensor>>
linear_relu_backward(const at::Tensor& grad_output, const at::Tensor& input,
                     const at::Tensor& weight, const at::Tensor& output,
                     std::array<bool, 3> mask) {
  const MlpMask wanted(std::vector<bool>(mask.begin(), mask.end()));
  if (wanted.lowest() == 1 || !takes(grad_output, input, weight)) {
    return std::nullopt;
  }
  auto all = any_gradients(grad_output, input, weight, {}, output, wanted);
  return std::make_tuple(std::move(all[0]), std::move(all[1]),
                         std::move(all[2]));
}

}  // namespace hypatia::cpu_kernels
