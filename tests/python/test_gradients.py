"""The backward operator and what autograd makes of it, against the oracle."""

import itertools

import pytest
import torch

from oracle import DTYPES, assert_close, assert_gradients, gradient_bounds, reference_gradients
from support import fused, fused_backward, operands, rand

MASKS = list(itertools.product([False, True], repeat=3))
SHAPES = [
    ((), 7, 5),
    ((), 1, 1),
    ((1,), 1, 1),
    ((10,), 7, 3),
    ((129,), 10, 129),
    ((3,), 784, 10),
    ((2, 3), 33, 17),
    ((7, 1, 10), 3, 10),
    ((2, 1, 3, 2), 129, 7),
]


def backward_operands(leading, k, n, dtype):
    input, weight, bias = operands(leading, k, n, dtype)
    output = fused(input, weight, bias)
    return rand(*leading, n, dtype=dtype), input, weight, output


def zero_sized():
    for rank in range(1, 4):
        for sizes in itertools.product((0, 3), repeat=rank + 1):
            if 0 in sizes:
                yield sizes


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("nx"[b] for b in m))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks(dtype, mask):
    for leading, k, n in SHAPES:
        arguments = backward_operands(leading, k, n, dtype)
        grads = fused_backward(*arguments, mask)
        assert [g is not None for g in grads] == list(mask)
        assert_gradients(grads, *arguments, f"{leading} K={k} N={n}")
        assert all(got is None or got.is_contiguous() for got in grads)


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("nx"[b] for b in m))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_with_zero_sizes(dtype, mask):
    """Sums of nothing are zeros, not whatever memory held."""
    for *leading, k, n in zero_sized():
        arguments = backward_operands(leading, k, n, dtype)
        grads = fused_backward(*arguments, mask)
        assert [g is not None for g in grads] == list(mask)
        assert_gradients(grads, *arguments, f"{leading} K={k} N={n}")


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_through_autograd(dtype, bias):
    for leading, k, n in SHAPES + [((*s[:-2],), s[-2], s[-1]) for s in zero_sized()]:
        leaves = operands(leading, k, n, dtype, bias, requires_grad=True)
        output = fused(*leaves)
        grad_output = rand(*output.shape, dtype=dtype)
        output.backward(grad_output)
        input, weight = (t.detach() for t in leaves[:2])
        grads = [t if t is None else t.grad for t in leaves]
        assert_gradients(
            grads, grad_output, input, weight, output.detach(), f"{leading} K={k} N={n}"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_stride_gradients(dtype):
    """y.sum() and broadcasts bring gradients that are one number in memory."""
    for leading, k, n in SHAPES:
        leaves = operands(leading, k, n, dtype, requires_grad=True)
        output = fused(*leaves)
        input, weight, y = leaves[0].detach(), leaves[1].detach(), output.detach()
        brought = [
            (output.sum(), torch.ones((), dtype=dtype).expand_as(y)),
            (output.mean(), torch.ones((), dtype=dtype).div(y.numel()).expand_as(y)),
            (output.sum(-1).square().sum(), (2 * y.sum(-1, keepdim=True)).expand_as(y)),
        ]
        for loss, grad_output in brought:
            grads = torch.autograd.grad(loss, leaves, retain_graph=True)
            assert_gradients(grads, grad_output, input, weight, y, f"{leading}")
        if leading:
            # One row's gradient repeated over the first dimension.
            grad_output = rand(*y.shape[1:], dtype=dtype).expand_as(y)
            grads = torch.autograd.grad(output, leaves, grad_output)
            assert_gradients(grads, grad_output, input, weight, y, f"{leading} rows")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded_leaves_get_sums(dtype):
    """The gradient of a stride-0 input is summed by autograd's expand."""
    row = rand(7, dtype=dtype, requires_grad=True)
    weight, bias = rand(5, 7, dtype=dtype), rand(5, dtype=dtype)
    output = fused(row.expand(4, 7), weight, bias)
    grad_output = rand(4, 5, dtype=dtype)
    (got,) = torch.autograd.grad(output, row, grad_output)
    arguments = (grad_output, row.detach().expand(4, 7), weight, output.detach())
    want = reference_gradients(*arguments)[0]
    # Four terms of the expand's own sum, each rounded to dtype before.
    from_sum = 4 * torch.finfo(dtype).eps * want.abs().sum(0)
    bound = gradient_bounds(*arguments)[0].sum(0) + from_sum
    assert_close(got, want.sum(0), bound, "row")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_accumulate(dtype):
    """One leaf in several places: the parts add up."""
    square = rand(6, 6, dtype=dtype, requires_grad=True)
    fused(square, square, square[0]).sum().backward()
    parts = [square.detach().clone().requires_grad_() for _ in range(3)]
    fused(parts[0], parts[1], parts[2][0]).sum().backward()
    want = sum(part.grad.double() for part in parts)
    scale = sum(part.grad.double().abs() for part in parts)
    assert_close(square.grad, want, 3 * torch.finfo(dtype).eps * scale, "square")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mask_is_the_given_outputs(dtype):
    """Not that of a recomputed forward: threshold_backward(dy, output, 0)."""
    grad_output, input, weight, output = backward_operands((9,), 7, 5, dtype)
    for mask_source in [-output - 1, output + 1, rand(9, 5, dtype=dtype)]:
        arguments = (grad_output, input, weight, mask_source)
        assert_gradients(fused_backward(*arguments, [True] * 3), *arguments)


def test_arguments_are_only_read():
    arguments = backward_operands((9,), 7, 5, torch.float32)
    copies = [t.clone() for t in arguments]
    for grad in fused_backward(*arguments, [True] * 3):
        grad.fill_(3)
    assert all(map(torch.equal, arguments, copies))
