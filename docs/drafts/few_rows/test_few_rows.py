"""Layers on few rows run in kernels of ours on the CPU (src/cpu/few_rows.rs):
fp32 and bfloat16, up to eight rows."""

import pytest
import torch

from support import fused, rand

mlp = torch.ops.hypatia.fused_mlp
DTYPES = [torch.float32, torch.bfloat16]


def near(got, x, w, b, relu):
    """Within the roundings of an fp32 sum, and of the result."""
    x, w = x.double(), w.double()
    terms = x.abs() @ w.abs().t() + (0 if b is None else b.double().abs())
    want = x @ w.t() + (0 if b is None else b.double())
    want = want.relu() if relu else want
    unit = 2.0**-8 if got.dtype == torch.bfloat16 else 0.0
    bound = (w.shape[1] + 1) * 2.0**-24 * terms + unit * want.abs()
    return bool(((got.double() - want).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 5), (64, 32), (100, 37), (784, 256)])
def test_agrees_with_fp64(dtype, rows, k, n):
    x, w, b = (rand(*shape).sub(0.5).to(dtype) for shape in [(rows, k), (n, k), (n,)])
    for bias in (b, None):
        assert near(fused(x, w, bias), x, w, bias, relu=True)
        assert near(mlp(x, [w], [bias], False), x, w, bias, relu=False)


def products(call):
    """ATen's products within a call."""
    with torch.autograd.profiler.profile() as profile:
        call()
    return {event.name for event in profile.function_events} & {"aten::linear", "aten::addmm", "aten::mm"}


def test_where_it_runs():
    x, w, b = rand(9, 20), rand(6, 20), rand(6)
    for rows in (1, 8):
        assert not products(lambda: fused(x[:rows], w, b))
        assert not products(lambda: mlp(x[:rows], [w], [b]))
        assert not products(lambda: fused(x[:rows].bfloat16(), w.bfloat16(), b.bfloat16()))
    assert products(lambda: fused(x, w, b)) and products(lambda: mlp(x, [w], [b]))
    assert products(lambda: fused(x[:1].double(), w.double(), b.double()))
    assert products(lambda: fused(x[:1], w.t().contiguous().t(), b)), "columns of the weight"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_in_every_batch(dtype):
    x = rand(8, 300).sub(0.5).to(dtype)
    weights = [rand(*shape).sub(0.5).to(dtype) for shape in [(130, 300), (75, 130)]]
    biases = [rand(130).to(dtype), None]
    whole = mlp(x, weights, biases, True)
    for rows in range(1, 8):
        assert torch.equal(mlp(x[:rows], weights, biases, True), whole[:rows])
    assert torch.equal(mlp(x[3], weights, biases, True), whole[3])
    assert torch.equal(mlp(x.view(2, 4, 300), weights, biases, True).view(8, 75), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(dtype):
    x, w, b = (rand(*shape).sub(0.5).to(dtype) for shape in [(3, 2000), (517, 2000), (517,)])
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(fused(x, w, b))
        assert all(torch.equal(r, results[0]) for r in results)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype):
    x, w, b = (rand(*shape).sub(0.5).to(dtype) for shape in [(4, 40), (24, 40), (24,)])
    want = fused(x, w, b)
    wide = rand(4, 64).to(dtype)
    wide[:, 3:43] = x
    tall = rand(24, 50).to(dtype)
    tall[:, :40] = w
    spread = rand(48).to(dtype)
    spread[::2] = b
    forms = [
        (wide[:, 3:43], w, b),
        (x, tall[:, :40], b),
        (x, w.t().contiguous().t(), b),
        (x.t().contiguous().t(), w, b),
        (x, w, spread[::2]),
        (x, w, torch._neg_view(-b)),
    ]
    for form in forms:
        torch.testing.assert_close(fused(*form), want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    row = x[:1].expand(4, 40)
    torch.testing.assert_close(fused(row, w, b), want[:1].expand(4, 24), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype):
    x = torch.zeros(3, 20, dtype=dtype)
    w = torch.ones(6, 20, dtype=dtype)
    x[0, 19], x[1, 0], x[2, 3] = float("nan"), float("inf"), -float("inf")
    got = fused(x, w, None)
    assert got[0].isnan().all() and got[1].isposinf().all() and (got[2] == 0).all()
    assert mlp(x, [w], [None], False)[2].isneginf().all()


def test_training_of_a_single_row():
    x, w, b = rand(1, 12, requires_grad=True), rand(7, 12, requires_grad=True), rand(7, requires_grad=True)
    got = torch.autograd.grad(fused(x, w, b).sum(), [x, w, b])
    want = torch.autograd.grad(torch.relu(torch.nn.functional.linear(x, w, b)).sum(), [x, w, b])
    torch.testing.assert_close(got, want)
