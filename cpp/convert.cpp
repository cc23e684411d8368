#include "cpp/convert.h"

#include <ATen/Context.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <torch/version.h>

namespace hypatia {
namespace {

// The common stride of all leading dimensions, if there is one.
std::optional<int64_t> row_stride(const at::Tensor& t) {
  int64_t stride = 0;
  int64_t rows = 1;  // rows seen so far, from the innermost leading dimension
  for (int64_t dim = t.dim() - 2; dim >= 0; --dim) {
    const int64_t size = t.size(dim);
    if (size == 1) continue;
    if (rows == 1) {
      stride = t.stride(dim);
    } else if (t.stride(dim) != stride * rows) {
      return std::nullopt;
    }
    rows *= size;
  }
  return stride;
}

// LibTorch's current stream, without a CUDA header or library to link.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 11
std::optional<size_t> current_stream(c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return reinterpret_cast<size_t>(guard.getStream(device).native_handle());
}
#else  // 2.10 has no c10::Stream::native_handle
std::optional<size_t> current_stream(c10::Device device) {
  using Get = int32_t (*)(int32_t, void**);
  static const auto get = [] {
    void* cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* found =
        cuda ? dlsym(cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Get>(found);
  }();
  void* stream = nullptr;
  if (get == nullptr || get(device.index(), &stream) != 0) return std::nullopt;
  return reinterpret_cast<size_t>(stream);
}
#endif

bool has_unit_stride(const bridge::Matrix& m) {
  const bool by_rows = (m.col_stride == 1 || m.cols == 1) &&
                       (m.row_stride >= m.cols || m.rows == 1);
  const bool by_cols = (m.row_stride == 1 || m.rows == 1) &&
                       (m.col_stride >= m.rows || m.cols == 1);
  return by_rows || by_cols;
}

}  // namespace

size_t address(const at::Tensor& t) {
  return reinterpret_cast<size_t>(t.const_data_ptr());
}

MatrixView as_matrix(const at::Tensor& t, bool any_strides) {
  const int64_t cols = t.size(-1);
  const int64_t rows = cols == 0 ? 0 : t.numel() / cols;
  if (const auto stride = row_stride(t)) {
    const bridge::Matrix matrix{address(t), rows, cols, *stride, t.stride(-1)};
    if (any_strides || has_unit_stride(matrix)) {
      return {t, matrix};
    }
  }
  const at::Tensor dense = t.clone(at::MemoryFormat::Contiguous);
  return {dense, {address(dense), rows, cols, cols, 1}};
}

std::optional<bridge::Call> make_call(const at::Tensor& input) {
  bridge::Call call{};
  const auto& context = at::globalContext();
  const auto may_split_k = [](at::CuBLASReductionOption option) {
    using Option = at::CuBLASReductionOption;
    return option != Option::DisallowReducedPrecisionDisallowSplitK;
  };
  call.allow_split_k = true;
  switch (input.scalar_type()) {
    case at::kFloat:
      call.dtype = bridge::Dtype::F32;
      call.allow_tf32 = context.allowTF32CuBLAS();
      break;
    case at::kHalf:
      call.dtype = bridge::Dtype::F16;
      call.allow_fp16_accumulation = context.allowFP16AccumulationCuBLAS();
      call.allow_split_k = may_split_k(context.allowFP16ReductionCuBLAS());
      break;
    case at::kBFloat16:
      call.dtype = bridge::Dtype::Bf16;
      call.allow_split_k = may_split_k(context.allowBF16ReductionCuBLAS());
      break;
    default:
      return std::nullopt;
  }
  call.deterministic = context.deterministicAlgorithms();
  const c10::Device device = input.device();
  call.device = device.index();
  const auto stream = current_stream(device);
  if (!stream) return std::nullopt;
  call.stream = *stream;
  return call;
}

}  // namespace hypatia
