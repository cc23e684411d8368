#include "cpp/workspace.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <map>
#include <mutex>
#include <utility>

namespace hypatia {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::pair<int32_t, size_t>, at::Tensor> by_stream;
};

Registry& registry() {
  // Never destroyed: at exit CUDA may be gone before static objects are.
  static auto* const instance = new Registry;
  return *instance;
}

at::TensorOptions bytes_on(const bridge::Call& call) {
  return at::TensorOptions()
      .dtype(at::kByte)
      .device(c10::Device(c10::DeviceType::CUDA,
                          static_cast<c10::DeviceIndex>(call.device)))
      .requires_grad(false);
}

void fill_in(bridge::Call& call, const at::Tensor& workspace, bool is_private) {
  call.workspace = reinterpret_cast<size_t>(workspace.const_data_ptr());
  call.workspace_bytes = static_cast<size_t>(workspace.numel());
  call.workspace_private = is_private;
}

}  // namespace

void use_stream_workspace(bridge::Call& call) {
  auto& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.by_stream.find({call.device, call.stream});
  if (found != all.by_stream.end()) {
    fill_in(call, found->second, /*is_private=*/false);
  }
}

void grow_stream_workspace(bridge::Call& call, size_t bytes) {
  auto& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  at::Tensor& workspace = all.by_stream[{call.device, call.stream}];
  if (!workspace.defined() || static_cast<size_t>(workspace.numel()) < bytes) {
    // A smaller one goes back to the allocator, which reuses it only behind
    // the work that this stream already has.
    workspace = at::zeros({static_cast<int64_t>(bytes)}, bytes_on(call));
  }
  fill_in(call, workspace, /*is_private=*/false);
}

at::Tensor use_private_workspace(bridge::Call& call, size_t bytes) {
  at::Tensor workspace =
      at::empty({static_cast<int64_t>(bytes)}, bytes_on(call));
  fill_in(call, workspace, /*is_private=*/true);
  return workspace;
}

}  // namespace hypatia
