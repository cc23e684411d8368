// CUDA key of fused_mlp: all layers are checked and described here, one
// allocation takes every activation, and the bridge is crossed once; twice for
// inference that one launch cannot do.
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "cpp/check.h"
#include "cpp/composite.h"
#include "cpp/composite_mlp.h"
#include "cpp/convert.h"
#include "cpp/gradients.h"
#include "cpp/register.h"
#include "cpp/report.h"
#include "cpp/workspace.h"

namespace hypatia {
namespace {

bool has_elements(const at::Tensor& input, at::TensorList weights) {
  return input.numel() != 0 &&
         std::all_of(weights.begin(), weights.end(),
                     [](const at::Tensor& w) { return w.numel() != 0; });
}

// Addresses of parts of `whole`, at offsets in elements.
std::vector<size_t> addresses(const at::Tensor& whole,
                              const std::vector<c10::SymInt>& offsets) {
  std::vector<size_t> result;
  result.reserve(offsets.size());
  const size_t base = address(whole);
  for (const c10::SymInt& offset : offsets) {
    const auto elements = offset.guard_int(__FILE__, __LINE__);
    result.push_back(base +
                     static_cast<size_t>(elements) * whole.element_size());
  }
  return result;
}

// What the bridge is told of the layers. Copies live until the launches are on
// the stream, whose order then keeps their memory.
class Chain {
 public:
  // No hidden results yet.
  Chain(const at::Tensor& input, at::TensorList weights, const Biases& biases,
        bool relu_last, const at::Tensor& output)
      : x_(as_matrix(input)) {
    views_.reserve(weights.size());
    dense_biases_.reserve(weights.size());
    layers_.reserve(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      const bool last = i + 1 == weights.size();
      views_.push_back(as_matrix(weights[i]));
      const at::Tensor bias = biases.get(i).value_or(at::Tensor());
      // The dispatcher resolves lazy negation in tensors and lists of them, not
      // in lists of optional ones.
      dense_biases_.push_back(bias.defined() ? bias.resolve_neg().contiguous()
                                             : bias);
      layers_.push_back({views_.back().matrix,
                         bias.defined() ? address(dense_biases_.back()) : 0,
                         last ? address(output) : 0, !last || relu_last});
    }
  }

  // Hidden results go to these addresses, in turn if there are fewer.
  void keep_hidden(const std::vector<size_t>& parts) {
    for (size_t i = 0; i + 1 < layers_.size(); ++i) {
      layers_[i].output = parts[i % parts.size()];
    }
  }

  bridge::Report run(bridge::Call& call) const {
    return with_workspace(call, [this](const bridge::Call& c) {
      return bridge::mlp(c, x_.matrix, {layers_.data(), layers_.size()});
    });
  }

 private:
  MatrixView x_;
  std::vector<MatrixView> views_;
  std::vector<at::Tensor> dense_biases_;
  std::vector<bridge::Layer> layers_;
};

// Two buffers for hidden results: one is written while the other is read.
at::Tensor empty_turns(const at::Tensor& input, at::TensorList weights,
                       std::vector<size_t>& parts) {
  int64_t widest[2] = {0, 0};
  for (size_t i = 0; i + 1 < weights.size(); ++i) {
    widest[i % 2] = std::max(widest[i % 2], weights[i].size(0));
  }
  const MlpLayout layout =
      MlpLayout(input.numel() / input.size(-1), {widest[0], widest[1]},
                input.element_size());
  at::Tensor buffers = at::empty_symint({layout.total}, input.options());
  parts = addresses(buffers, layout.offsets);
  return buffers;
}

at::Tensor fused_mlp(const at::Tensor& input, at::TensorList weights,
                     const Biases& biases, bool relu_last) {
  check_mlp(input, weights, biases);
  const c10::OptionalDeviceGuard guard(input.device());
  auto call = make_call(input);
  if (!call || !has_elements(input, weights)) {
    return composite::mlp(input, weights, biases, relu_last);
  }
  const at::Tensor output =
      at::empty_symint(mlp_output_sizes(input, weights), input.options());
  Chain chain(input, weights, biases, relu_last, output);
  // First without memory for hidden results: one launch needs none.
  bridge::Report report = chain.run(*call);
  at::Tensor buffers;
  if (report.status == bridge::Status::NeedsHidden) {
    warn_layer_by_layer("fused_mlp", report);
    std::vector<size_t> parts;
    buffers = empty_turns(input, weights, parts);
    chain.keep_hidden(parts);
    report = chain.run(*call);
  }
  if (done("fused_mlp", report)) return output;
  return composite::mlp(input, weights, biases, relu_last);
}

std::tuple<at::Tensor, at::Tensor> fused_mlp_forward(const at::Tensor& input,
                                                     at::TensorList weights,
                                                     const Biases& biases,
                                                     bool relu_last) {
  check_mlp(input, weights, biases);
  const c10::OptionalDeviceGuard guard(input.device());
  auto call = make_call(input);
  if (!call || !has_elements(input, weights)) {
    return composite::mlp_forward(input, weights, biases, relu_last);
  }
  const MlpLayout layout = MlpLayout::of(input, weights);
  const at::Tensor activations = empty_activations(layout, input);
  const at::Tensor output =
      at::empty_symint(mlp_output_sizes(input, weights), input.options());
  Chain chain(input, weights, biases, relu_last, output);
  chain.keep_hidden(addresses(activations, layout.offsets));
  if (done("fused_mlp", chain.run(*call))) return {output, activations};
  return composite::mlp_forward(input, weights, biases, relu_last);
}

// Results and scratch of one backward call.
struct BackwardMemory {
  std::vector<at::Tensor> gradients;  // as the mask counts them
  at::Tensor scratch;
  // Masked gradients in turn, so that the next layer's need not wait for all
  // that reads this one's; then the gradient on its way to the next.
  std::vector<size_t> parts;

  BackwardMemory(const MlpMask& mask, int64_t rows, const at::Tensor& input,
                 at::TensorList weights, bool relu_last) {
    int64_t masked = 0, on_the_way = 0;
    std::vector<c10::IntArrayRef> sizes(mask.bits().size());
    std::vector<int64_t> widths;
    widths.reserve(weights.size());  // `sizes` points into it
    if (mask.input()) sizes[0] = input.sizes();
    for (size_t i = 0; i < weights.size(); ++i) {
      const bool last = i + 1 == weights.size();
      widths.push_back(weights[i].size(0));
      if (mask.weight(i)) sizes[1 + i] = weights[i].sizes();
      if (mask.bias(i)) sizes[1 + weights.size() + i] = {&widths[i], 1};
      if (i < mask.lowest()) continue;
      if ((mask.weight(i) || mask.in_front_of(i)) && (!last || relu_last)) {
        masked = std::max(masked, widths[i]);
      }
      if (!last) on_the_way = std::max(on_the_way, widths[i]);
    }
    gradients = empty_gradients(sizes, mask.bits(), input.options());
    const MlpLayout layout =
        MlpLayout(rows, {masked, masked, on_the_way}, input.element_size());
    scratch = at::empty_symint({layout.total}, input.options());
    parts = addresses(scratch, layout.offsets);
  }
};

size_t optional_address(const at::Tensor& t) {
  return t.defined() ? address(t) : 0;
}

std::vector<at::Tensor> fused_mlp_backward(
    const at::Tensor& grad_output, const at::Tensor& input,
    at::TensorList weights, const at::Tensor& activations,
    const std::optional<at::Tensor>& output, const c10::List<bool>& mask_bits) {
  check_mlp_backward(grad_output, input, weights, activations, output,
                     mask_bits);
  const MlpMask mask(mask_bits);
  const size_t count = weights.size();
  if (mask.lowest() == count) return {};
  const c10::OptionalDeviceGuard guard(input.device());
  auto call = make_call(input);
  if (!call || !has_elements(input, weights)) {
    return composite::checked_mlp_backward(grad_output, input, weights,
                                           activations, output, mask_bits);
  }
  const bool relu_last = output.has_value() && output->defined();
  const int64_t rows = input.numel() / input.size(-1);
  // Products do not read gradients with any strides.
  const MatrixView dy = as_matrix(grad_output, /*any_strides=*/relu_last);
  const at::Tensor y = relu_last ? output->contiguous() : at::Tensor();
  const at::Tensor saved = activations.contiguous();
  const auto hidden = addresses(saved, MlpLayout::of(input, weights).offsets);
  BackwardMemory memory(mask, rows, input, weights, relu_last);
  auto& gradients = memory.gradients;

  // Only what a wanted gradient reads: the others may be stand-ins that a
  // view cannot express, not worth a copy.
  const MatrixView x = mask.weight(0) ? as_matrix(input) : MatrixView{};
  std::vector<MatrixView> views;
  std::vector<bridge::LayerBackward> layers;
  for (size_t i = count; i-- > mask.lowest();) {
    const bool last = i + 1 == count;
    const bool needs_masked = mask.weight(i) || mask.in_front_of(i);
    bridge::LayerBackward layer{};
    layer.input = x.matrix;
    if (i > 0) {
      const int64_t k = weights[i].size(1);
      layer.input = {hidden[i - 1], rows, k, k, 1};
    }
    if (mask.in_front_of(i)) {
      views.push_back(as_matrix(weights[i]));
      layer.weight = views.back().matrix;
      layer.grad_input = i == 0 ? address(gradients[0]) : memory.parts[2];
    }
    layer.grad_weight = optional_address(gradients[1 + i]);
    layer.grad_bias = optional_address(gradients[1 + count + i]);
    if (!last || relu_last) {
      layer.output = last ? address(y) : hidden[i];
      layer.masked = needs_masked ? memory.parts[i % 2] : 0;
    }
    layers.push_back(layer);
  }
  const bridge::Report report =
      with_workspace(*call, [&](const bridge::Call& c) {
        return bridge::mlp_backward(c, dy.matrix,
                                    {layers.data(), layers.size()});
      });
  if (!done("fused_mlp_backward", report)) {
    return composite::checked_mlp_backward(grad_output, input, weights,
                                           activations, output, mask_bits);
  }
  return mask.pick(std::move(gradients));
}

TORCH_LIBRARY_IMPL(hypatia, CUDA, m) {
  if (!registers_operators()) return;
  m.impl("fused_mlp", &fused_mlp);
  m.impl("fused_mlp_forward", &fused_mlp_forward);
  m.impl("fused_mlp_backward", &fused_mlp_backward);
}

}  // namespace
}  // namespace hypatia
