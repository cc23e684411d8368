#include "cpp/cpu_kernels.h"

#include <algorithm>
#include <vector>

#include "cpp/check.h"
#include "cpp/convert.h"
#include "cpp/cpu_matrix.h"
#include "cpp/cpu_memory.h"
#include "cpp/threads.h"
#include "hypatia/src/bridge/cpu.rs.h"

namespace hypatia::cpu_kernels {
namespace {

using bridge::CpuElement;

std::optional<CpuElement> element_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return CpuElement::F32;
    case at::kHalf:
      return CpuElement::F16;
    case at::kBFloat16:
      return CpuElement::Bf16;
    default:
      return std::nullopt;
  }
}

// What the bridge is told of the layers, and the tensors behind it.
class Chain {
 public:
  // None where a layer is not for the kernels.
  static std::optional<Chain> of(const at::Tensor& input,
                                 at::TensorList weights, const Biases& biases,
                                 bool relu_last) {
    const auto element = element_of(input);
    if (!element || !readable(input)) return std::nullopt;
    int64_t largest = 0;
    for (const at::Tensor& weight : weights) {
      largest = std::max(largest, weight.numel());
    }
    const auto rows = static_cast<size_t>(input.numel() / input.size(-1));
    if (!bridge::cpu_takes(*element, rows,
                           rows * static_cast<size_t>(largest))) {
      return std::nullopt;
    }
    Chain chain;
    chain.element_ = *element;
    chain.input_ = rows_or_copy(input);
    chain.layers_.reserve(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!readable(weights[i]) || !has_unit_stride(weights[i])) {
        return std::nullopt;
      }
      bridge::CpuLayer layer{};
      layer.weight = as_rows(weights[i]);
      layer.relu = i + 1 < weights.size() || relu_last;
      const at::Tensor bias = biases.get(i).value_or(at::Tensor());
      if (bias.defined()) {
        // The dispatcher resolves lazy negation in tensors and lists of them,
        // not in lists of optional ones.
        chain.biases_.push_back(bias.resolve_neg().contiguous());
        const at::Tensor& dense = chain.biases_.back();
        if (!readable(dense)) return std::nullopt;
        layer.bias = address(dense);
        // The kernels add it to a sum, which may have overflowed: infinity less
        // infinity. LibTorch's sums begin with it.
        if (bridge::cpu_has_infinity(*element, layer.bias,
                                     static_cast<size_t>(dense.numel()))) {
          return std::nullopt;
        }
      }
      chain.layers_.push_back(layer);
    }
    return chain;
  }

  void set_output(size_t layer, const at::Tensor& output) {
    layers_[layer].output = reinterpret_cast<size_t>(output.mutable_data_ptr());
  }

  void run() const {
    const auto forward = bridge::cpu_forward(element_, as_rows(input_),
                                             {layers_.data(), layers_.size()},
                                             threads_at_most());
    in_threads(forward->threads(), [&](size_t me) { forward->work(me); });
  }

 private:
  CpuElement element_{};
  at::Tensor input_;
  std::vector<at::Tensor> biases_;
  std::vector<bridge::CpuLayer> layers_;
};

at::Tensor empty_output(const at::Tensor& input, at::TensorList weights) {
  const auto sizes = mlp_output_sizes(input, weights);
  return empty_result(C10_AS_INTARRAYREF_SLOW(sizes), input.options());
}

}  // namespace

void measure() { bridge::cpu_measure(); }

std::optional<at::Tensor> mlp(const at::Tensor& input, at::TensorList weights,
                              const Biases& biases, bool relu_last) {
  auto chain = Chain::of(input, weights, biases, relu_last);
  if (!chain) return std::nullopt;
  at::Tensor output = empty_output(input, weights);
  chain->set_output(weights.size() - 1, output);
  chain->run();
  return output;
}

std::optional<std::tuple<at::Tensor, at::Tensor>> mlp_forward(
    const at::Tensor& input, at::TensorList weights, const Biases& biases,
    bool relu_last) {
  auto chain = Chain::of(input, weights, biases, relu_last);
  if (!chain) return std::nullopt;
  const MlpLayout layout = MlpLayout::of(input, weights);
  const int64_t total = layout.total.expect_int();
  const at::Tensor activations = layout.has_gaps
                                     ? empty_activations(layout, input)
                                     : empty_result(total, input.options());
  at::Tensor output = empty_output(input, weights);
  const auto hidden = split_activations(activations, input, weights);
  for (size_t i = 0; i < hidden.size(); ++i) chain->set_output(i, hidden[i]);
  chain->set_output(hidden.size(), output);
  chain->run();
  return std::make_tuple(output, activations);
}

std::optional<at::Tensor> linear_relu(const at::Tensor& input,
                                      const at::Tensor& weight,
                                      const std::optional<at::Tensor>& bias) {
  Biases biases;
  biases.push_back(bias);
  return mlp(input, weight, biases, /*relu_last=*/true);
}

}  // namespace hypatia::cpu_kernels
