#include "cpp/report.h"

#include <c10/util/Exception.h>

#include <mutex>
#include <set>
#include <string>

namespace hypatia {

bool done(const char* op, const bridge::Report& report) {
  if (report.status == bridge::Status::Done) return true;
  if (report.warn) {
    static std::mutex mutex;
    static auto* const told = new std::set<std::string>;
    const std::string reason(report.reason);
    const std::lock_guard<std::mutex> lock(mutex);
    if (told->insert(reason).second) {
      TORCH_WARN("hypatia::", op,
                 ": expected to run its own CUDA path, got: ", reason,
                 "; ATen computes it instead, slower");
    }
  }
  return false;
}

}  // namespace hypatia
