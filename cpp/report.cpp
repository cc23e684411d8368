#include "cpp/report.h"

#include <c10/util/Exception.h>

#include <mutex>
#include <set>
#include <string>

namespace hypatia {

namespace {

void warn_once(const char* op, const bridge::Report& report, const char* wanted,
               const char* instead) {
  static std::mutex mutex;
  static auto* const told = new std::set<std::string>;
  const std::string reason(report.reason);
  const std::lock_guard<std::mutex> lock(mutex);
  if (told->insert(reason).second) {
    TORCH_WARN("hypatia::", op, ": expected to run ", wanted, ", got: ", reason,
               "; ", instead, ", slower");
  }
}

}  // namespace

bool done(const char* op, const bridge::Report& report) {
  if (report.status == bridge::Status::Done) {
    if (report.warn) {
      TORCH_WARN("hypatia::", op, ": ", std::string(report.reason));
    }
    return true;
  }
  if (report.warn) {
    warn_once(op, report, "its own CUDA path", "ATen computes it instead");
  }
  return false;
}

void warn_layer_by_layer(const char* op, const bridge::Report& report) {
  if (report.warn) {
    warn_once(op, report, "in one launch", "its layers run one by one");
  }
}

}  // namespace hypatia
