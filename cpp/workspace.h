// Scratch memory for the CUDA path, from LibTorch's caching allocator: one per
// (device, stream), kept for the life of the process, or one for a single call.
#pragma once

#include <ATen/core/Tensor.h>

#include "hypatia/src/bridge.rs.h"

namespace hypatia {

// Calls `run(call)` and brings the workspace it asks for, if any. `run`
// returns the bridge's Report; the last one is returned.
template <typename Run>
bridge::Report with_workspace(bridge::Call& call, const Run& run);

// Fills in the workspace that the call's stream already has.
void use_stream_workspace(bridge::Call& call);

// Makes the stream's workspace at least `bytes` large (zeroed), fills it in.
void grow_stream_workspace(bridge::Call& call, size_t bytes);

// Fills in one that lives as long as the returned tensor.
at::Tensor use_private_workspace(bridge::Call& call, size_t bytes);

template <typename Run>
bridge::Report with_workspace(bridge::Call& call, const Run& run) {
  use_stream_workspace(call);
  bridge::Report report = run(call);
  // A tuning call may be followed by one for the stream's own workspace.
  at::Tensor private_workspace;
  for (int tries = 0; tries < 3; ++tries) {
    switch (report.status) {
      case bridge::Status::NeedsStreamWorkspace:
        grow_stream_workspace(call, report.workspace_bytes);
        break;
      case bridge::Status::NeedsTuningWorkspace:
        grow_stream_workspace(call, report.workspace_bytes);
        private_workspace = use_private_workspace(call, report.workspace_bytes);
        break;
      case bridge::Status::NeedsCaptureWorkspace:
        private_workspace = use_private_workspace(call, report.workspace_bytes);
        break;
      default:
        return report;
    }
    report = run(call);
  }
  return report;
}

}  // namespace hypatia
