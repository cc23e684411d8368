// Tracer key (torch.jit.trace): LibTorch records operators by itself, except
// those with a list of optional tensors. The steps of its generated kernels.
#include <ATen/TracerMode.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/library.h>

#include "cpp/dispatch.h"
#include "cpp/register.h"

namespace hypatia {
namespace {

namespace tracer = torch::jit::tracer;

at::Tensor fused_mlp(const at::Tensor& input, at::TensorList weights,
                     const Biases& biases, bool relu_last) {
  if (!tracer::isTracing()) {
    const at::tracer::impl::NoTracerDispatchMode no_tracer;
    return dispatch::fused_mlp(input, weights, biases, relu_last);
  }
  const auto state = tracer::getTracingState();
  torch::jit::Node* const node = state->createNode(
      c10::Symbol::fromQualString("hypatia::fused_mlp"), /*num_outputs=*/0);
  tracer::recordSourceLocation(node);
  tracer::addInputs(node, "input", input);
  tracer::addInputs(node, "weights", weights);
  tracer::addInputs(node, "biases", biases);
  tracer::addInputs(node, "relu_last", relu_last);
  state->insertNode(node);

  // What runs inside is not part of the trace, which goes on even after an
  // error. Without a state the key is off: no guard, which would forbid to
  // turn it on again.
  struct Pause {
    std::shared_ptr<tracer::TracingState> state;
    ~Pause() { tracer::setTracingState(state); }
  };
  const at::Tensor output = [&] {
    const Pause pause{state};
    tracer::setTracingState(nullptr);
    return dispatch::fused_mlp(input, weights, biases, relu_last);
  }();
  tracer::addOutput(node, output);
  return output;
}

TORCH_LIBRARY_IMPL(hypatia, Tracer, m) {
  if (!registers_operators()) return;
  m.impl("fused_mlp", &fused_mlp);
}

}  // namespace
}  // namespace hypatia
