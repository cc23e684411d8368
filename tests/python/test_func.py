"""torch.func: grad, vjp, jvp, Jacobians and Hessians, against eager's."""

import functools
import itertools

import pytest
import torch
from torch import func

from support import Layer, eager, fused, fused_backward, operands, rand

pytestmark = pytest.mark.usefixtures("no_vmap_fallback")
LEADING = [(), (4,), (2, 3)]

# fp64 on both sides, at most some dozens of products deep: two correct
# results differ by a few hundred roundings of their largest terms.
close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=LEADING, ids=str)
def arguments(request):
    return operands(request.param, 3, 4, torch.float64)


def both(transform):
    """transform(function) for ours and for eager's, to be compared."""
    return transform(fused), transform(eager)


def test_grad(arguments):
    def gradient(function):
        def loss(*arguments):
            return function(*arguments).square().sum()

        return func.grad_and_value(loss, argnums=(0, 1, 2))(*arguments)

    close(*both(gradient))


def test_grad_of_grad(arguments):
    def second(function):
        def slope(*arguments):
            loss = lambda *a: function(*a).exp().sum()  # noqa: E731
            return func.grad(loss)(*arguments).square().sum()

        return func.grad(slope, argnums=(0, 1, 2))(*arguments)

    close(*both(second))


def test_vjp(arguments):
    cotangent = torch.randn_like(eager(*arguments))

    def product(function):
        output, pull = func.vjp(function, *arguments)
        return output, *pull(cotangent)

    close(*both(product))


@pytest.mark.parametrize("moving", [m for m in itertools.product([0, 1], repeat=3) if any(m)])
def test_jvp(arguments, moving):
    """A tangent on any of the operands, and zeros on the others."""
    tangents = [torch.randn_like(t) * m for t, m in zip(arguments, moving)]
    close(*both(lambda function: func.jvp(function, tuple(arguments), tuple(tangents))))

    def of_moving(function):
        def partial(*chosen):
            chosen = iter(chosen)
            return function(*(next(chosen) if m else t for t, m in zip(arguments, moving)))

        pick = [i for i, m in enumerate(moving) if m]
        return func.jvp(
            partial, tuple(arguments[i] for i in pick), tuple(tangents[i] for i in pick)
        )

    close(*both(of_moving))


@pytest.mark.parametrize("jacobian", [func.jacrev, func.jacfwd])
def test_jacobian(arguments, jacobian):
    close(*both(lambda function: jacobian(function, argnums=(0, 1, 2))(*arguments)))


def test_jacrev_in_chunks(arguments):
    close(*both(lambda function: func.jacrev(function, chunk_size=2)(*arguments)))


@pytest.mark.parametrize("outer", [func.jacrev, func.jacfwd])
@pytest.mark.parametrize("inner", [func.jacrev, func.jacfwd])
def test_hessians(arguments, outer, inner):
    """All four ways to nest the two kinds of differentiation."""

    def hessian(function):
        loss = lambda *a: function(*a).pow(3).sum()  # noqa: E731
        return outer(inner(loss, argnums=(0, 1, 2)), argnums=(0, 1, 2))(*arguments)

    close(*both(hessian))


def test_hessian(arguments):
    close(*both(lambda f: func.hessian(lambda x: f(x, *arguments[1:]).exp().sum())(arguments[0])))


def test_third_derivative():
    x, w, b = operands((), 2, 3, torch.float64)

    def third(function):
        loss = lambda x: function(x, w, b).pow(4).sum()  # noqa: E731
        return func.jacfwd(func.jacrev(func.grad(loss)))(x)

    close(*both(third))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")  # torch's own
def test_linearize(arguments):
    tangents = tuple(torch.randn_like(t) for t in arguments)

    def linear(function):
        output, push = func.linearize(function, *arguments)
        return output, push(*tangents)

    close(*both(linear))


def test_functional_call():
    """Parameters as arguments, and gradients as a dictionary."""
    model = torch.nn.Sequential(Layer(3, 5), Layer(5, 2)).double()
    plain = torch.nn.Sequential(Layer(3, 5, eager), Layer(5, 2, eager)).double()
    input = rand(4, 3, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def gradient(model):
        loss = lambda p: func.functional_call(model, p, (input,)).square().sum()  # noqa: E731
        return func.grad(loss)(parameters)

    got, want = gradient(model), gradient(plain)
    assert got.keys() == want.keys()
    close(list(got.values()), list(want.values()))


def test_functionalize(arguments):
    got = func.functionalize(lambda *a: fused(*a).add_(1))(*arguments)
    close(got, eager(*arguments) + 1)


def test_derivatives_of_the_backward_operator(arguments):
    """jvp and vjp through the backward operator as such."""
    input, weight, bias = arguments
    output = eager(*arguments)
    primals = (torch.randn_like(output), input, weight)
    tangents = tuple(torch.randn_like(t) for t in primals)

    def ours(grad_output, input, weight):
        return fused_backward(grad_output, input, weight, output, [True] * 3)

    def theirs(grad_output, input, weight):
        dz = grad_output * (output > 0)
        flat = dz.reshape(-1, dz.shape[-1])
        return dz @ weight, flat.t() @ input.reshape(-1, 3), flat.sum(0)

    close(func.jvp(ours, primals, tangents), func.jvp(theirs, primals, tangents))
    values, pull = func.vjp(ours, *primals)
    wants, want_pull = func.vjp(theirs, *primals)
    cotangents = tuple(torch.randn_like(v) for v in values)
    close(pull(cotangents), want_pull(cotangents))


def test_no_nan_from_zero_tangents():
    """An operand without a tangent adds none: 0 · ∞ is never computed."""
    input, weight, bias = operands((4,), 3, 5, torch.float64)
    bias = bias + 100
    tangent = torch.randn_like(bias)
    weight[0, 0] = torch.inf
    _, got = func.jvp(lambda b: fused(input.abs(), weight.abs(), b), (bias,), (tangent,))
    close(got, tangent.expand(4, 5))
