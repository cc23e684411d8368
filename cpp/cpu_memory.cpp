#include "cpp/cpu_memory.h"

#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/accumulate.h>

#include <cstdint>
#include <utility>

#include "hypatia/src/bridge/cpu.rs.h"

namespace hypatia::cpu_kernels {
namespace {

// Smaller blocks malloc keeps itself; under larger ones are large pages
// (src/cpu/pages.rs).
constexpr int64_t kFewestBytes = int64_t{64} << 10;
constexpr int64_t kMostBytes = (int64_t{32} << 20) - 1;

void give_back(void* context) {
  const auto* const block = static_cast<bridge::CpuBlock*>(context);
  bridge::cpu_give(*block);
  delete block;
}

// Memory is the default allocator's to give, and nobody counts it.
bool is_ours_to_give(const at::TensorOptions& options) {
  return options.device().is_cpu() &&
         c10::GetCPUAllocator() == c10::GetDefaultCPUAllocator() &&
         !c10::memoryProfilingEnabled();
}

}  // namespace

at::Tensor empty_result(c10::IntArrayRef sizes,
                        const at::TensorOptions& options) {
  const auto itemsize = static_cast<int64_t>(options.dtype().itemsize());
  const int64_t bytes = c10::multiply_integers(sizes) * itemsize;
  if (bytes < kFewestBytes || bytes > kMostBytes || !is_ours_to_give(options)) {
    return at::empty(sizes, options);
  }
  const bridge::CpuBlock block = bridge::cpu_take(static_cast<size_t>(bytes));
  if (block.address == 0) return at::empty(sizes, options);
  auto* const context = new bridge::CpuBlock(block);
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), static_cast<size_t>(bytes),
      c10::DataPtr(reinterpret_cast<void*>(block.address), context, &give_back,
                   c10::Device(c10::DeviceType::CPU)),
      c10::GetCPUAllocator(), /*resizable=*/true);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)),
      c10::DispatchKeySet(c10::DispatchKey::CPU), options.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor;
}

}  // namespace hypatia::cpu_kernels
