#include "cpp/threads.h"

#include <ATen/Parallel.h>
#include <c10/util/ParallelGuard.h>
#include <dlfcn.h>

#include <atomic>
#include <exception>

namespace hypatia {
namespace {

// `#pragma omp parallel` as compilers write it; every runtime has this entry.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// That of the runtime which libtorch_cpu itself was linked with.
Parallel find_parallel() {
#if AT_PARALLEL_OPENMP
  void* library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

struct Team {
  const std::function<void()>& work;
  std::atomic<int64_t> wanted;
  std::atomic<bool> failed{false};
  std::exception_ptr error{};
};

void join(void* address) {
  auto& team = *static_cast<Team*>(address);
  if (team.wanted.fetch_sub(1) <= 0) return;
  const c10::ParallelGuard guard(true);
  try {
    team.work();
  } catch (...) {
    if (!team.failed.exchange(true)) team.error = std::current_exception();
  }
}

}  // namespace

size_t threads_at_most() {
  if (at::in_parallel_region()) return 1;
  return static_cast<size_t>(at::get_num_threads());
}

void in_threads(size_t threads, const std::function<void()>& work) {
  static const Parallel parallel = find_parallel();
  if (threads <= 1 || parallel == nullptr || at::in_parallel_region()) {
    work();
    return;
  }
  Team team{work, static_cast<int64_t>(threads)};
  // Always the whole team: libgomp ends and starts threads where sizes change.
  parallel(join, &team, 0, 0);
  if (team.error) std::rethrow_exception(team.error);
}

}  // namespace hypatia
