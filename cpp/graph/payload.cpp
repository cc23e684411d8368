#include "cpp/graph/payload.h"

#include <ATen/ops/isfinite.h>
#include <torch/csrc/jit/ir/constants.h>

namespace hypatia::graph {
namespace {

// Large tensors of more dimensions fold into nothing: not worth reading.
constexpr int64_t most_dimensions = 2;

void fill(rust::Vec<int64_t>& to, at::IntArrayRef from) {
  for (const int64_t item : from) to.push_back(item);
}

}  // namespace

const void* storage_key(const at::Tensor& tensor) {
  return tensor.defined() && tensor.has_storage()
             ? tensor.storage().unsafeGetStorageImpl()
             : nullptr;
}

void describe_tensor(const at::Tensor& tensor, TensorNumbers& numbers,
                     bridge::Value& record) {
  if (!tensor.defined()) return;
  record.dtype = static_cast<int32_t>(tensor.scalar_type());
  record.needs_grad = tensor.requires_grad();
  record.strided = tensor.layout() == at::kStrided && !tensor.is_quantized() &&
                   !tensor.is_mkldnn() && tensor.has_storage() &&
                   !tensor.is_nested();
  if (!record.strided) return;
  record.has_shape = true;
  fill(record.shape, tensor.sizes());
  const TensorKey key(storage_key(tensor), tensor.storage_offset(),
                      record.dtype, tensor.sizes().vec(),
                      tensor.strides().vec());
  record.identity = numbers.emplace(key, record.identity).first->second;
}

void describe_constant(const c10::IValue& payload, TensorNumbers& numbers,
                       bridge::Value& record) {
  record.known = true;
  record.needs_grad = false;
  if (payload.isTensor()) {
    const auto& tensor = payload.toTensor();
    describe_tensor(tensor, numbers, record);
    record.bakeable = record.strided && !record.needs_grad &&
                      !tensor.is_conj() && !tensor.is_neg();
    record.finite = record.bakeable && tensor.is_floating_point() &&
                    tensor.dim() <= most_dimensions &&
                    at::isfinite(tensor).all().item<bool>();
  } else if (payload.isInt()) {
    record.int_ = payload.toInt();
  } else if (payload.isBool()) {
    record.int_ = payload.toBool() ? 1 : 0;
  } else if (payload.isDouble()) {
    record.float_ = payload.toDouble();
  } else if (payload.isIntList()) {
    fill(record.ints, payload.toIntVector());
  } else {
    record.known = payload.isNone();
  }
}

void describe_list(const jit::Value* value, const Facts& facts,
                   bridge::Value& record) {
  if (record.kind != bridge::ValueKind::Ints ||
      value->node()->kind() != jit::prim::ListConstruct ||
      facts.is_written(value)) {
    return;
  }
  for (const jit::Value* element : value->node()->inputs()) {
    const auto payload = jit::toIValue(element);
    if (!payload || !payload->isInt()) {
      record.ints.clear();
      return;
    }
    record.ints.push_back(payload->toInt());
  }
  record.known = true;
}

void describe_hint(const c10::Type& type, bridge::Value& record) {
  if (type.kind() != c10::TypeKind::TensorType) return;
  const auto sizes = type.expectRef<c10::TensorType>().sizes().concrete_sizes();
  if (!sizes) return;
  record.has_hint = true;
  fill(record.hint, *sizes);
}

}  // namespace hypatia::graph
