#include <ATen/Functions.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/serialization/import_read.h>

#include <optional>
#include <unordered_set>

#include "cpp/archive/archive.h"
#include "cpp/graph/attributes.h"
#include "hypatia/src/bridge/archive.rs.h"

namespace hypatia::bridge {
namespace {

namespace jit = torch::jit;

constexpr int64_t kRows = 8;
// Nothing is known of recorded integers but their shape: 0 and 1 are indices
// into nearly everything.
constexpr int64_t kLimit = 2;

// The arguments that torch.jit.trace recorded: a file of its own that loading
// ignores, so that it is no reason to fail. The tensors have sizes and no
// memory; nobody may read them.
std::vector<c10::IValue> traced(const std::string& path) try {
  caffe2::serialize::PyTorchStreamReader reader(path);
  if (!reader.hasRecord("traced_inputs.pkl")) return {};
  const auto value =
      jit::readArchiveAndTensors("traced_inputs", "", "traced_inputs/",
                                 std::nullopt, std::nullopt, at::kCPU, reader);
  if (!value.isGenericDict()) return {};
  const auto methods = value.toGenericDict();
  const auto found = methods.find("forward");
  if (found == methods.end() || !found->value().isList()) return {};
  return found->value().toListRef().vec();
} catch (const std::exception&) {
  return {};
}

// The tensor that a value is in every call, if it is a weight.
std::optional<at::Tensor> weight_of(const jit::Value* value,
                                    const graph::Attributes& attributes) {
  const jit::Node* node = value->node();
  if (node->kind() == jit::aten::t && node->inputs().size() == 1) {
    auto weight = weight_of(node->inputs()[0], attributes);
    if (!weight || weight->dim() > 2) return std::nullopt;
    return weight->t();
  }
  if (const auto* attribute = attributes.find(value)) {
    if (!attribute->value.isTensor()) return std::nullopt;
    return attribute->value.toTensor();
  }
  if (const auto constant = jit::toIValue(value)) {
    if (constant->isTensor()) return constant->toTensor();
  }
  return std::nullopt;
}

// Operators that leave the size of the last dimension alone, or (flatten) make
// it what the layer behind them wants.
bool passes_through(const jit::Node* node) {
  static const std::unordered_set<std::string> names = {
      "aten::relu",       "aten::relu_",   "aten::sigmoid", "aten::tanh",
      "aten::gelu",       "aten::silu",    "aten::dropout", "aten::flatten",
      "aten::contiguous", "aten::to",      "aten::float",   "aten::mul",
      "aten::add",        "aten::sub",     "aten::div",     "aten::clamp",
      "aten::layer_norm", "aten::detach",  "aten::neg",     "aten::softmax",
      "aten::view",       "aten::reshape",
  };
  return names.count(node->kind().toQualString()) != 0;
}

struct Wanted {
  int64_t last;   // Size of the last dimension; -1 for indices.
  int64_t limit;  // Rows of the table that indices go into.
  c10::ScalarType dtype;
  std::string from;
};

// What a use of a value by a node says about the value.
std::optional<Wanted> wanted_by(const jit::Use& use,
                                const graph::Attributes& attributes) {
  const jit::Node* node = use.user;
  const std::string kind = node->kind().toQualString();
  const auto weight = [&](size_t index, int64_t dim) -> std::optional<Wanted> {
    if (node->inputs().size() <= index) return std::nullopt;
    const jit::Value* value = node->inputs()[index];
    const auto tensor = weight_of(value, attributes);
    if (!tensor || tensor->dim() != 2) return std::nullopt;
    const auto* attribute = attributes.find(value);
    const auto from = attribute ? attribute->path : kind;
    return Wanted{tensor->size(dim), 0, tensor->scalar_type(), from};
  };
  if (use.offset == 0) {
    if (kind == "aten::linear" || kind == "hypatia::fused_linear_relu") {
      return weight(1, 1);
    }
    if (kind == "aten::matmul" || kind == "aten::mm") return weight(1, 0);
    if (kind == "hypatia::fused_mlp" && node->inputs().size() > 1) {
      const jit::Node* list = node->inputs()[1]->node();
      if (list->kind() != jit::prim::ListConstruct || list->inputs().empty()) {
        return std::nullopt;
      }
      const auto tensor = weight_of(list->inputs()[0], attributes);
      if (!tensor || tensor->dim() != 2) return std::nullopt;
      const auto* attribute = attributes.find(list->inputs()[0]);
      return Wanted{tensor->size(1), 0, tensor->scalar_type(),
                    attribute ? attribute->path : kind};
    }
  }
  if (use.offset == 1) {
    if (kind == "aten::addmm") return weight(2, 0);
    if (kind == "aten::embedding") {
      auto table = weight(0, 0);
      if (!table || table->last == 0) return std::nullopt;
      return Wanted{-1, table->last, at::kLong, table->from};
    }
  }
  return std::nullopt;
}

// Breadth first, so that the nearest layer decides.
std::optional<Wanted> wanted(const jit::Value* input,
                             const graph::Attributes& attributes) {
  std::vector<const jit::Value*> values{input};
  std::unordered_set<const jit::Value*> seen{input};
  for (size_t i = 0; i < values.size(); ++i) {
    for (const jit::Use& use : values[i]->uses()) {
      if (auto found = wanted_by(use, attributes)) return found;
      if (!passes_through(use.user)) continue;
      const jit::Value* next = use.user->outputs()[0];
      if (seen.insert(next).second) values.push_back(next);
    }
  }
  return std::nullopt;
}

void take_tensor(const at::Tensor& tensor, Input& input) {
  input.kind = InputKind::Tensor;
  input.dtype = static_cast<int32_t>(tensor.scalar_type());
  for (const auto size : tensor.sizes()) input.shape.push_back(size);
}

// What a trace recorded, as far as it can be made again.
void take_traced(const c10::IValue& value, Input& input) {
  input.source = "recorded";
  input.certain = true;
  if (value.isTensor()) {
    take_tensor(value.toTensor(), input);
  } else if (value.isInt()) {
    input.kind = InputKind::Int;
    input.whole = value.toInt();
  } else if (value.isDouble()) {
    input.kind = InputKind::Float;
    input.real = value.toDouble();
  } else if (value.isBool()) {
    input.kind = InputKind::Bool;
    input.whole = value.toBool();
  } else if (value.isNone()) {
    input.kind = InputKind::None;
  }
}

void infer(const Wanted& layer, int64_t rows, Input& input) {
  input.source = "inferred from " + layer.from;
  input.kind = InputKind::Tensor;
  input.dtype = static_cast<int32_t>(layer.dtype);
  input.shape.push_back(rows > 0 ? rows : kRows);
  if (layer.last >= 0) input.shape.push_back(layer.last);
  input.limit = layer.limit;
}

}  // namespace

rust::Vec<Input> archive_inputs(const Archive& archive, rust::Str path,
                                int64_t rows) {
  const auto method = archive.module.find_method("forward");
  TORCH_CHECK(method.has_value(), "no method forward");
  auto* function = jit::tryToGraphFunction(method->function());
  TORCH_CHECK(function != nullptr, "a forward without a graph");
  auto graph = function->graph()->copy();
  jit::Inline(*graph);
  const graph::Attributes attributes(*graph, archive.module);
  const auto recorded = traced(std::string(path));

  rust::Vec<Input> inputs;
  const auto& arguments = method->function().getSchema().arguments();
  for (size_t i = 1; i < arguments.size(); ++i) {
    Input input{};
    input.name = rust::String::lossy(arguments[i].name());
    input.type_name =
        rust::String::lossy(arguments[i].type()->annotation_str());
    input.kind = InputKind::Unknown;
    const auto layer = wanted(graph->inputs()[i], attributes);
    if (recorded.size() + 1 == arguments.size()) {
      take_traced(recorded[i - 1], input);
      if (layer && layer->limit > 0) input.limit = layer->limit;
    } else if (layer) {
      infer(*layer, rows, input);
    }
    if (input.kind == InputKind::Unknown && arguments[i].default_value()) {
      input.kind = InputKind::Default;
    }
    if (input.limit == 0) input.limit = kLimit;
    inputs.push_back(std::move(input));
  }
  return inputs;
}

}  // namespace hypatia::bridge
