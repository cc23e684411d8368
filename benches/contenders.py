"""Who computes an MLP in the benchmark, and how.

A forward function takes `(x, parameters)`, `parameters` a list of
`(weight [N, K], bias [N])`, and returns the last layer's result.
"""

import importlib.util

import torch

import models

EAGER = models.hidden_then_linear(models.eager_layer)

# Ours and what comes with PyTorch; `act` has no derivative.
FORWARDS = {
    "eager": EAGER,
    "act": models.hidden_then_linear(models.act_layer),
    "single": models.hidden_then_linear(models.fused_layer),
    "mlp": models.whole_mlp,
}
# Asked for with --against: they compile for seconds to minutes a model.
COMPILED = {"compile": "default", "autotune": "max-autotune"}
# They make graphs by themselves, or have none.
WALL_ONLY = ["autotune", "jax"]
# What PyTorch has for the CPU's inference: weights that are constants.
FROZEN = ["frozen", "jit", "onednn"]
OTHERS = [*COMPILED, "jax", *FROZEN]
INFERENCE_ONLY = ["act", *FROZEN]
# Our forward and backward operators without the autograd engine.
TRAINING_ONLY = ["ops"]


def forward_of(name, inputs):
    """The forward function of a contender."""
    if name not in COMPILED:
        return FORWARDS[name]
    torch._dynamo.reset()
    # As a module's: its graphs then read them where they are.
    for x, parameters, _ in inputs:
        for t in models.leaves(x, parameters)[1:]:
            torch._dynamo.mark_static_address(t)
    return torch.compile(EAGER, mode=COMPILED[name])


def inference(name, inputs):
    """Calls for `inputs`, a list of (x, parameters, grad_output)."""
    if name == "jax":
        return jax_calls(inputs, training=False)
    if name in FROZEN:
        return [frozen_call(name, x, p) for x, p, _ in inputs]
    forward = forward_of(name, inputs)
    return [lambda x=x, p=p: forward(x, p) for x, p, _ in inputs]


def training(name, inputs):
    """Calls of forward and backward: gradients of the input and of every
    parameter."""
    if name == "jax":
        return jax_calls(inputs, training=True)
    if name == "ops":
        return [lambda i=i: without_autograd(*i) for i in inputs]
    forward = forward_of(name, inputs)

    def call(x, parameters, grad_output):
        leaves = models.leaves(x, parameters)
        return torch.autograd.grad(forward(x, parameters), leaves, grad_output)

    return [lambda i=i: call(*i) for i in inputs]


@torch.no_grad()
def without_autograd(x, parameters, grad_output):
    weights, biases = [w for w, _ in parameters], [b for _, b in parameters]
    _, activations = torch.ops.hypatia.fused_mlp_forward(x, weights, biases)
    wanted = [True] * (1 + len(weights)) + [b is not None for b in biases]
    return torch.ops.hypatia.fused_mlp_backward(grad_output, x, weights, activations, None, wanted)


def module_of(parameters):
    """The MLP as a module in evaluation mode."""
    modules = []
    for w, b in parameters:
        layer = torch.nn.Linear(*reversed(w.shape), bias=b is not None, dtype=w.dtype)
        layer.weight = torch.nn.Parameter(w, requires_grad=False)
        if b is not None:
            layer.bias = torch.nn.Parameter(b, requires_grad=False)
        modules += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1]).eval()


def frozen_call(name, x, parameters):
    """torch.compile with freezing, `optimize_for_inference`, or oneDNN's own linear +
    ReLU on weights that it packed."""
    if name == "frozen":
        import torch._inductor.config as inductor

        torch._dynamo.reset()
        compiled = torch.compile(module_of(parameters))
        with inductor.patch(freezing=True):
            compiled(x)
        return lambda: compiled(x)
    if name == "jit":
        traced = torch.jit.trace(module_of(parameters), x)
        optimized = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        return lambda: optimized(x)
    mkldnn = torch.ops.mkldnn
    packed = [(mkldnn._reorder_linear_weight(w, x.shape[0]), b) for w, b in parameters]

    def call():
        h = x
        for w, b in packed[:-1]:
            h = mkldnn._linear_pointwise(h, w, b, "relu", [], "")
        return mkldnn._linear_pointwise(h, *packed[-1], "none", [], "")

    return call


def has_jax():
    return importlib.util.find_spec("jax") is not None


def jax_calls(inputs, training):
    """The same with jax.jit, dispatched asynchronously as the others are."""
    import jax

    def linear(x, w, b):
        return x @ w.T if b is None else x @ w.T + b

    def forward(x, parameters):
        for w, b in parameters[:-1]:
            x = jax.nn.relu(linear(x, w, b))
        return linear(x, *parameters[-1])

    def of_torch(t):
        return jax.dlpack.from_dlpack(t.detach().contiguous())

    step = jax.jit(forward)
    if training:

        def gradients(x, parameters, grad_output):
            _, back = jax.vjp(forward, x, parameters)
            return back(grad_output)

        step = jax.jit(gradients)
    # As PyTorch's switch: strict fp32, TF32, or 16 bits.
    dtype = inputs[0][0].dtype
    strict = dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    jax.config.update("jax_default_matmul_precision", "highest" if strict else "default")
    calls = []
    for x, parameters, grad_output in inputs:
        arguments = [of_torch(x), [(of_torch(w), b if b is None else of_torch(b)) for w, b in parameters]]
        if training:
            arguments.append(of_torch(grad_output))
        calls.append(lambda a=arguments: step(*a))
    return calls
