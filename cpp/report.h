// What a CUDA kernel does with the bridge's answer.
#pragma once

#include "hypatia/src/bridge.rs.h"

namespace hypatia {

// True if the work is done, with a warning if the report has one. Otherwise
// ATen's turn: silently where that is by design, with one warning a reason
// where something is missing or failed.
bool done(const char* op, const bridge::Report& report);

// What should be known of a report that asks for memory for hidden results.
void warn_layer_by_layer(const char* op, const bridge::Report& report);

}  // namespace hypatia
