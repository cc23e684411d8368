#include "cpp/gradients.h"

#include <ATen/ops/empty.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/accumulate.h>

#include "cpp/cpu_memory.h"
#include "cpp/mlp.h"

namespace hypatia {
namespace {

// Whoever keeps one gradient keeps all of them: no more memory than this. On
// the CPU malloc gives larger blocks back to the system, at a page fault for
// every 4 KiB of the next step (160 to 1,400 with 8 MiB).
constexpr int64_t kSharedBytes = int64_t{8} << 20;
constexpr int64_t kSharedBytesCpu = int64_t{64} << 10;

thread_local int sharing = 0;

// A dense tensor in `whole`'s storage that is no view: with a version counter
// of its own.
at::Tensor part(const at::Tensor& whole, int64_t offset,
                c10::IntArrayRef sizes) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(whole.storage()), whole.key_set(), whole.dtype());
  tensor.unsafeGetTensorImpl()->set_storage_offset(offset);
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor;
}

}  // namespace

SharedGradients::SharedGradients() { ++sharing; }
SharedGradients::~SharedGradients() { --sharing; }

std::vector<at::Tensor> empty_gradients(
    const std::vector<c10::IntArrayRef>& sizes, const std::vector<bool>& wanted,
    const at::TensorOptions& options) {
  const auto itemsize = static_cast<int64_t>(options.dtype().itemsize());
  std::vector<int64_t> offsets(sizes.size());
  int64_t total = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (!wanted[i]) continue;
    offsets[i] = aligned_elements(total, itemsize).expect_int();
    total = offsets[i] + c10::multiply_integers(sizes[i]);
  }
  const int64_t most =
      options.device().is_cpu() ? kSharedBytesCpu : kSharedBytes;
  const bool shared = sharing > 0 && total * itemsize <= most;
  const at::Tensor whole = shared ? at::empty({total}, options) : at::Tensor();
  std::vector<at::Tensor> gradients(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (!wanted[i]) continue;
    gradients[i] = shared ? part(whole, offsets[i], sizes[i])
                          : cpu_kernels::empty_result(sizes[i], options);
  }
  return gradients;
}

}  // namespace hypatia
