#include "cpp/workspace.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace hypatia {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::pair<int32_t, size_t>, at::Tensor> by_stream;
  std::vector<at::Tensor> outgrown;
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

// Zeros that stay, made by a thread of its own: while LibTorch warms up or
// records a CUDA graph, what this thread allocates goes to the graph's memory,
// where it tolerates nothing that stays.
at::Tensor lasting_zeros(const bridge::Call& call, size_t bytes) {
  const auto options = bytes_on(call);
  const auto make = [&] {
    return at::zeros({static_cast<int64_t>(bytes)}, options);
  };
  const c10::Stream stream =
      c10::impl::VirtualGuardImpl(options.device().type())
          .getStream(options.device());
  at::Tensor made;
  std::exception_ptr error;
  std::thread maker;
  try {
    maker = std::thread([&] {
      try {
        const c10::StreamGuard on_stream(stream);
        made = make();
      } catch (...) {
        error = std::current_exception();
      }
    });
  } catch (const std::system_error&) {
    return make();  // No thread to be had.
  }
  maker.join();
  if (error) std::rethrow_exception(error);
  return made;
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
  const std::pair<int32_t, size_t> key{call.device, call.stream};
  const auto found = all.by_stream.find(key);
  if (found == all.by_stream.end() ||
      static_cast<size_t>(found->second.numel()) < bytes) {
    // Entered only once it exists: the allocation may throw.
    at::Tensor larger = lasting_zeros(call, bytes);
    // Kept: another thread may be about to launch with the smaller one.
    if (found != all.by_stream.end()) all.outgrown.push_back(found->second);
    all.by_stream.insert_or_assign(key, std::move(larger));
  }
  fill_in(call, all.by_stream.at(key), /*is_private=*/false);
}

at::Tensor use_private_workspace(bridge::Call& call, size_t bytes) {
  at::Tensor workspace =
      at::empty({static_cast<int64_t>(bytes)}, bytes_on(call));
  fill_in(call, workspace, /*is_private=*/true);
  return workspace;
}

bool bring_workspace(bridge::Call& call, bridge::Report& report,
                     at::Tensor& lifetime) {
  const size_t bytes = report.workspace_bytes;
  try {
    switch (report.status) {
      case bridge::Status::NeedsStreamWorkspace:
        grow_stream_workspace(call, bytes);
        return true;
      case bridge::Status::NeedsTuningWorkspace:
        grow_stream_workspace(call, bytes);
        lifetime = use_private_workspace(call, bytes);
        return true;
      case bridge::Status::NeedsCallWorkspace:
        lifetime = use_private_workspace(call, bytes);
        return true;
      default:
        return false;
    }
  } catch (const c10::OutOfMemoryError&) {
    report.status = bridge::Status::Refused;
    report.warn = true;
    report.reason = "no memory for " + std::to_string(bytes >> 20) +
                    " MiB of scratch on the device";
    return false;
  }
}

}  // namespace hypatia
