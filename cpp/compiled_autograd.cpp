// Compiled autograd: the nodes as functions of their saved tensors. The engine
// traces with dummy gradients, so a node hands over a function to be called
// later, with real ones, instead of computing anything.
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include "cpp/autograd.h"
#include "cpp/autograd_mlp.h"

namespace hypatia {
namespace {

namespace dynamo = torch::dynamo::autograd;
using Arguments = std::vector<c10::IValue>;
using Function = variable_list (*)(const variable_list&, const Arguments&);

// Registers `function` for `node` with its mask and `tensors` as arguments.
variable_list call_later(torch::autograd::Node& node,
                         dynamo::SwapSavedVariables& saved, Function function,
                         const variable_list& grads,
                         const variable_list& tensors,
                         const std::vector<bool>& mask) {
  dynamo::PackedArgs packed;
  packed.pack(mask);
  std::vector<at::TypePtr> schema = {at::ListType::create(at::BoolType::get())};
  for (const at::Tensor& tensor : tensors) {
    packed.pack(tensor);
    schema.push_back(at::TensorType::get());
  }
  using Metadata = std::vector<std::optional<torch::autograd::InputMetadata>>;
  const auto metadata = dynamo::IValuePacker<Metadata>::pack(
      dynamo::get_input_metadata(node.next_edges()));
  const auto& compiler = dynamo::getPyCompilerInterface();
  PyObject* const self = saved.get_py_compiler();
  const auto name = compiler->bind_function(self, node.name(), function, schema,
                                            /*is_custom_function=*/true,
                                            /*is_traceable=*/true);
  return compiler->call_function(self, "apply_functional", name, grads,
                                 packed.vec(), metadata);
}

variable_list first(const variable_list& grads, const Arguments& arguments) {
  dynamo::PackedArgs args(arguments);
  const auto mask = args.unpack<std::array<bool, 3>>();
  const auto x = args.unpack<at::Tensor>();
  const auto w = args.unpack<at::Tensor>();
  const auto y = args.unpack<at::Tensor>();
  return gradients(grads[0], x, w, y, mask);
}

variable_list second(const variable_list& grads, const Arguments& arguments) {
  dynamo::PackedArgs args(arguments);
  const auto mask = args.unpack<std::array<bool, 4>>();
  const auto dy = args.unpack<at::Tensor>();
  const auto x = args.unpack<at::Tensor>();
  const auto w = args.unpack<at::Tensor>();
  const auto y = args.unpack<at::Tensor>();
  variable_list result = second_gradients(grads, dy, x, w, y, mask);
  // A traced graph has no undefined gradients: what is wanted must be there.
  const std::array<const at::Tensor*, 4> like = {&y, &x, &w, &y};
  for (size_t i = 0; i < result.size(); ++i) {
    if (mask[i] && !result[i].defined()) result[i] = at::zeros_like(*like[i]);
  }
  return result;
}

// The output comes last, if at all.
variable_list mlp(const variable_list& grads, const Arguments& arguments) {
  dynamo::PackedArgs args(arguments);
  const MlpMask mask(args.unpack<std::vector<bool>>());
  FusedMlpBackward::Saved saved;
  saved.input = args.unpack<at::Tensor>();
  saved.activations = args.unpack<at::Tensor>();
  for (size_t i = 0; i < mask.layers(); ++i) {
    saved.weights.push_back(args.unpack<at::Tensor>());
  }
  if (arguments.size() > 3 + mask.layers()) {
    saved.output = args.unpack<at::Tensor>();
  }
  variable_list result = mlp_gradients(grads, saved, mask);
  for (size_t i = 0; i < result.size(); ++i) {
    if (!mask.bits()[i] || result[i].defined()) continue;
    if (i == 0) {
      result[i] = at::zeros_like(saved.input);
    } else if (i <= mask.layers()) {
      result[i] = at::zeros_like(saved.weights[i - 1]);
    } else {
      const auto& weight = saved.weights[i - 1 - mask.layers()];
      result[i] = at::zeros_symint({weight.sym_size(0)}, weight.options());
    }
  }
  return result;
}

template <size_t N>
std::vector<bool> bits(const std::array<bool, N>& mask) {
  return std::vector<bool>(mask.begin(), mask.end());
}

}  // namespace

void FusedLinearReluBackward::compiled_args(
    dynamo::CompiledNodeArgs& args) const {
  args.collect(input, /*is_output=*/false);
  args.collect(weight, /*is_output=*/false);
  args.collect(output, /*is_output=*/true);
}

variable_list FusedLinearReluBackward::apply_with_saved(
    const variable_list& grads, dynamo::SwapSavedVariables& saved) {
  saved.before(input);
  saved.before(weight);
  saved.before(output);
  at::Tensor x = input.unpack(), w = weight.unpack();
  const at::Tensor y = output.unpack(getptr());
  complete(x, w, y);
  variable_list result =
      call_later(*this, saved, &first, grads, {x, w, y}, bits(mask()));
  saved.after(input);
  saved.after(weight);
  saved.after(output);
  return result;
}

void FusedLinearReluDoubleBackward::compiled_args(
    dynamo::CompiledNodeArgs& args) const {
  args.collect(grad_output, /*is_output=*/false);
  args.collect(input, /*is_output=*/false);
  args.collect(weight, /*is_output=*/false);
  args.collect(output, /*is_output=*/false);
}

variable_list FusedLinearReluDoubleBackward::apply_with_saved(
    const variable_list& grads, dynamo::SwapSavedVariables& saved) {
  saved.before(grad_output);
  saved.before(input);
  saved.before(weight);
  saved.before(output);
  variable_list result = call_later(
      *this, saved, &second, grads,
      {grad_output.unpack(), input.unpack(), weight.unpack(), output.unpack()},
      bits(mask()));
  saved.after(grad_output);
  saved.after(input);
  saved.after(weight);
  saved.after(output);
  return result;
}

void FusedMlpBackward::compiled_args(dynamo::CompiledNodeArgs& args) const {
  args.collect(input, /*is_output=*/false);
  args.collect(weights, /*is_output=*/false);
  args.collect(activations, /*is_output=*/true);
  args.collect(output, /*is_output=*/true);
  args.collect(input_sizes);
  args.collect(widths);
  args.collect(relu_last);
}

variable_list FusedMlpBackward::apply_with_saved(
    const variable_list& grads, dynamo::SwapSavedVariables& swap) {
  swap.before(input);
  swap.before(weights);
  swap.before(activations);
  swap.before(output);
  swap.before(input_sizes);
  swap.before(widths);
  const Saved saved = unpack();
  variable_list tensors = {saved.input, saved.activations};
  tensors.insert(tensors.end(), saved.weights.begin(), saved.weights.end());
  if (saved.output) tensors.push_back(*saved.output);
  variable_list result =
      call_later(*this, swap, &mlp, grads, tensors, mask().bits());
  swap.after(input);
  swap.after(weights);
  swap.after(activations);
  swap.after(output);
  swap.after(input_sizes);
  swap.after(widths);
  return result;
}

}  // namespace hypatia
