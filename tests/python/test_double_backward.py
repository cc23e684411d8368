"""Second derivatives in number, against their formulas in fp64 and eager.

With dz = mask(dy), the backward is dx = dz W, dW = dzᵀ x, db = Σ dz. For
cotangents (vx, vW, vb) of those its own gradients are

    d/ddy = mask(vx Wᵀ + x vWᵀ + vb)    d/dx = dz vW    d/dW = dzᵀ vx
"""

import itertools

import pytest
import torch

from oracle import DTYPES, UNIT_ROUNDOFF, assert_close, relu_mask, rows, sum_bound
from support import eager, fused, operands, rand

SHAPES = [((), 7, 5), ((1,), 1, 1), ((10,), 7, 3), ((2, 3), 33, 17), ((2, 1, 3), 10, 7)]
USED = [u for u in itertools.product([False, True], repeat=3) if any(u)]


def second_order(function, leaves, grad_output, cotangents, used):
    """Gradients of the used first-order gradients' products with cotangents."""
    output = function(*leaves)
    first = torch.autograd.grad(output, leaves, grad_output, create_graph=True)
    chosen = [pair for pair, u in zip(zip(first, cotangents), used) if u]
    return output, torch.autograd.grad(
        [g for g, _ in chosen],
        (grad_output, *leaves[:2]),
        [v for _, v in chosen],
        allow_unused=True,
    )


def products(dy, x, w, y, cotangents, used):
    """The three formulas in fp64."""
    dy, x, w = dy.double(), x.double(), w.double()
    vx, vw, vb = (v.double() * u for v, u in zip(cotangents, used))
    mask = relu_mask(y)
    dz = dy * mask
    return mask * (vx @ w.t() + x @ vw.t() + vb), dz @ vw, rows(dz).t() @ rows(vx)


@pytest.mark.parametrize("used", USED, ids=lambda u: "".join("nx"[b] for b in u))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_formulas(dtype, used):
    for leading, k, n in SHAPES:
        leaves = operands(leading, k, n, dtype, requires_grad=True)
        grad_output = rand(*leading, n, dtype=dtype, requires_grad=True)
        cotangents = [rand(*t.shape, dtype=dtype) for t in leaves]
        output, got = second_order(fused, leaves, grad_output, cotangents, used)

        plain = [t.detach() for t in (grad_output, *leaves[:2], output)]
        wants = products(*plain, cotangents, used)
        scales = products(
            *(t.abs() for t in plain[:3]), plain[3], [v.abs() for v in cotangents], used
        )
        m = rows(plain[0]).shape[0]
        for name, terms, want, scale, value in zip(
            ("grad_output", "input", "weight"), (2 * k + 1, n, m), wants, scales, got
        ):
            what = f"{name} of {leading} K={k} N={n}"
            if value is None:
                assert not want.any(), what
                continue
            # Up to three results are added after rounding each to dtype.
            added = 3 * UNIT_ROUNDOFF[dtype] * scale
            assert_close(value, want, sum_bound(terms, scale, want, dtype) + added, what)


def test_undefined_only_where_eager_has_zeros():
    """Eager's relu makes zeros of what does not matter; None says the same."""
    for used in USED:
        leaves = operands((4,), 3, 5, torch.float64, requires_grad=True)
        grad_output = rand(4, 5, dtype=torch.float64, requires_grad=True)
        cotangents = [rand(*t.shape, dtype=torch.float64) for t in leaves]
        arguments = (leaves, grad_output, cotangents, used)
        got = second_order(fused, *arguments)[1]
        want = second_order(eager, *arguments)[1]
        for ours, theirs in zip(got, want):
            assert ours is not None or theirs is None or not theirs.any(), used


def test_gradient_penalty():
    """The usual double backward: a loss on the norm of the input's gradient."""

    def penalty(function):
        torch.manual_seed(3)
        input, weight, bias = operands((6,), 4, 8, torch.float64, requires_grad=True)
        output = function(function(input, weight, bias), weight.t())
        (gradient,) = torch.autograd.grad(output.sum(), input, create_graph=True)
        ((gradient.norm(dim=1) - 1) ** 2).mean().backward()
        return weight.grad, bias.grad

    (got, got_bias), (want, want_bias) = penalty(fused), penalty(eager)
    # Some 2·8 products deep: eager's own error is of this size.
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    # Nothing second-order depends on the bias; zeros and None mean the same.
    for grad in (got_bias, want_bias):
        assert grad is None or not grad.any()


def test_double_backward_of_expanded_cotangents():
    leaves = operands((4,), 3, 5, torch.float64, requires_grad=True)
    first = torch.autograd.grad(fused(*leaves).sum(), leaves, create_graph=True)
    got = torch.autograd.grad(sum(g.sum() for g in first), leaves[:2])
    first = torch.autograd.grad(eager(*leaves).sum(), leaves, create_graph=True)
    want = torch.autograd.grad(sum(g.sum() for g in first), leaves[:2])
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_double_backward_needs_a_graph():
    leaves = operands((4,), 3, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(fused(*leaves).sum(), leaves[:1])
    assert not grad.requires_grad
    (grad,) = torch.autograd.grad(fused(*leaves).sum(), leaves[:1], create_graph=True)
    assert grad.requires_grad
    grad.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        grad.sum().backward()
