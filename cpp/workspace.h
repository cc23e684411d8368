// Scratch memory for the CUDA path, from LibTorch's caching allocator: one per
// (device, stream), kept for the life of the process, or one for a single call.
#pragma once

#include <ATen/core/Tensor.h>

#include "hypatia/src/bridge.rs.h"

namespace hypatia {

// Calls `run(call)` and brings the workspace it asks for, if any. `run`
// returns the bridge's Report; the last one is returned. Without memory for a
// workspace the report is a refusal: ATen may need none.
template <typename Run>
bridge::Report with_workspace(bridge::Call& call, const Run& run);

// Fills in the workspace that the call's stream already has.
void use_stream_workspace(bridge::Call& call);

// Makes the stream's workspace at least `bytes` large (zeroed), fills it in.
void grow_stream_workspace(bridge::Call& call, size_t bytes);

// Fills in one that lives as long as the returned tensor.
at::Tensor use_private_workspace(bridge::Call& call, size_t bytes);

// Brings what `report` asks for; `lifetime` holds what is for this call alone.
// False without the memory for it, with `report` turned into a refusal.
bool bring_workspace(bridge::Call& call, bridge::Report& report,
                     at::Tensor& lifetime);

template <typename Run>
bridge::Report with_workspace(bridge::Call& call, const Run& run) {
  use_stream_workspace(call);
  bridge::Report report = run(call);
  at::Tensor lifetime;
  // A tuning call may be followed by one for the stream's own workspace.
  for (int tries = 0; tries < 3 && bring_workspace(call, report, lifetime);
       ++tries) {
    report = run(call);
  }
  return report;
}

}  // namespace hypatia
