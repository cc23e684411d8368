// Compiled autograd: the nodes as functions of their saved tensors. The engine
// traces with dummy gradients, so a node hands over a function to be called
// later, with real ones, instead of computing anything.
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include "cpp/autograd.h"

namespace hypatia {
namespace {

namespace dynamo = torch::dynamo::autograd;
using Arguments = std::vector<c10::IValue>;
using Function = variable_list (*)(const variable_list&, const Arguments&);

// Registers `function` for `node` with `tensors` and its mask as arguments.
template <size_t N>
variable_list call_later(torch::autograd::Node& node,
                         dynamo::SwapSavedVariables& saved, Function function,
                         const variable_list& grads,
                         const variable_list& tensors,
                         std::array<bool, N> mask) {
  dynamo::PackedArgs packed;
  std::vector<at::TypePtr> schema;
  for (const at::Tensor& tensor : tensors) {
    packed.pack(tensor);
    schema.push_back(at::TensorType::get());
  }
  packed.pack(mask);
  schema.push_back(at::ListType::create(at::BoolType::get()));
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
  const auto x = args.unpack<at::Tensor>();
  const auto w = args.unpack<at::Tensor>();
  const auto y = args.unpack<at::Tensor>();
  const auto mask = args.unpack<std::array<bool, 3>>();
  return gradients(grads[0], x, w, y, mask);
}

variable_list second(const variable_list& grads, const Arguments& arguments) {
  dynamo::PackedArgs args(arguments);
  const auto dy = args.unpack<at::Tensor>();
  const auto x = args.unpack<at::Tensor>();
  const auto w = args.unpack<at::Tensor>();
  const auto y = args.unpack<at::Tensor>();
  const auto mask = args.unpack<std::array<bool, 4>>();
  variable_list result = second_gradients(grads, dy, x, w, y, mask);
  // A traced graph has no undefined gradients: what is wanted must be there.
  const std::array<const at::Tensor*, 4> like = {&y, &x, &w, &y};
  for (size_t i = 0; i < result.size(); ++i) {
    if (mask[i] && !result[i].defined()) result[i] = at::zeros_like(*like[i]);
  }
  return result;
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
      call_later(*this, saved, &first, grads, {x, w, y}, mask());
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
      mask());
  saved.after(grad_output);
  saved.after(input);
  saved.after(weight);
  saved.after(output);
  return result;
}

}  // namespace hypatia
