// cpu_only LIBRARY...: opens the libraries in turn in a program that has
// libtorch_cpu and libc10 only, as with a CPU-only LibTorch. After the first,
// after the last, and after closing them all, the operator must be right.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <dlfcn.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

bool right() {
  const auto x = at::randn({5, 7});
  const auto w = at::randn({4, 7});
  const auto b = at::randn({4});
  const auto y = c10::Dispatcher::singleton()
                     .findSchemaOrThrow("hypatia::fused_linear_relu", "")
                     .typed<at::Tensor(const at::Tensor&, const at::Tensor&,
                                       const std::optional<at::Tensor>&)>()
                     .call(x, w, b);
  return at::allclose(y, at::relu(at::linear(x, w, b)), 1e-4, 1e-5);
}

bool mapped(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(name) != std::string::npos) return true;
  }
  return false;
}

int fail(const std::string& what) {
  std::cout << "cpu_only: failed: " << what << std::endl;
  return 1;
}

}  // namespace

int main(int argc, char** argv) try {
  if (!mapped("/libtorch_cpu.so")) return fail("LibTorch shows in the maps");
  std::vector<void*> handles;
  for (int i = 1; i < argc; ++i) {
    handles.push_back(dlopen(argv[i], RTLD_NOW));
    if (handles.back() == nullptr) return fail(dlerror());
    if (!mapped(argv[i])) return fail(std::string(argv[i]) + " is mapped");
    if (!right()) return fail(std::string("right after ") + argv[i]);
  }
  for (void* handle : handles) {
    if (dlclose(handle) != 0) return fail(dlerror());
  }
  if (!right()) return fail("right after dlclose");
  // The last word: by now everything that opens at run time is open.
  if (mapped("libtorch_cuda")) return fail("libtorch_cuda is not mapped");
  return 0;
} catch (const std::exception& error) {
  return fail(error.what());
}
