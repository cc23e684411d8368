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

torch.ops.load_library(str(LIBRARY))

fused = torch.ops.hypatia.fused_linear_relu
fused_backward = torch.ops.hypatia.fused_linear_relu_backward

# The operators by their names in the registry.
FORWARD, BACKWARD, BUILD_INFO = (
    "hypatia::fused_linear_relu",
    "hypatia::fused_linear_relu_backward",
    "hypatia::build_info",
)
OPTIMIZE, EXPLAIN = "hypatia::optimize", "hypatia::explain"


def optimize(module):
    """`module` optimized, as the class that Python users know."""
    return torch.jit._recursive.wrap_cpp_module(torch.ops.hypatia.optimize(module))


def eager(input, weight, bias=None):
    """What users write without us."""
    return torch.relu(F.linear(input, weight, bias))


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
