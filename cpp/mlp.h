// What the files of fused_mlp share: which gradients are wanted, and how the
// activations that backward needs lie in memory.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace hypatia {

// One entry a layer; none and undefined mean no bias.
using Biases = c10::List<std::optional<at::Tensor>>;

// fused_mlp_backward's output_mask: input, weights, biases.
class MlpMask {
 public:
  explicit MlpMask(std::vector<bool> bits);
  explicit MlpMask(const c10::List<bool>& bits);

  size_t layers() const { return bits_.size() / 2; }
  bool input() const { return bits_[0]; }
  bool weight(size_t layer) const { return bits_[1 + layer]; }
  bool bias(size_t layer) const { return bits_[1 + layers() + layer]; }
  // Where backward ends: no layer in front of this one wants anything.
  // layers() where nobody wants anything.
  size_t lowest() const { return lowest_; }
  // Whether the gradient of this layer's input is wanted or on the way.
  bool in_front_of(size_t layer) const { return input() || lowest_ < layer; }

  const std::vector<bool>& bits() const { return bits_; }
  c10::List<bool> list() const;

  // The wanted ones of all gradients.
  std::vector<at::Tensor> pick(std::vector<at::Tensor> all) const;
  // All gradients from the wanted ones; the others are undefined.
  std::vector<at::Tensor> spread(std::vector<at::Tensor> wanted) const;

 private:
  std::vector<bool> bits_;
  size_t lowest_;
};

// The results of all layers but the last lie in one 1-D tensor: one allocation
// for a whole forward pass, and one tensor to save. Each is dense and begins at
// a multiple of 256 bytes; what lies between is zero.
struct MlpLayout {
  std::vector<c10::SymInt> offsets;  // in elements
  c10::SymInt total = 0;
  bool has_gaps = false;

  // `rows` times each of `widths`.
  MlpLayout(const c10::SymInt& rows, const std::vector<c10::SymInt>& widths,
            size_t itemsize);
  // Of fused_mlp(input, weights), whose arguments were checked.
  static MlpLayout of(const at::Tensor& input, at::TensorList weights);
};

// `elements`, rounded up so that what follows is aligned.
c10::SymInt aligned_elements(const c10::SymInt& elements, size_t itemsize);

// Memory for them, its gaps zeroed, of input's dtype and device.
at::Tensor empty_activations(const MlpLayout& layout, const at::Tensor& input);

// Rows of [*, K].
c10::SymInt leading_rows(const at::Tensor& t);

// The activations as [*, N] each, views.
std::vector<at::Tensor> split_activations(const at::Tensor& activations,
                                          const at::Tensor& input,
                                          at::TensorList weights);

// [*, N] with the leading sizes of input and the rows of the last weight.
c10::SymDimVector mlp_output_sizes(const at::Tensor& input,
                                   at::TensorList weights);

}  // namespace hypatia
