"""Derivatives of both operators against finite differences, in fp64."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from support import fused, fused_backward, operands, rand

LEADING = [(), (1,), (4,), (2, 3), (2, 1, 2)]
SUBSETS = [
    (True, True, True),
    (True, False, False),
    (False, True, False),
    (False, False, True),
    (False, True, True),
]
pytestmark = pytest.mark.usefixtures("no_vmap_fallback")
KINK = 1e-3  # finite differences step 1e-6: they must not cross the ReLU's kink


def smooth_operands(leading, requires=(True, True, True)):
    """Operands whose outputs keep away from zero, on either side."""
    for _ in range(100):
        arguments = operands(leading, 3, 4, torch.float64)
        z = torch.nn.functional.linear(*arguments)
        if z.abs().min() > KINK and (z > 0).any() and (z < 0).any():
            return [t.requires_grad_(r) for t, r in zip(arguments, requires)]
    raise AssertionError("no operands away from the kink")


@pytest.mark.parametrize("requires", SUBSETS, ids=str)
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_first_order(leading, requires):
    assert gradcheck(
        fused,
        smooth_operands(leading, requires),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@pytest.mark.parametrize("requires", SUBSETS, ids=str)
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_second_order(leading, requires):
    assert gradgradcheck(
        fused,
        smooth_operands(leading, requires),
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
        check_undefined_grad=True,
    )


@pytest.mark.parametrize("leading", [(), (4,)], ids=str)
def test_without_bias(leading):
    input, weight, _ = smooth_operands(leading)

    def function(input, weight):
        return fused(input, weight)

    assert gradcheck(function, (input, weight), check_forward_ad=True)
    assert gradgradcheck(function, (input, weight), check_fwd_over_rev=True)


@pytest.mark.parametrize("mask", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)], ids=str)
def test_backward_operator(leading, mask):
    """The backward is an operator of its own, differentiable in its turn."""
    input, weight, _ = smooth_operands(leading)
    output = fused(input, weight).detach()
    grad_output = rand(*leading, 4, dtype=torch.float64, requires_grad=True)

    def function(grad_output, input, weight):
        grads = fused_backward(grad_output, input, weight, output, mask)
        return tuple(g for g in grads if g is not None)

    arguments = (grad_output, input, weight)
    assert gradcheck(
        function,
        arguments,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(function, arguments, check_fwd_over_rev=True, check_batched_grad=True)


def test_third_order():
    """The double backward is made of differentiable operations."""
    input, weight, bias = smooth_operands((3,))
    grad_output = rand(3, 4, dtype=torch.float64, requires_grad=True)

    def first_order(grad_output, input, weight, bias):
        output = fused(input, weight, bias)
        return torch.autograd.grad(
            output, (input, weight, bias), grad_output, create_graph=True
        )

    assert gradgradcheck(first_order, (grad_output, input, weight, bias))


def test_composed_with_other_operations():
    """Three layers and a nonlinear loss: nothing here is a leaf."""
    input = rand(4, 3, dtype=torch.float64, requires_grad=True)
    weights = [rand(5, 3), rand(5, 5), rand(2, 5)]
    weights = [w.double().requires_grad_() for w in weights]

    def function(input, *weights):
        y = input.tanh()
        for weight in weights:
            y = fused(y, weight.sin(), weight.square().sum(1))
        return y.exp()

    assert gradcheck(function, (input, *weights), check_forward_ad=True)
    assert gradgradcheck(function, (input, *weights), check_fwd_over_rev=True)


def test_finite_differences_can_fail():
    """The checks above see a wrong derivative: that of another function."""
    input, weight, bias = smooth_operands((4,))

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(weight.detach())
            return fused(x, weight.detach(), bias.detach())

        @staticmethod
        def backward(ctx, grad):
            return grad @ ctx.saved_tensors[0]  # no mask

    with pytest.raises(GradcheckError):
        gradcheck(Wrong.apply, (input,))
