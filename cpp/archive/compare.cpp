#include <ATen/Functions.h>

#include <limits>
#include <optional>
#include <sstream>

#include "cpp/archive/archive.h"
#include "hypatia/src/bridge/archive.rs.h"

namespace hypatia::bridge {
namespace {

using c10::IValue;

std::string indices(int64_t flat, c10::IntArrayRef shape) {
  std::vector<int64_t> index(shape.size());
  for (size_t i = shape.size(); i-- > 0;) {
    index[i] = flat % shape[i];
    flat /= shape[i];
  }
  std::string text;
  for (const auto i : index) {
    text += (text.empty() ? "" : ", ") + std::to_string(i);
  }
  return "[" + text + "]";
}

class Comparer {
 public:
  rust::Vec<Comparison> found;

  void compare(const IValue& a, const IValue& b, const std::string& path) {
    if (a.tagKind() != b.tagKind()) {
      differ(path, a.tagKind(), b.tagKind());
    } else if (a.isTensor()) {
      tensors(a.toTensor(), b.toTensor(), path);
    } else if (a.isTuple()) {
      sequences(a.toTupleRef().elements().vec(),
                b.toTupleRef().elements().vec(), path);
    } else if (a.isList()) {
      sequences(a.toList().vec(), b.toList().vec(), path);
    } else if (a.isGenericDict()) {
      dicts(a.toGenericDict(), b.toGenericDict(), path);
    } else if (a.isObject()) {
      sequences(a.toObjectRef().slots(), b.toObjectRef().slots(), path);
    } else if (a.isDouble()) {
      // Most often some tensor's item, and fp32 as such.
      tensors(at::scalar_tensor(a.toDouble(), at::kDouble),
              at::scalar_tensor(b.toDouble(), at::kDouble), path, at::kFloat);
    } else {
      auto entry = start(path, a.tagKind(), 1);
      if (a != b) entry.mismatch = rust::String::lossy(text(b));
      found.push_back(std::move(entry));
    }
  }

 private:
  static Comparison start(const std::string& path, const std::string& what,
                          int64_t elements) {
    Comparison entry{};
    entry.path = rust::String::lossy(path);
    entry.what = rust::String::lossy(what);
    entry.elements = elements;
    return entry;
  }

  static std::string text(const IValue& value) {
    if (value.isString()) return "'" + value.toStringRef() + "'";
    std::ostringstream out;
    out << value;
    return out.str();
  }

  void differ(const std::string& path, const std::string& expected,
              const std::string& got) {
    auto entry = start(path, expected, 0);
    entry.mismatch = rust::String::lossy(got);
    found.push_back(std::move(entry));
  }

  template <typename Values>
  void sequences(const Values& a, const Values& b, const std::string& path) {
    if (a.size() != b.size()) {
      return differ(path, std::to_string(a.size()) + " elements",
                    std::to_string(b.size()));
    }
    for (size_t i = 0; i < a.size(); ++i) {
      compare(a[i], b[i], path + "[" + std::to_string(i) + "]");
    }
  }

  void dicts(const c10::Dict<IValue, IValue>& a,
             const c10::Dict<IValue, IValue>& b, const std::string& path) {
    if (a.size() != b.size()) {
      return differ(path, std::to_string(a.size()) + " keys",
                    std::to_string(b.size()));
    }
    for (const auto& entry : a) {
      const auto inner = path + "[" + text(entry.key()) + "]";
      const auto other = b.find(entry.key());
      if (other == b.end()) {
        differ(inner, "this key", "none");
      } else {
        compare(entry.value(), other->value(), inner);
      }
    }
  }

  static std::string kind(const at::Tensor& tensor) {
    std::ostringstream out;
    out << tensor.scalar_type() << tensor.sizes();
    if (tensor.layout() != at::kStrided) out << " " << tensor.layout();
    return out.str();
  }

  // As doubles on the CPU; a complex number is two of them.
  static at::Tensor plain(at::Tensor tensor) {
    if (tensor.is_quantized()) tensor = tensor.dequantize();
    if (tensor.layout() != at::kStrided) tensor = tensor.to_dense();
    if (tensor.is_complex()) tensor = at::view_as_real(tensor.resolve_conj());
    return tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  }

  void tensors(const at::Tensor& a, const at::Tensor& b,
               const std::string& path,
               std::optional<c10::ScalarType> dtype = std::nullopt) {
    if (!a.defined() || !b.defined()) {
      if (a.defined() != b.defined()) differ(path, "a tensor", "none");
      return;
    }
    if (kind(a) != kind(b)) return differ(path, kind(a), kind(b));
    auto entry =
        start(path, c10::toString(dtype.value_or(a.scalar_type())), a.numel());
    if (a.numel() > 0) measure(plain(a), plain(b), entry);
    found.push_back(std::move(entry));
  }

  static void measure(const at::Tensor& a, const at::Tensor& b,
                      Comparison& entry) {
    const auto infinity = std::numeric_limits<double>::infinity();
    const auto zero = at::zeros({}, at::kDouble);
    const auto same = a.eq(b).logical_or(a.isnan().logical_and(b.isnan()));
    // A NaN that only one has is as far away as an infinity.
    const auto difference = at::where(
        same, zero, a.sub(b).abs().nan_to_num(infinity, infinity, infinity));
    const auto size = a.abs();
    const auto scale = at::where(size.isfinite(), size, zero).max();
    const auto over = [&](const at::Tensor& by) {
      return at::where(same, zero, difference.div(by))
          .nan_to_num(infinity, infinity, infinity);
    };
    const auto relative = over(size);
    const auto place = [&](const at::Tensor& values, double& largest,
                           rust::String& where) {
      const auto flat = values.flatten();
      const auto index = flat.argmax().item<int64_t>();
      largest = flat[index].item<double>();
      where = indices(index, a.sizes());
    };
    place(difference, entry.max_abs, entry.abs_at);
    place(relative, entry.max_rel, entry.rel_at);
    place(over(size.add(scale)), entry.worst, entry.worst_at);
  }
};

}  // namespace

rust::Vec<Comparison> compare_outputs(const Outputs& original,
                                      const Outputs& candidate) {
  Comparer comparer;
  comparer.compare(original.value, candidate.value, "output");
  return std::move(comparer.found);
}

}  // namespace hypatia::bridge
