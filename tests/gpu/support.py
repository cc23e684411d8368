"""Loads the library and the oracle that the CPU suite uses too."""

import os
import pathlib
import sys

import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "target/gpu"  # what `make gpu-bundle` leaves
LIBRARY = pathlib.Path(
    os.environ.get("HYPATIA_LIBRARY")
    or next(
        (p for p in (BUNDLE / "libhypatia.so", ROOT / "target/release/libhypatia.so") if p.exists()),
        "libhypatia.so",
    )
).resolve()

# Nothing of what ran before decides what is tested; test_plan_file.py sets its own.
os.environ.setdefault("HYPATIA_PLAN_CACHE", "0")

sys.path.insert(0, str(ROOT / "tests/python"))
import oracle  # noqa: E402

torch.ops.load_library(str(LIBRARY))
fused = torch.ops.hypatia.fused_linear_relu
fused_backward = torch.ops.hypatia.fused_linear_relu_backward

HALVES = (torch.float16, torch.bfloat16)


def eager(input, weight, bias=None):
    return torch.relu(F.linear(input, weight, bias))


def operands(leading, k, n, dtype, bias=True, device="cuda", requires_grad=False):
    """input [*leading, K], weight [N, K], bias [N] or None; normal numbers."""

    def rand(*shape):
        t = torch.randn(shape, device=device, dtype=torch.float32).to(dtype)
        return t.requires_grad_(requires_grad)

    return rand(*leading, k), rand(n, k), rand(n) if bias else None


def mlp_operands(leading, widths, dtype, bias=True, device="cuda"):
    """input [*leading, K], weights and biases of the widths; `bias` "some" for
    one at every other layer. Weights are such that results stay near 1."""

    def rand(*shape, scale=1.0):
        return (torch.randn(shape, device=device) * scale).to(dtype)

    pairs = list(zip(widths, widths[1:]))
    weights = [rand(n, k, scale=(2 / max(k, 1)) ** 0.5) for k, n in pairs]
    biases = [
        rand(n) if bias and not (bias == "some" and i % 2) else None
        for i, (_, n) in enumerate(pairs)
    ]
    return rand(*leading, widths[0]), weights, biases


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
    return parts


def bound_options(dtype):
    """What the oracle must allow on this device: 16-bit products run on tensor
    cores, which truncate while they accumulate."""
    return {"tensor_cores": dtype in HALVES}


MODES = {  # dtype, whether TF32 is allowed, what the oracle allows
    "bf16": (torch.bfloat16, False, {"tensor_cores": True}),
    "fp16": (torch.float16, False, {"tensor_cores": True}),
    "tf32": (torch.float32, True, {"tf32": True}),
    "fp32": (torch.float32, False, {}),
}


class tf32:
    """Allows TF32 or not, for the time being."""

    def __init__(self, allow):
        self.allow = allow

    def __enter__(self):
        torch.backends.cuda.matmul.allow_tf32 = self.allow

    def __exit__(self, *_):
        torch.backends.cuda.matmul.allow_tf32 = False
