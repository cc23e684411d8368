"""Random shapes, strides and dtypes, forward and backward, for ever repeatable."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oracle import DTYPES, assert_forward, assert_gradients
from support import fused, fused_backward


@st.composite
def views(draw, shape, dtype, generator):
    """A tensor of `shape` with any order of dimensions in memory, gaps between
    elements, an offset, and some dimensions of stride 0."""
    dims = len(shape)
    order = draw(st.permutations(range(dims)))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in shape]
    repeated = [draw(st.sampled_from([False] * 5 + [True])) for _ in shape]
    offset = draw(st.integers(0, 5))

    strides, stride = [0] * dims, 1
    for dim in order:
        if not repeated[dim]:
            strides[dim] = stride * steps[dim]
            stride = strides[dim] * max(shape[dim], 1)
    memory = torch.randn(stride + offset, dtype=torch.float64, generator=generator)
    return memory.to(dtype).as_strided(shape, strides, offset)


@st.composite
def problems(draw):
    dtype = draw(st.sampled_from(DTYPES))
    leading = draw(st.lists(st.integers(0, 5), max_size=4))
    k, n = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def view(*shape):
        return draw(views(shape, dtype, generator))

    bias = view(n) if draw(st.booleans()) else None
    mask = draw(st.tuples(*[st.booleans()] * 3))
    return view(*leading, k), view(n, k), bias, view(*leading, n), mask


@settings(
    deadline=None,
    derandomize=True,
    max_examples=300,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(problems())
def test_any_problem(problem):
    input, weight, bias, grad_output, mask = problem
    output = fused(input, weight, bias)
    assert_forward(output, input, weight, bias)
    assert output.is_contiguous()

    grads = fused_backward(grad_output, input, weight, output, mask)
    assert tuple(g is not None for g in grads) == mask
    assert all(g is None or g.is_contiguous() for g in grads)
    assert_gradients(grads, grad_output, input, weight, output)

    leaves = [t.detach().requires_grad_() for t in (input, weight, bias) if t is not None]
    recorded = fused(*leaves)
    assert torch.equal(recorded, output)
    grads = torch.autograd.grad(recorded, leaves, grad_output)
    assert_gradients(grads, grad_output, input, weight, output, "autograd")
