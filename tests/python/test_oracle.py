"""The oracle itself: it accepts what rounding explains and nothing more.

Each wrong result below is a mistake that a kernel can make.
"""

import math

import pytest
import torch

from oracle import (
    DTYPES,
    UNIT_ROUNDOFF,
    accumulator,
    assert_close,
    assert_forward,
    assert_gradients,
    excess,
    forward_bound,
    reference,
    reference_gradients,
)
from support import eager, fused, fused_backward, operands, rand

FLOATS = pytest.mark.parametrize("dtype", DTYPES, ids=str)
M, K, N = 33, 300, 17


def tf32(t):
    """t with 11 significant bits, rounded to nearest."""
    mantissa, exponent = torch.frexp(t.double())
    return torch.ldexp(torch.round(mantissa * 2**11), exponent - 11).to(t.dtype)


def refused(got, *arguments, **how):
    with pytest.raises(AssertionError, match="out of bound"):
        assert_forward(got, *arguments, **how)


@FLOATS
def test_the_rounded_exact_result_is_accepted(dtype):
    arguments = operands((M,), K, N, dtype)
    assert_forward(reference(*arguments).to(dtype), *arguments)


@FLOATS
def test_one_unit_off_is_within_the_bound_and_not_idle(dtype):
    """The bound is some units in the last place: neither zero nor a lot."""
    arguments = operands((M,), K, N, dtype)
    units = forward_bound(*arguments) / (UNIT_ROUNDOFF[dtype] * reference(*arguments).abs().max())
    sums = 8 * math.sqrt(K + 2) * UNIT_ROUNDOFF[accumulator(dtype)] / UNIT_ROUNDOFF[dtype]
    assert units.max() < 4 + 40 * sums


@FLOATS
def test_forgotten_terms_are_seen(dtype):
    input, weight, bias = operands((M,), K, N, dtype)
    refused(eager(input, weight), input, weight, bias)
    refused(eager(input[:, :-1], weight[:, :-1], bias), input, weight, bias)
    refused(torch.nn.functional.linear(input, weight, bias), input, weight, bias)
    refused(eager(input, weight.flip(0), bias), input, weight, bias)
    refused(eager(input, weight, bias * 1.05), input, weight, bias)


@FLOATS
def test_one_wrong_element_is_seen(dtype):
    arguments = operands((M,), K, N, dtype)
    got = eager(*arguments)
    for wrong in (0.5, math.nan, math.inf):
        spoilt = got.clone()
        spoilt[20, 3] += wrong
        refused(spoilt, *arguments)


def test_lower_precision_is_seen():
    """bf16 and TF32 operands in an fp32 product; TF32 passes where allowed."""
    for k in (3, K):
        input, weight, bias = operands((M,), k, N)
        bf16 = eager(input.bfloat16().float(), weight.bfloat16().float(), bias)
        refused(bf16, input, weight, bias)
        narrow = eager(tf32(input), tf32(weight), bias)
        refused(narrow, input, weight, bias)
        assert_forward(narrow, input, weight, bias, tf32=True)
    # In longer sums errors cancel, so there bf16 hides within TF32's worst case.
    input, weight, bias = operands((M,), 3, N)
    bf16 = eager(input.bfloat16().float(), weight.bfloat16().float(), bias)
    refused(bf16, input, weight, bias, tf32=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_narrow_accumulator_is_seen(dtype):
    """Sums kept in 16 bits, which is what the bound of 16-bit dtypes forbids."""
    input, weight, _ = operands((M,), K, N, dtype)
    total = torch.zeros(M, N, dtype=dtype)
    for k in range(K):
        total += input[:, k, None] * weight[None, :, k]
    refused(total.relu(), input, weight)


def test_truncating_accumulators_need_their_own_bound():
    """Sums cut off after every addition, as tensor cores do."""
    input, weight = rand(3, 4000).abs(), rand(2, 4000).abs()  # all errors one way
    total = torch.zeros(3, 2)
    for k in range(4000):
        exact = total.double() + input[:, k, None].double() * weight[None, :, k].double()
        rounded = exact.float()
        too_big = rounded.double() > exact
        total = torch.where(too_big, torch.nextafter(rounded, torch.zeros(())), rounded)
    assert_forward(total, input, weight, tensor_cores=True)
    refused(total, input, weight)


@FLOATS
def test_wrong_gradients_are_seen(dtype):
    input, weight, bias = operands((M,), 40, N, dtype)
    output, grad_output = eager(input, weight, bias), rand(M, N, dtype=dtype)
    arguments = (grad_output, input, weight, output)
    right = [g.to(dtype) for g in reference_gradients(*arguments)]
    assert_gradients(right, *arguments)
    no_mask = reference_gradients(grad_output, input, weight, torch.ones_like(output))
    wrong_mask = reference_gradients(grad_output, input, weight, output - 0.5)
    for spoilt in (no_mask, wrong_mask):
        for place in range(3):
            grads = [None] * 3
            grads[place] = spoilt[place].to(dtype)
            with pytest.raises(AssertionError, match="out of bound"):
                assert_gradients(grads, *arguments)


def test_infinities_and_nan():
    info = torch.finfo(torch.float16)
    bound = torch.tensor([16.0], dtype=torch.float64)

    def verdict(got, want):
        got = torch.tensor([got], dtype=torch.float16)
        return excess(got, torch.tensor([want], dtype=torch.float64), bound).item() <= 1

    inf, nan = math.inf, math.nan
    assert verdict(inf, inf) and verdict(nan, nan) and verdict(inf, 1e6)
    assert verdict(inf, 65519.0) and not verdict(inf, 60000.0)
    assert verdict(info.max, 65504.0) and not verdict(info.max, 1e6)
    assert not verdict(inf, -1e6) and not verdict(-inf, inf) and not verdict(nan, inf)
    assert not verdict(1.0, inf) and not verdict(1.0, nan) and not verdict(nan, 1.0)
    # Infinite operands make the bound infinite, which must excuse nothing.
    got, want = torch.ones(1), torch.zeros(1, dtype=torch.float64)
    assert excess(got, want, torch.tensor([inf])).item() > 1
    assert excess(got, want, torch.tensor([nan])).item() > 1


def test_shapes_and_dtypes_must_match():
    input, weight, bias = operands((M,), K, N)
    got = eager(input, weight, bias)
    with pytest.raises(AssertionError, match="shape"):
        assert_forward(got[:1], input, weight, bias)
    with pytest.raises(AssertionError, match="float64"):
        assert_forward(got.double(), input, weight, bias)
    with pytest.raises(AssertionError, match="shape"):
        assert_close(got, reference(input, weight, bias).T, torch.ones(N, M), "transposed")


@FLOATS
def test_room_is_left(dtype):
    """The library uses a part of the bound only: no luck is needed to pass."""
    input, weight, bias = operands((M,), K, N, dtype)
    arguments = (input, weight, bias)
    used = excess(fused(*arguments), reference(*arguments), forward_bound(*arguments))
    assert used.max() <= 1
    # A 16-bit result may round by the half unit that the bound is made of.
    if accumulator(dtype) == dtype:
        assert used.max() < 0.2
    output = fused(*arguments)
    given = (rand(M, N, dtype=dtype), input, weight, output)
    assert_gradients(fused_backward(*given, [True] * 3), *given)
