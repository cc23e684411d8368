#include "cpp/graph/kinds.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

namespace hypatia::graph {
namespace {

using Names = std::unordered_set<std::string>;

// Only overloads without `out`; those have a written argument, which is
// refused before this list is asked.
const Names& fresh() {
  static const Names names = {
      // Products and layers.
      "aten::linear", "aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm",
      "aten::matmul", "aten::mv", "aten::addmv", "aten::dot", "aten::outer",
      "aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::convolution",
      "aten::_convolution", "aten::batch_norm", "aten::layer_norm",
      "aten::group_norm", "aten::instance_norm", "aten::embedding",
      "aten::max_pool1d", "aten::max_pool2d", "aten::avg_pool1d",
      "aten::avg_pool2d", "hypatia::fused_linear_relu", "hypatia::fused_mlp",
      // Element by element.
      "aten::relu", "aten::relu6", "aten::leaky_relu", "aten::elu",
      "aten::selu", "aten::celu", "aten::gelu", "aten::silu", "aten::mish",
      "aten::hardtanh", "aten::hardswish", "aten::hardsigmoid",
      "aten::softplus", "aten::threshold", "aten::sigmoid", "aten::tanh",
      "aten::logsigmoid", "aten::log_sigmoid", "aten::prelu", "aten::add",
      "aten::sub", "aten::rsub", "aten::mul", "aten::div", "aten::pow",
      "aten::neg", "aten::exp", "aten::log", "aten::log1p", "aten::expm1",
      "aten::sqrt", "aten::rsqrt", "aten::abs", "aten::sign", "aten::sin",
      "aten::cos", "aten::erf", "aten::reciprocal", "aten::square",
      "aten::clamp", "aten::clamp_min", "aten::clamp_max", "aten::maximum",
      "aten::minimum", "aten::where", "aten::addcmul", "aten::addcdiv",
      "aten::lerp", "aten::eq", "aten::ne", "aten::lt", "aten::le", "aten::gt",
      "aten::ge", "aten::isnan", "aten::isinf", "aten::isfinite",
      "aten::logical_not", "aten::logical_and", "aten::logical_or",
      // Reductions and what keeps the shape.
      "aten::sum", "aten::mean", "aten::var", "aten::std", "aten::norm",
      "aten::amax", "aten::amin", "aten::argmax", "aten::argmin", "aten::all",
      "aten::any", "aten::softmax", "aten::log_softmax", "aten::logsumexp",
      "aten::cumsum", "aten::mse_loss", "aten::l1_loss", "aten::nll_loss",
      "aten::cross_entropy", "aten::binary_cross_entropy",
      "aten::binary_cross_entropy_with_logits", "aten::smooth_l1_loss",
      // Copies.
      "aten::cat", "aten::stack", "aten::clone", "aten::index_select",
      "aten::gather", "aten::masked_select", "aten::zeros_like",
      "aten::ones_like", "aten::empty_like", "aten::full_like",
      // Numbers about tensors.
      "aten::size", "aten::dim", "aten::numel", "aten::len", "aten::item",
      "aten::is_floating_point", "aten::equal", "aten::allclose", "prim::dtype",
      "prim::device", "prim::shape", "prim::requires_grad", "prim::layout",
      "aten::Int", "aten::Float", "aten::Bool", "aten::ScalarImplicit",
      "aten::IntImplicit", "aten::FloatImplicit", "aten::__is__",
      "aten::__isnot__"};
  return names;
}

bool in(const Names& names, const jit::Node* node) {
  return names.count(node->kind().toQualString()) != 0;
}

// As AliasDb::isMutableType, which LibTorch does not export.
bool has_memory(const c10::Type& type) {
  switch (type.kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::ComplexType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::NumberType:
    case c10::TypeKind::NoneType:
    case c10::TypeKind::StringType:
    case c10::TypeKind::DeviceObjType:
    case c10::TypeKind::EnumType:
    case c10::TypeKind::FunctionType:
      return false;
    case c10::TypeKind::OptionalType:
    case c10::TypeKind::TupleType: {
      const auto contained = type.containedTypes();
      return std::any_of(contained.begin(), contained.end(),
                         [](const auto& item) { return has_memory(*item); });
    }
    default:
      return true;
  }
}

}  // namespace

bool returns_fresh(const jit::Node* node) {
  return node->maybeSchema() != nullptr && in(fresh(), node);
}

bool is_dropout(const jit::Node* node) {
  static const Names names = {"aten::dropout", "aten::feature_dropout",
                              "aten::alpha_dropout",
                              "aten::feature_alpha_dropout"};
  return in(names, node);
}

bool is_matrix_product(const jit::Node* node) {
  static const Names names = {"aten::linear", "aten::matmul", "aten::mm",
                              "aten::addmm"};
  return in(names, node);
}

std::string functional_kind(const jit::Node* node) {
  static const std::unordered_map<std::string, std::string> kinds = {
      {"aten::relu_", "aten::relu"},
      {"aten::threshold_", "aten::threshold"},
      {"aten::clamp_min_", "aten::clamp_min"},
      {"aten::add_", "aten::add"},
      {"aten::dropout_", "aten::dropout"},
      {"aten::feature_dropout_", "aten::feature_dropout"}};
  const auto found = kinds.find(node->kind().toQualString());
  return found == kinds.end() ? std::string() : found->second;
}

bool has_memory(const jit::Value* value) { return has_memory(*value->type()); }

bool has_foreign_blocks(const jit::Node* node) {
  return node->kind() != jit::prim::If && node->kind() != jit::prim::Loop &&
         (!node->blocks().empty() || node->hasAttribute(jit::attr::Subgraph));
}

}  // namespace hypatia::graph
