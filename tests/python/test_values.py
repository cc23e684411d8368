"""NaN, infinities, signed zeros, denormals and overflow.

The Contract: as eager, or nearer to the exact result. K = 1 makes every pair
of special operands one product, so the tables below are complete.
"""

import math

import pytest
import torch

from oracle import (
    DTYPES,
    SMALLEST_SUBNORMAL,
    assert_forward,
    assert_gradients,
    excess,
    forward_bound,
    gradient_bounds,
    reference,
    reference_gradients,
)
from support import eager, fused, fused_backward, operands, rand


def specials(dtype):
    info = torch.finfo(dtype)
    positive = [
        0.0,
        SMALLEST_SUBNORMAL[dtype],
        info.tiny / 2,
        info.tiny,
        1.0,
        3.0,
        math.sqrt(info.max),
        info.max,
        math.inf,
    ]
    values = positive + [-value for value in positive] + [math.nan]
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def assert_as_eager_or_nearer(got, eager_result, want, bound, what=""):
    """Each element is within the oracle's bound, or what eager has there."""
    got64, eager64 = got.double(), eager_result.double()
    as_eager = (got64 == eager64) | (got64.isnan() & eager64.isnan())
    nearer = (got64 - want).abs() <= (eager64 - want).abs()
    wrong = (excess(got, want, bound) > 1) & ~as_eager & ~nearer
    assert not wrong.any(), f"{what}: {got[wrong]}, eager has {eager_result[wrong]}"
    # Minus zero comes out at most where eager has it.
    minus_zero = (got == 0) & got.signbit()
    assert not (minus_zero & ~eager_result.signbit()).any(), what


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_triple_of_specials(dtype):
    values = specials(dtype)
    input, weight = values[:, None], values[:, None]
    for value in values:
        bias = value.expand(len(values)).clone()
        arguments = (input, weight, bias)
        assert_as_eager_or_nearer(
            fused(*arguments),
            eager(*arguments),
            reference(*arguments),
            forward_bound(*arguments),
            f"bias {value.item()}",
        )


@pytest.mark.parametrize("where", ["input", "weight", "bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_special_among_ordinary_values(dtype, where):
    """It reaches its row or column, and nothing else, past any vector width."""
    for value in specials(dtype):
        if not value.isfinite():
            for place in [0, 7, 16]:
                arguments = dict(zip(("input", "weight", "bias"), operands((17,), 17, 17, dtype)))
                flat = arguments[where].view(-1)
                flat[place * (flat.numel() // 17)] = value
                got = fused(**arguments)
                assert_forward(got, **arguments, what=f"{where}[{place}] = {value}")
                want = eager(**arguments)
                assert torch.equal(got.isnan(), want.isnan())
                assert torch.equal(got.isinf(), want.isinf())
                touched = ~want.isfinite()
                assert touched.sum() <= 17


def test_nan_passes():
    nan = torch.tensor([math.nan])
    assert fused(nan, torch.ones(1, 1)).isnan().all()
    assert fused(torch.ones(1), nan[None]).isnan().all()
    assert fused(torch.ones(1), torch.ones(1, 1), nan).isnan().all()
    # 0 · ∞ and ∞ - ∞ are NaN before the ReLU.
    infinity = torch.tensor([math.inf])
    assert fused(torch.zeros(1), infinity[None]).isnan().all()
    assert fused(infinity, torch.ones(1, 1), -infinity).isnan().all()
    assert fused(-infinity, torch.ones(1, 1)).item() == 0


def test_partial_sums_may_pass_the_largest_half():
    """Half's sums are kept in fp32, where they fit."""
    input = torch.tensor([[200.0] * 8 + [-200.0] * 7], dtype=torch.half)
    weight = torch.full((3, 15), 200.0, dtype=torch.half)
    bias = torch.tensor([0.0, 30000.0, -40000.0], dtype=torch.half)
    assert_forward(fused(input, weight, bias), input, weight, bias)
    grad_output, output = torch.full((1, 3), 200.0).half(), torch.ones(1, 3).half()
    weight = torch.tensor([[300.0], [300.0], [-500.0]], dtype=torch.half)
    arguments = (grad_output, input[:, :1], weight, output)
    assert_gradients(fused_backward(*arguments, [1, 1, 1]), *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_mask(dtype):
    """Every gradient under every output: threshold_backward's bits."""
    values = specials(dtype)
    n = len(values)
    grad_output = values.repeat_interleave(n)[None]
    output = values.repeat(n)[None]
    input, weight = rand(1, 3, dtype=dtype), rand(n * n, 3, dtype=dtype)
    _, _, got = fused_backward(grad_output, input, weight, output, [0, 0, 1])
    want = torch.where(output <= 0, 0, grad_output)[0]
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(nan=0.0), want.nan_to_num(nan=0.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_specials(dtype):
    values = specials(dtype)
    grad_output, input = values[:, None], rand(len(values), 1, dtype=dtype)
    output = torch.ones_like(grad_output)
    for value in values:
        weight = value.view(1, 1)
        arguments = (grad_output, input, weight, output)
        grad_input, _, _ = fused_backward(*arguments, [1, 0, 0])
        assert_as_eager_or_nearer(
            grad_input,
            grad_output @ weight,
            reference_gradients(*arguments)[0],
            gradient_bounds(*arguments)[0],
            f"weight {value.item()}",
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_where_the_output_is_nan(dtype):
    """As through eager's relu: the same gradients are NaN, the rest are right."""
    input, weight, bias = operands((5,), 6, 7, dtype, requires_grad=True)
    with torch.no_grad():
        input[1, 2], weight[3, 0] = math.nan, math.inf
    grad_output = rand(5, 7, dtype=dtype)
    leaves = (input, weight, bias)
    output = fused(*leaves)
    grads = torch.autograd.grad(output, leaves, grad_output)
    wants = torch.autograd.grad(eager(*leaves), leaves, grad_output)
    for got, want in zip(grads, wants):
        assert torch.equal(got.isnan(), want.isnan())
    assert_gradients(grads, grad_output, input.detach(), weight.detach(), output.detach())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_gradient_against_infinite_weight(dtype):
    """A masked gradient is a zero, and 0 · ∞ is NaN, as in eager."""
    weight = torch.full((2, 3), math.inf, dtype=dtype)
    output = torch.zeros(4, 2, dtype=dtype)
    input = torch.ones(4, 3, dtype=dtype)
    grads = fused_backward(torch.ones_like(output), input, weight, output, [1, 1, 1])
    assert grads[0].isnan().all()
    assert (grads[1] == 0).all() and (grads[2] == 0).all()


def test_flushed_denormals():
    """Under flush-to-zero, as eager under flush-to-zero."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        tiny = torch.full((4, 1), torch.finfo(torch.float32).tiny / 2)
        one = torch.ones(1, 1)
        assert torch.equal(fused(tiny, one), eager(tiny, one))
    finally:
        torch.set_flush_denormal(False)
