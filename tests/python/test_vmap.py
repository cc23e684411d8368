"""vmap: every sample gets what it would get alone, without a loop."""

import itertools

import pytest
import torch
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from oracle import (
    DTYPES,
    assert_close,
    assert_forward,
    assert_gradients,
    forward_bound,
    reference,
)
from support import Layer, eager, fused, fused_backward, operands, rand

pytestmark = pytest.mark.usefixtures("no_vmap_fallback")
BATCH = 3


def batched(t, dim):
    """BATCH different tensors like t, stacked along dim; t itself for None."""
    if t is None or dim is None:
        return t
    return torch.stack([rand(*t.shape, dtype=t.dtype) for _ in range(BATCH)], dim)


def sample(t, dim, i):
    return t if t is None or dim is None else t.select(dim, i)


IN_DIMS = [
    (0, None, None),
    (None, 0, None),
    (None, None, 0),
    (0, 0, None),
    (0, None, 0),
    (None, 0, 0),
    (0, 0, 0),
    (-1, 1, 0),
    (1, 2, 1),
    (1, None, None),
    (None, 1, -1),
]


@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
@pytest.mark.parametrize("leading", [(), (4,), (2, 5)], ids=str)
def test_forward(leading, in_dims):
    if not leading and in_dims[0] == 1:
        in_dims = (-1, *in_dims[1:])
    for dtype, bias in itertools.product(DTYPES, [True, False]):
        dims = in_dims if bias else (*in_dims[:2], None)
        if dims == (None, None, None):
            continue
        arguments = operands(leading, 7, 5, dtype, bias)
        arguments = [batched(t, dim) for t, dim in zip(arguments, dims)]
        got = vmap(fused, dims)(*arguments)
        assert got.shape == (BATCH, *leading, 5)
        for i in range(BATCH):
            alone = [sample(t, dim, i) for t, dim in zip(arguments, dims)]
            bound = forward_bound(*alone, bias_apart=True)
            assert_close(got[i], reference(*alone), bound, f"{dtype} sample {i}")


def test_out_dims():
    input, weight, bias = operands((4,), 7, 5)
    inputs = batched(input, 0)
    got = vmap(lambda x: fused(x, weight, bias), out_dims=1)(inputs)
    assert torch.equal(got, vmap(lambda x: fused(x, weight, bias))(inputs).movedim(0, 1))


def test_nested():
    inputs, weights = rand(2, 3, 4, 7), rand(3, 5, 7)
    got = vmap(vmap(fused), (0, None))(inputs, weights)
    for i, j in itertools.product(range(2), range(3)):
        assert_forward(got[i, j], inputs[i, j], weights[j])


@pytest.mark.parametrize("size", [0, 1])
def test_small_batches(size):
    inputs, weight = rand(size, 4, 7), rand(5, 7)
    assert_forward(vmap(lambda x: fused(x, weight))(inputs), inputs, weight)


def test_chunks():
    inputs, weight = rand(10, 4, 7), rand(5, 7)
    got = vmap(lambda x: fused(x, weight), chunk_size=3)(inputs)
    assert_forward(got, inputs, weight)


@pytest.mark.parametrize("which", [m for m in itertools.product([0, None], repeat=4) if 0 in m])
def test_backward_operator(which):
    like = (rand(4, 5), rand(4, 7), rand(5, 7), rand(4, 5))
    arguments = [batched(t, dim) for t, dim in zip(like, which)]
    in_dims = (*which, None)
    got = vmap(fused_backward, in_dims)(*arguments, [True] * 3)
    for i in range(BATCH):
        alone = [sample(t, dim, i) for t, dim in zip(arguments, which)]
        assert_gradients([g[i] for g in got], *alone, f"sample {i}")


@pytest.mark.parametrize("in_dims", IN_DIMS[:7], ids=str)
def test_per_sample_gradients(in_dims):
    """vmap(grad): the loss of every sample on its own."""
    arguments = [batched(t, d) for t, d in zip(operands((4,), 7, 5, torch.float64), in_dims)]

    def gradients(function):
        loss = lambda *a: function(*a).square().sum()  # noqa: E731
        return vmap(grad(loss, argnums=(0, 1, 2)), in_dims)(*arguments)

    for got, want in zip(gradients(fused), gradients(eager)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("in_dims", IN_DIMS[:7], ids=str)
def test_gradients_through_a_batch(in_dims):
    """grad(vmap): one loss of all samples."""
    arguments = [batched(t, d) for t, d in zip(operands((4,), 7, 5, torch.float64), in_dims)]

    def gradients(function):
        loss = lambda *a: vmap(function, in_dims)(*a).square().sum()  # noqa: E731
        by_func = grad(loss, argnums=(0, 1, 2))(*arguments)
        leaves = [t.clone().requires_grad_() for t in arguments]
        loss(*leaves).backward()
        return *by_func, *(t.grad for t in leaves)

    for got, want in zip(gradients(fused), gradients(eager)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_tangents_of_samples():
    input, weight, bias = operands((4,), 7, 5, torch.float64)
    primals, tangents = batched(input, 0), batched(input, 0)

    def pushed(function):
        one = lambda x, t: jvp(lambda x: function(x, weight, bias), (x,), (t,))  # noqa: E731
        return vmap(one)(primals, tangents)

    for got, want in zip(pushed(fused), pushed(eager)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_ensemble():
    """Many models as one batched model, on one input and on one each."""
    models = [Layer(7, 5) for _ in range(BATCH)]
    parameters, buffers = stack_module_state(models)
    run = lambda p, b, x: functional_call(models[0], (p, b), (x,))  # noqa: E731
    shared, own = rand(4, 7), rand(BATCH, 4, 7)
    for got, inputs in [
        (vmap(run, (0, 0, None))(parameters, buffers, shared), [shared] * BATCH),
        (vmap(run)(parameters, buffers, own), own),
    ]:
        for y, x, model in zip(got, inputs, models):
            assert_forward(y, x, model.linear.weight.detach(), model.linear.bias.detach())


def test_nan_in_one_sample_stays_there():
    inputs, weight = rand(BATCH, 4, 7), rand(5, 7)
    inputs[1, 2, 3] = torch.nan
    got = vmap(lambda x: fused(x, weight))(inputs)
    assert got[1, 2].isnan().all() and got.isnan().sum() == 5
