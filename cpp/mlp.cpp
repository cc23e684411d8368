#include "cpp/mlp.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/narrow.h>
#include <ATen/ops/zeros.h>

#include "cpp/check.h"

namespace hypatia {
namespace {

constexpr size_t kAlignment = 256;  // bytes; cuBLASLt looks no further

std::vector<bool> vector_of(const c10::List<bool>& list) {
  std::vector<bool> bits;
  bits.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) bits.push_back(list.get(i));
  return bits;
}

}  // namespace

MlpMask::MlpMask(std::vector<bool> bits) : bits_(std::move(bits)), lowest_(0) {
  if (input()) return;
  while (lowest_ < layers() && !weight(lowest_) && !bias(lowest_)) ++lowest_;
}

MlpMask::MlpMask(const c10::List<bool>& bits) : MlpMask(vector_of(bits)) {}

c10::List<bool> MlpMask::list() const {
  c10::List<bool> list;
  list.reserve(bits_.size());
  for (const bool bit : bits_) list.push_back(bit);
  return list;
}

std::vector<at::Tensor> MlpMask::pick(std::vector<at::Tensor> all) const {
  std::vector<at::Tensor> wanted;
  for (size_t i = 0; i < bits_.size(); ++i) {
    if (bits_[i]) wanted.push_back(std::move(all[i]));
  }
  return wanted;
}

std::vector<at::Tensor> MlpMask::spread(std::vector<at::Tensor> wanted) const {
  std::vector<at::Tensor> all(bits_.size());
  size_t next = 0;
  for (size_t i = 0; i < bits_.size(); ++i) {
    if (bits_[i]) all[i] = std::move(wanted[next++]);
  }
  return all;
}

MlpLayout::MlpLayout(const c10::SymInt& rows,
                     const std::vector<c10::SymInt>& widths, size_t itemsize) {
  for (size_t i = 0; i < widths.size(); ++i) {
    const c10::SymInt begin = aligned_elements(total, itemsize);
    // Symbolic sizes may leave a gap.
    has_gaps |=
        !begin.maybe_as_int() || begin.maybe_as_int() != total.maybe_as_int();
    offsets.push_back(begin);
    total = begin + rows * widths[i];
  }
}

MlpLayout MlpLayout::of(const at::Tensor& input, at::TensorList weights) {
  std::vector<c10::SymInt> widths;
  for (size_t i = 0; i + 1 < weights.size(); ++i) {
    widths.push_back(weights[i].sym_size(0));
  }
  return MlpLayout(leading_rows(input), widths, input.element_size());
}

c10::SymInt aligned_elements(const c10::SymInt& elements, size_t itemsize) {
  const auto unit = static_cast<int64_t>(kAlignment / itemsize);
  return (elements + (unit - 1)) / unit * unit;
}

at::Tensor empty_activations(const MlpLayout& layout, const at::Tensor& input) {
  const auto options = input.options();
  return layout.has_gaps ? at::zeros_symint({layout.total}, options)
                         : at::empty_symint({layout.total}, options);
}

c10::SymInt leading_rows(const at::Tensor& t) {
  c10::SymInt rows = 1;
  for (const auto& size : t.sym_sizes().slice(0, t.dim() - 1)) rows *= size;
  return rows;
}

std::vector<at::Tensor> split_activations(const at::Tensor& activations,
                                          const at::Tensor& input,
                                          at::TensorList weights) {
  const MlpLayout layout = MlpLayout::of(input, weights);
  const c10::SymInt rows = leading_rows(input);
  std::vector<at::Tensor> parts;
  for (size_t i = 0; i < layout.offsets.size(); ++i) {
    const c10::SymInt length = rows * weights[i].sym_size(0);
    parts.push_back(at::narrow_symint(activations, 0, layout.offsets[i], length)
                        .view_symint(output_sizes(input, weights[i])));
  }
  return parts;
}

c10::SymDimVector mlp_output_sizes(const at::Tensor& input,
                                   at::TensorList weights) {
  return output_sizes(input, weights.back());
}

}  // namespace hypatia
