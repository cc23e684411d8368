#include "cpp/few_rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cpp/check.h"
#include "cpp/convert.h"
#include "hypatia/src/bridge.rs.h"

namespace hypatia::few_rows {
namespace {

// Beyond these the libraries' products catch up.
constexpr int64_t kMostRows = 8;
// Products that are worth another thread, whose start takes some microseconds.
constexpr int64_t kGrain = int64_t{1} << 16;

bool is_dense_vector(const at::Tensor& t) {
  return t.dim() == 1 && (t.stride(0) == 1 || t.size(0) == 1) && !t.is_neg();
}

bool has_unit_stride(const at::Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1;
}

bool takes(const at::Tensor& input) {
  const auto dtype = input.scalar_type();
  if (!input.is_cpu() || input.layout() != at::kStrided ||
      (dtype != at::kFloat && dtype != at::kBFloat16) || input.numel() == 0 ||
      input.numel() > kMostRows * input.size(-1)) {
    return false;
  }
  return input.dim() <= 2 ? has_unit_stride(input) : input.is_contiguous();
}

bool takes(const at::Tensor& weight, const at::Tensor& bias) {
  return weight.numel() != 0 && has_unit_stride(weight) &&
         (weight.size(0) == 1 || weight.stride(0) >= weight.size(1)) &&
         (!bias.defined() || is_dense_vector(bias));
}

// Rows as fp32: the tensor's own memory, or a copy that widens.
class Rows {
 public:
  explicit Rows(const at::Tensor& input)
      : stride_(input.dim() == 2 && input.size(0) > 1 ? input.stride(0)
                                                      : input.size(-1)) {
    if (input.scalar_type() == at::kFloat) {
      address_ = address(input);
      return;
    }
    const int64_t k = input.size(-1);
    const int64_t rows = input.numel() / k;
    copy_.reset(new float[rows * k]);
    const auto* from = input.const_data_ptr<at::BFloat16>();
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(from + row * stride_, k, copy_.get() + row * k);
    }
    stride_ = k;
    address_ = reinterpret_cast<size_t>(copy_.get());
  }

  size_t data() const { return address_; }
  int64_t stride() const { return stride_; }

 private:
  int64_t stride_;
  size_t address_ = 0;
  std::unique_ptr<float[]> copy_;
};

void run(const bridge::FewRows& layer) {
  const auto products = static_cast<int64_t>(layer.k * layer.rows);
  const int64_t grain = std::max<int64_t>(8, kGrain / products / 8 * 8);
  at::parallel_for(0, static_cast<int64_t>(layer.n), grain,
                   [&](int64_t begin, int64_t end) {
                     bridge::few_rows(layer, static_cast<size_t>(begin),
                                      static_cast<size_t>(end));
                   });
}

at::Tensor bias_of(const Biases& biases, size_t i) {
  return biases.get(i).value_or(at::Tensor());
}

bridge::FewRows describe(const at::Tensor& weight, const at::Tensor& bias,
                         int64_t rows) {
  bridge::FewRows layer{};
  layer.rows = static_cast<size_t>(rows);
  layer.n = static_cast<size_t>(weight.size(0));
  layer.k = static_cast<size_t>(weight.size(1));
  layer.weight = address(weight);
  layer.weight_stride = static_cast<size_t>(
      weight.size(0) > 1 ? weight.stride(0) : weight.size(1));
  layer.bias = bias.defined() ? address(bias) : 0;
  layer.bf16 = weight.scalar_type() == at::kBFloat16;
  return layer;
}

}  // namespace

std::optional<at::Tensor> mlp(const at::Tensor& input, at::TensorList weights,
                              const Biases& biases, bool relu_last) {
  if (!takes(input)) return std::nullopt;
  int64_t widest = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!takes(weights[i], bias_of(biases, i))) return std::nullopt;
    widest = std::max(widest, weights[i].size(0));
  }
  const int64_t rows = input.numel() / input.size(-1);
  at::Tensor output =
      at::empty_symint(mlp_output_sizes(input, weights), input.options());
  const Rows first(input);
  const bool several = weights.size() > 1;
  const std::unique_ptr<float[]> hidden(several ? new float[2 * rows * widest]
                                                : nullptr);
  size_t from = first.data();
  auto stride = static_cast<size_t>(first.stride());
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool last = i + 1 == weights.size();
    auto layer = describe(weights[i], bias_of(biases, i), rows);
    layer.input = from;
    layer.input_stride = stride;
    layer.narrow = last;
    layer.relu = !last || relu_last;
    layer.output =
        last ? address(output)
             : reinterpret_cast<size_t>(hidden.get() + i % 2 * rows * widest);
    run(layer);
    from = layer.output;
    stride = layer.n;
  }
  return output;
}

std::optional<at::Tensor> linear_relu(const at::Tensor& input,
                                      const at::Tensor& weight,
                                      const std::optional<at::Tensor>& bias) {
  if (!takes(input) || !takes(weight, bias.value_or(at::Tensor()))) {
    return std::nullopt;
  }
  Biases biases;
  biases.push_back(bias);
  return mlp(input, weight, biases, /*relu_last=*/true);
}

}  // namespace hypatia::few_rows
