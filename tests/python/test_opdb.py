"""PyTorch's own sample inputs for nn.functional.linear, against its result."""

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

from oracle import DTYPES, assert_close, assert_forward, forward_bound, gradient_bounds
from support import eager, fused

(LINEAR,) = [op for op in op_db if op.name == "nn.functional.linear"]


def arguments_of(sample):
    """(input, weight, bias) as keyword arguments."""
    assert not set(sample.kwargs) - {"bias"}, sample
    given = dict(zip(("weight", "bias"), sample.args))
    return {"input": sample.input, **given, **sample.kwargs}


def supported(samples):
    """Those that the Contract has: weight is 2-D. The others are few."""
    every = [arguments_of(sample) for sample in samples]
    chosen = [arguments for arguments in every if arguments["weight"].dim() == 2]
    assert len(chosen) >= 16 and len(every) - len(chosen) <= 4
    return chosen


def detached(arguments):
    return {name: None if t is None else t.detach() for name, t in arguments.items()}


def check(samples):
    for arguments in supported(samples):
        got, want = fused(**arguments), eager(**arguments)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert got.requires_grad == want.requires_grad
        plain = detached(arguments)
        assert_forward(got.detach(), **plain, what=f"{[t.shape for t in plain.values()]}")
        # Eager is within its own bound of the same result.
        bound = forward_bound(**plain) + forward_bound(**plain, bias_apart=True)
        assert_close(got.detach(), want.detach().double(), bound, "eager")


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples(dtype, requires_grad):
    assert dtype in LINEAR.supported_dtypes("cpu")
    check(LINEAR.sample_inputs("cpu", dtype, requires_grad=requires_grad))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_samples(dtype):
    check(LINEAR.reference_inputs("cpu", dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noncontiguous_samples(dtype):
    """PyTorch's own way to make every operand non-contiguous."""
    check(s.noncontiguous() for s in LINEAR.sample_inputs("cpu", dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_samples(dtype):
    for arguments in supported(LINEAR.sample_inputs("cpu", dtype, requires_grad=True)):
        leaves = [t for t in arguments.values() if t is not None and t.requires_grad]
        output = fused(**arguments)
        grad_output = torch.randn_like(output)
        got = torch.autograd.grad(output, leaves, grad_output)
        want = torch.autograd.grad(eager(**arguments), leaves, grad_output)
        input, weight = (arguments[name].detach() for name in ("input", "weight"))
        bounds = gradient_bounds(grad_output, input, weight, output.detach())
        for name, g, w, bound in zip(arguments, got, want, bounds):
            assert_close(g, w.double(), 2 * bound, f"{name} of {input.shape}")


def test_error_samples():
    """What linear must refuse, we must."""
    if LINEAR.error_inputs_func is None:
        pytest.skip("torch 2.11 has no error inputs for linear")
    for error in LINEAR.error_inputs("cpu"):
        with pytest.raises(RuntimeError, match="hypatia::fused_linear_relu: expected "):
            fused(**arguments_of(error.sample_input))
