"""Any strides: a view gives what its dense copy gives, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from oracle import DTYPES, assert_forward, assert_gradients
from support import fused, fused_backward, rand


def permuted(t, *order):
    """The values of t, with its dimensions in memory in the order given."""
    order = [dim % t.dim() for dim in order]
    inverse = sorted(range(t.dim()), key=order.__getitem__)
    return t.permute(order).contiguous().permute(inverse)


def stepped(t, step=2):
    """The values of t, `step` apart in memory in every dimension."""
    wide = torch.full([s * step for s in t.shape], torch.nan, dtype=t.dtype)
    view = wide[tuple(slice(None, None, step) for _ in t.shape)]
    return view.copy_(t)


def offset(t, elements=1):
    """The values of t, `elements` after an aligned address."""
    flat = torch.full([t.numel() + elements], torch.nan, dtype=t.dtype)
    return flat[elements:].view(t.shape).copy_(t)


def column_of(t):
    """The values of t in one column of a wider array: last stride 3."""
    wide = torch.full([*t.shape, 3], torch.nan, dtype=t.dtype)
    return wide[..., 1].copy_(t)


def padded(t):
    """The values of t in rows that are longer in memory."""
    wide = torch.full([*t.shape[:-1], t.shape[-1] + 5], torch.nan, dtype=t.dtype)
    return wide[..., 2:-3].copy_(t)


def expanded(t, dim):
    """t's first slice along dim repeated: stride 0."""
    return t.narrow(dim, 0, 1).expand_as(t)


def negative(t):
    """The values of t behind a lazy negation, as complex views have it."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag


INPUTS = {
    "transposed": lambda t: permuted(t, *range(t.dim() - 2), -1, -2),
    "reversed": lambda t: permuted(t, *reversed(range(t.dim()))),
    "leading_swapped": lambda t: permuted(t, 1, 0, *range(2, t.dim())),
    "stepped": stepped,
    "rows_stepped": lambda t: t.repeat_interleave(2, 0)[::2],
    "column": column_of,
    "padded": padded,
    "offset": offset,
    "expanded_first": lambda t: expanded(t, 0),
    "expanded_last": lambda t: expanded(t, -1),
    "expanded_all": lambda t: t[(0,) * t.dim()].expand_as(t),
    "flipped_back": lambda t: t.flip(-1).flip(-1),
}
SHAPES = [(9, 7), (4, 6, 10), (2, 3, 5, 7), (2, 2, 3, 2, 6)]
WEIGHTS = {
    "transposed": lambda t: permuted(t, 1, 0),
    "stepped": stepped,
    "column": column_of,
    "padded": padded,
    "offset": offset,
    "expanded_rows": lambda t: expanded(t, 0),
    "expanded_columns": lambda t: expanded(t, 1),
}
BIASES = {
    "stepped": stepped,
    "offset": offset,
    "expanded": lambda t: expanded(t, 0),
}


def check(input, weight, bias, what=""):
    got = fused(input, weight, bias)
    assert_forward(got, input, weight, bias, what)
    assert got.is_contiguous()
    check_backward(rand(*got.shape, dtype=got.dtype), input, weight, got, what)


def check_backward(grad_output, input, weight, output, what=""):
    grads = fused_backward(grad_output, input, weight, output, [True] * 3)
    assert_gradients(grads, grad_output, input, weight, output, what)
    meta = [t.to("meta") for t in (grad_output, input, weight, output)]
    for got, promised in zip(grads, fused_backward(*meta, [True] * 3)):
        assert got.is_contiguous()
        assert (got.shape, got.stride()) == (promised.shape, promised.stride())


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_input(dtype, name):
    for shape in SHAPES:
        weight, bias = rand(5, shape[-1], dtype=dtype), rand(5, dtype=dtype)
        check(INPUTS[name](rand(*shape, dtype=dtype)), weight, bias, f"{shape}")


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight(dtype, name):
    weight = WEIGHTS[name](rand(5, 7, dtype=dtype))
    for shape in [(7,), (9, 7), (3, 4, 7)]:
        check(rand(*shape, dtype=dtype), weight, rand(5, dtype=dtype), f"{shape}")


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias(dtype, name):
    bias = BIASES[name](rand(5, dtype=dtype))
    for shape in [(7,), (9, 7), (3, 4, 7)]:
        check(rand(*shape, dtype=dtype), rand(5, 7, dtype=dtype), bias, f"{shape}")


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_output_and_output(dtype, name):
    for *leading, k in SHAPES:
        input, weight = rand(*leading, k, dtype=dtype), rand(6, k, dtype=dtype)
        output, grad_output = fused(input, weight), rand(*leading, 6, dtype=dtype)
        check_backward(INPUTS[name](grad_output), input, weight, output)
        # Any output is legal here, it only is a mask.
        check_backward(grad_output, input, weight, INPUTS[name](output))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_misalignment(dtype):
    """Vector loads want 16 bytes; a view may start at any element."""
    for elements in range(1, 9):
        input, weight = rand(33, 40, dtype=dtype), rand(24, 40, dtype=dtype)
        bias = rand(24, dtype=dtype)
        check(*(offset(t, elements) for t in (input, weight, bias)), f"{elements}")


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)  # complex of those alone
def test_lazy_negation(dtype):
    input, weight, bias = (negative(rand(*s, dtype=dtype)) for s in [(9, 7), (5, 7), (5,)])
    assert input.is_neg() and bias.is_neg()
    check(input, weight, bias)


def test_lazy_zeros():
    """Forward-mode AD brings tensors that are zero without memory."""
    input, weight, bias = rand(9, 7), rand(5, 7), rand(5)
    zeros = torch._efficientzerotensor(9, 7)
    assert torch.equal(fused(zeros, weight, bias), F.relu(bias).expand(9, 5))
    output = fused(input, weight, bias)
    for grad in fused_backward(
        torch._efficientzerotensor(9, 5), input, weight, output, [True] * 3
    ):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_shared_memory_of_arguments():
    """Input and weight may be the same memory: only read."""
    square = rand(8, 8)
    before = square.clone()
    check(square, square, square[0])
    check(square.t(), square, square[:, 3])
    assert torch.equal(square, before)


def test_channels_last():
    """Image activations with channels last are rows without a copy."""
    image = rand(2, 7, 5, 3).to(memory_format=torch.channels_last)
    check(image.permute(0, 2, 3, 1), rand(6, 7), rand(6))
    check(image, rand(6, 3), rand(6))
