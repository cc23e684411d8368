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

using ThreadNumber = int (*)();

// Those of the runtime which libtorch_cpu itself was linked with.
struct Runtime {
  Parallel parallel = nullptr;
  ThreadNumber number = nullptr;

  Runtime() {
#if AT_PARALLEL_OPENMP
    void* library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
    if (library == nullptr) return;
    parallel = reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel"));
    number =
        reinterpret_cast<ThreadNumber>(dlsym(library, "omp_get_thread_num"));
#endif
  }

  bool found() const { return parallel != nullptr && number != nullptr; }
};

const Runtime& runtime() {
  static const Runtime found;
  return found;
}

struct Team {
  const std::function<void(size_t)>& work;
  size_t wanted;
  std::atomic<bool> failed{false};
  std::exception_ptr error{};
};

void join(void* address) {
  auto& team = *static_cast<Team*>(address);
  const auto me = static_cast<size_t>(runtime().number());
  if (me >= team.wanted) return;
  const c10::ParallelGuard guard(true);
  try {
    team.work(me);
  } catch (...) {
    if (!team.failed.exchange(true)) team.error = std::current_exception();
  }
}

}  // namespace

size_t threads_at_most() {
  if (at::in_parallel_region()) return 1;
  return static_cast<size_t>(at::get_num_threads());
}

void in_threads(size_t threads, const std::function<void(size_t)>& work) {
  if (threads <= 1 || !runtime().found() || at::in_parallel_region()) {
    work(0);
    return;
  }
  Team team{work, threads};
  // Always the whole team: libgomp ends and starts threads where sizes change.
  runtime().parallel(join, &team, 0, 0);
  if (team.error) std::rethrow_exception(team.error);
}

}  // namespace hypatia
