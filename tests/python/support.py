"""What the tests share beside the oracle: the operators, inputs, subprocesses."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = pathlib.Path(
    os.environ.get("HYPATIA_LIBRARY", ROOT / "target/release/libhypatia.so")
).resolve()

# Costs that are the same on every machine, in subprocesses too.
os.environ.setdefault("HYPATIA_MEASURE", "0")
# Where there is a GPU: nothing of what ran before decides what is tested.
os.environ.setdefault("HYPATIA_PLAN_CACHE", "0")

torch.ops.load_library(str(LIBRARY))

fused = torch.ops.hypatia.fused_linear_relu
fused_backward = torch.ops.hypatia.fused_linear_relu_backward

mlp = torch.ops.hypatia.fused_mlp
mlp_forward = torch.ops.hypatia.fused_mlp_forward
mlp_backward = torch.ops.hypatia.fused_mlp_backward

# The operators by their names in the registry.
FORWARD, BACKWARD, BUILD_INFO = (
    "hypatia::fused_linear_relu",
    "hypatia::fused_linear_relu_backward",
    "hypatia::build_info",
)
MLP, MLP_FORWARD, MLP_BACKWARD = (
    "hypatia::fused_mlp",
    "hypatia::fused_mlp_forward",
    "hypatia::fused_mlp_backward",
)
OPTIMIZE, EXPLAIN = "hypatia::optimize", "hypatia::explain"
OPTIMIZE_FOR, EXPLAIN_FOR = "hypatia::optimize_for", "hypatia::explain_for"


def optimize(module):
    """`module` optimized, as the class that Python users know."""
    return torch.jit._recursive.wrap_cpp_module(torch.ops.hypatia.optimize(module))


def eager(input, weight, bias=None):
    """What users write without us."""
    return torch.relu(F.linear(input, weight, bias))


def eager_mlp(input, weights, biases, relu_last=False):
    """The same for a chain."""
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        input = F.linear(input, weight, bias)
        if relu_last or i + 1 < len(weights):
            input = torch.relu(input)
    return input


class Mlp(torch.nn.Module):
    """A chain; `function` is `mlp` or `eager_mlp`."""

    def __init__(self, widths, function=mlp, bias=True, relu_last=False):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(k, n, bias=bias) for k, n in zip(widths, widths[1:])
        )
        self.function, self.relu_last = function, relu_last

    def forward(self, input):
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        return self.function(input, weights, biases, self.relu_last)


class Layer(torch.nn.Module):
    """One layer; `function` is `fused` or `eager`."""

    def __init__(self, inputs, outputs, function=fused, bias=True):
        super().__init__()
        self.linear = torch.nn.Linear(inputs, outputs, bias=bias)
        self.function = function

    def forward(self, input):
        return self.function(input, self.linear.weight, self.linear.bias)


def rand(*shape, dtype=torch.float32, requires_grad=False):
    """Normal numbers, the same for every dtype up to its rounding."""
    t = torch.randn(shape, dtype=torch.float64).to(dtype)
    return t.requires_grad_(requires_grad)


def operands(leading, k, n, dtype=torch.float32, bias=True, requires_grad=False):
    """input [*leading, K], weight [N, K] and bias [N] or None."""
    how = {"dtype": dtype, "requires_grad": requires_grad}
    return rand(*leading, k, **how), rand(n, k, **how), rand(n, **how) if bias else None


def mlp_operands(leading, widths, dtype=torch.float32, bias=True, requires_grad=False):
    """input [*leading, K], weights and biases of the widths; `bias` "some" for
    one at every other layer. Weights are such that results stay near 1."""
    input = rand(*leading, widths[0], dtype=dtype, requires_grad=requires_grad)
    weights, biases = [], []
    for i, (k, n) in enumerate(zip(widths, widths[1:])):
        weight = (rand(n, k, dtype=torch.float64) * (2 / max(k, 1)) ** 0.5).to(dtype)
        weights.append(weight.requires_grad_(requires_grad))
        with_bias = bias and not (bias == "some" and i % 2)
        biases.append(rand(n, dtype=dtype, requires_grad=requires_grad) if with_bias else None)
    return input, weights, biases


def split(activations, input, weights):
    """The hidden results in what fused_mlp_forward returns beside its output."""
    unit, begin, parts = 256 // activations.element_size(), 0, []
    rows = input.shape[:-1].numel()
    for weight in weights[:-1]:
        begin = -(-begin // unit) * unit
        length = rows * weight.shape[0]
        part = activations[begin : begin + length]
        parts.append(part.view(*input.shape[:-1], weight.shape[0]))
        begin += length
    assert begin == activations.numel()
    return parts


def python(code, *arguments, timeout=120):
    """Runs `code` in a fresh interpreter with `arguments` in sys.argv[1:]."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=pathlib.Path(__file__).parent,
    )


def python_ok(code, *arguments):
    """As `python`; the process must end well and quietly. Returns its stdout."""
    done = python(code, *arguments)
    assert done.returncode == 0, f"status {done.returncode}:\n{done.stderr[-2000:]}"
    assert not done.stderr, done.stderr[-2000:]
    return done.stdout
