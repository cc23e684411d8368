#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "cpp/archive/archive.h"
#include "hypatia/src/bridge/archive.rs.h"

namespace hypatia::bridge {
namespace {

constexpr uint64_t kSeed = 20240229;

c10::Device device_of(const torch::jit::Module& module) {
  for (const auto& tensor : module.parameters()) return tensor.device();
  for (const auto& tensor : module.buffers()) return tensor.device();
  return at::kCPU;
}

at::Tensor random_tensor(const Input& input, c10::Device device) {
  const std::vector<int64_t> shape(input.shape.begin(), input.shape.end());
  const auto dtype = static_cast<c10::ScalarType>(input.dtype);
  // Made on the CPU, so that a device does not change the values.
  const auto values =
      at::isFloatingType(dtype) || at::isComplexType(dtype)
          ? at::randn(shape, at::isComplexType(dtype) ? dtype : at::kDouble)
          : at::randint(dtype == at::kBool ? 2 : input.limit, shape, at::kLong);
  return values.to(device, dtype);
}

}  // namespace

std::unique_ptr<Outputs> run_archive(const Archive& archive,
                                     const rust::Vec<Input>& inputs) {
  const at::NoGradGuard no_grad;
  const auto device = device_of(archive.module);
  at::manual_seed(kSeed);
  std::vector<c10::IValue> positional;
  torch::jit::Kwargs named;
  for (const auto& input : inputs) {
    c10::IValue value;
    switch (input.kind) {
      case InputKind::Tensor:
        value = random_tensor(input, device);
        break;
      case InputKind::Int:
        value = input.whole;
        break;
      case InputKind::Float:
        value = input.real;
        break;
      case InputKind::Bool:
        value = input.whole != 0;
        break;
      case InputKind::None:
        break;
      default:
        continue;  // Its default stands.
    }
    named.emplace(std::string(input.name), std::move(value));
  }
  // Dropout in a model left in training draws the same mask at every call.
  at::manual_seed(kSeed);
  auto module = archive.module;
  return std::make_unique<Outputs>(
      Outputs{module.get_method("forward")(std::move(positional), named)});
}

}  // namespace hypatia::bridge
