// Argument checks of every operator, the same on every device and for
// symbolic shapes. One sentence each: op, expected, got.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <ostream>

#include "cpp/mlp.h"

namespace hypatia {

// input [*, K], weight [N, K], bias [N].
void check_linear_relu(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias);

// grad_output and output [*, N]; input and weight as above.
void check_linear_relu_backward(const at::Tensor& grad_output,
                                const at::Tensor& input,
                                const at::Tensor& weight,
                                const at::Tensor& output);

// input [*, K], weights [N, K] one behind the other, a bias [N] or none each.
void check_mlp(const at::Tensor& input, at::TensorList weights,
               const Biases& biases);

// grad_output and output [*, N of the last layer], activations as MlpLayout
// lays them out, an entry of `mask` for the input and two for each layer.
void check_mlp_backward(const at::Tensor& grad_output, const at::Tensor& input,
                        at::TensorList weights, const at::Tensor& activations,
                        const std::optional<at::Tensor>& output,
                        const c10::List<bool>& mask);

// [*, N] for input [*, K] and weight [N, K].
c10::SymDimVector output_sizes(const at::Tensor& input,
                               const at::Tensor& weight);

// What the checks of all operators are made of.
namespace checks {

// An argument's name: `input`, or `weights[2]`.
struct Name {
  const char* text;
  int64_t index = -1;
  Name(const char* text) : text(text) {}  // NOLINT: names are literals
  Name(const char* text, int64_t index) : text(text), index(index) {}
};
std::ostream& operator<<(std::ostream& out, const Name& name);

// A dense floating-point tensor of a supported dtype.
void check_kind(const char* op, const Name& name, const at::Tensor& t);

// The same, of input's dtype and device.
void check_like_input(const char* op, const Name& name, const at::Tensor& t,
                      const at::Tensor& input);

// [*, N] with the leading sizes of input.
void check_result_shape(const char* op, const Name& name, const at::Tensor& t,
                        const at::Tensor& input, const at::Tensor& weight);

// Compares without a guard where both are plain numbers, with one (that a
// symbolic tracer may rely on) where they are not.
bool same_size(const c10::SymInt& a, const c10::SymInt& b);

}  // namespace checks
}  // namespace hypatia
