#include "cpp/graph/module.h"

#include <torch/csrc/jit/api/compilation_unit.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/constants.h>

#include <unordered_map>

#include "cpp/graph/machine.h"

namespace hypatia::graph {
namespace {

using Object = c10::intrusive_ptr<c10::ivalue::Object>;
using Copies = std::unordered_map<const c10::ivalue::Object*, Object>;

bool is_module(const c10::IValue& value) {
  return value.isObject() && value.toObjectRef().type()->is_module();
}

// Module::clone copies a shared submodule once for each of its names, and what
// one copy sets the other would not see.
void share_again(const Object& original, const Object& copy, Copies& copies) {
  for (size_t i = 0; i < original->type()->numAttributes(); ++i) {
    const auto value = original->getSlot(i);
    if (!is_module(value)) continue;
    const auto submodule = value.toObject();
    const auto [it, first] =
        copies.emplace(submodule.get(), copy->getSlot(i).toObject());
    if (first) {
      share_again(submodule, it->second, copies);
    } else {
      copy->setSlot(i, it->second);
    }
  }
}

}  // namespace

jit::Module copy_sharing_tensors(const jit::Module& module) {
  auto copy = module.clone(/*inplace=*/true);
  Copies copies;
  share_again(module._ivalue(), copy._ivalue(), copies);
  return copy;
}

void replace_method(const jit::Module& module, const std::string& name,
                    std::shared_ptr<jit::Graph> graph) {
  const auto type = module.type();
  auto& old = type->getMethod(name);
  const auto schema = old.getSchema();
  const auto qualified = old.qualname();
  const auto unit = type->compilation_unit();
  type->unsafeRemoveMethod(name);
  unit->unsafeRemoveMethod(qualified);
  auto* method = unit->create_function(qualified, std::move(graph));
  type->addMethod(method);
  method->setSchema(schema);
}

namespace {

// Of a frozen module, which has no parameters any more.
bool has_cuda_constants(const jit::Block* block) {
  for (const jit::Node* node : block->nodes()) {
    if (node->kind() == jit::prim::Constant) {
      const auto value = jit::toIValue(node->output());
      if (value && value->isTensor() && value->toTensor().is_cuda()) {
        return true;
      }
    }
    for (const jit::Block* nested : node->blocks()) {
      if (has_cuda_constants(nested)) return true;
    }
  }
  return false;
}

}  // namespace

bridge::Options options_for(const jit::Module& module) {
  bridge::Options options{};
  options.device = "cpu";
  for (const auto& tensor : module.parameters()) {
    if (tensor.is_cuda()) options.device = "cuda";
  }
  for (const auto& tensor : module.buffers()) {
    if (tensor.is_cuda()) options.device = "cuda";
  }
  for (const auto& method : module.get_methods()) {
    auto* function = jit::tryToGraphFunction(method.function());
    if (function != nullptr && has_cuda_constants(function->graph()->block())) {
      options.device = "cuda";
    }
  }
  if (options.device == "cpu") {
    const auto& cpu = cpu_profile();
    options.cpu_gflops = cpu.gflops;
    options.cpu_gbytes = cpu.gbytes;
    options.cpu_dispatch_us = cpu.dispatch_us;
  }
  return options;
}

}  // namespace hypatia::graph
