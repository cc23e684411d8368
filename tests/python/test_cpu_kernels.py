"""Kernels of ours on the CPU (src/cpu): fp32, fp16 and bfloat16, few rows and many."""

import json

import pytest
import torch

import oracle
from support import eager_mlp, fused, mlp, mlp_forward, mlp_operands, python_ok, rand, split

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HAS_KERNELS = json.loads(torch.ops.hypatia.build_info())["cpu_kernels"]["isa"] != "scalar"

# Up to eight rows dot products, then tiles of 16 and 32 lanes, panels of 32.
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 65, 100]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 5), (64, 32), (100, 37), (784, 256)])
def test_agrees_with_fp64(dtype, rows, k, n):
    x, w, b = rand(rows, k, dtype=dtype), rand(n, k, dtype=dtype), rand(n, dtype=dtype)
    for bias in (b, None):
        oracle.assert_forward(fused(x, w, bias), x, w, bias)
        oracle.assert_mlp(mlp(x, [w], [bias], False), x, [w], [bias])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 40, 257])
@pytest.mark.parametrize("relu_last", [False, True])
def test_training_and_inference_are_the_same_bits(dtype, rows, relu_last):
    x, weights, biases = mlp_operands([rows], [75, 130, 64, 33], dtype, bias="some")
    output, activations = mlp_forward(x, weights, biases, relu_last)
    assert torch.equal(output, mlp(x, weights, biases, relu_last))
    h = x
    for part, w, b in zip(split(activations, x, weights), weights, biases):
        h = fused(h, w, b)
        assert torch.equal(part, h), "layers one by one too"


def products(call):
    """ATen's products within a call."""
    with torch.autograd.profiler.profile() as profile:
        call()
    return {event.name for event in profile.function_events} & {"aten::linear", "aten::addmm", "aten::mm"}


@pytest.mark.skipif(not HAS_KERNELS, reason="needs AVX2")
def test_where_it_runs():
    x, w, b = rand(40, 20), rand(6, 20), rand(6)
    for rows in (1, 8, 40):
        assert not products(lambda: fused(x[:rows], w, b))
        assert not products(lambda: mlp(x[:rows], [w], [b]))
        assert not products(lambda: mlp_forward(x[:rows], [w], [b], False))
        assert not products(lambda: fused(x[:rows].half(), w.half(), b.half()))
    assert not products(lambda: fused(x[:1].bfloat16(), w.bfloat16(), b.bfloat16()))
    assert products(lambda: fused(x.double(), w.double(), b.double()))
    assert products(lambda: fused(x, w.t().contiguous().t(), b)), "columns of the weight"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("least", "most"), [(1, 8), (9, 70)])
def test_a_row_is_the_same_bits_in_every_batch(dtype, least, most):
    x, weights, biases = mlp_operands([most], [300, 130, 75], dtype, bias="some")
    whole = mlp(x, weights, biases, True)
    for rows in range(least, most):
        assert torch.equal(mlp(x[:rows], weights, biases, True), whole[:rows])
    if least == 1:
        assert torch.equal(mlp(x[3], weights, biases, True), whole[3])
        assert torch.equal(mlp(x.view(2, 4, 300), weights, biases, True).view(8, 75), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 40, 64, 300])
def test_threads_change_no_bit(dtype, rows):
    x, weights, biases = mlp_operands([rows], [500, 417, 10], dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(mlp(x, weights, biases))
            results.append(mlp_forward(x, weights, biases, False)[0])
        assert all(torch.equal(r, results[0]) for r in results)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [4, 36])
def test_strides(dtype, rows):
    x, w, b = rand(rows, 40, dtype=dtype), rand(24, 40, dtype=dtype), rand(24, dtype=dtype)
    want = fused(x, w, b)
    wide = rand(rows, 64, dtype=dtype)
    wide[:, 3:43] = x
    tall = rand(24, 50, dtype=dtype)
    tall[:, :40] = w
    spread = rand(48, dtype=dtype)
    spread[::2] = b
    for form in [
        (wide[:, 3:43], w, b),
        (x, tall[:, :40], b),
        (x.t().contiguous().t(), w, b),
        (x, w, spread[::2]),
        (x, w, torch._neg_view(-b)),
    ]:
        assert torch.equal(fused(*form), want)
    assert torch.equal(mlp(x, [w], [torch._neg_view(-b)], True), want)
    oracle.assert_forward(fused(x, w.t().contiguous().t(), b), x, w, b)
    assert torch.equal(fused(x[:1].expand(rows, 40), w, b), want[:1].expand(rows, 24))
    one = w[:1].expand(24, 40)
    oracle.assert_forward(fused(x, one, b), x, one, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 35])
@pytest.mark.parametrize("k", [20, 21])
def test_special_values(dtype, rows, k):
    x, w = torch.zeros(rows, k, dtype=dtype), torch.ones(6, k, dtype=dtype)
    x[0, k - 1], x[1, 0], x[2, 3] = float("nan"), float("inf"), -float("inf")
    got = fused(x, w, None)
    assert got[0].isnan().all() and got[1].isposinf().all() and (got[2:] == 0).all()
    assert mlp(x, [w], [None], False)[2].isneginf().all()
    hidden = mlp(x, [w, torch.ones(5, 6, dtype=dtype)], [None, None], False)
    assert hidden[0].isnan().all() and hidden[1].isposinf().all() and (hidden[2:] == 0).all()


@pytest.mark.parametrize("rows", [1, 20])
def test_what_overflows_and_underflows_in_16_bits(rows):
    big = torch.full((rows, 4), 300.0, dtype=torch.float16)
    w = torch.full((2, 4), 300.0, dtype=torch.float16)
    assert fused(big, w, None).isposinf().all()
    tiny = torch.full((rows, 1), 2.0**-20, dtype=torch.float16)
    half = torch.full((3, 1), 0.5, dtype=torch.float16)
    assert (fused(tiny, half, None) == 2.0**-21).all(), "a subnormal number"


@pytest.mark.parametrize("rows", [2, 40])
def test_training_agrees_with_eager(rows):
    x, weights, biases = mlp_operands([rows], [30, 50, 7], requires_grad=True)
    leaves = [x, *weights, *biases]
    got = torch.autograd.grad(mlp(x, weights, biases).square().sum(), leaves)
    want = torch.autograd.grad(eager_mlp(x, weights, biases).square().sum(), leaves)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


WITHIN = """
import torch, support
from torch.utils.data import DataLoader
x, ws, bs = support.mlp_operands([300], [500, 400, 10])
want = support.mlp(x, ws, bs)
import threading
got = [None] * 4
def run(i):
    for _ in range(20):
        got[i] = support.mlp(x, ws, bs)
threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert all(torch.equal(g, want) for g in got)
"""


def test_threads_of_the_program_each_with_a_team():
    python_ok(WITHIN)


@pytest.mark.skipif(not HAS_KERNELS, reason="needs AVX2")
@pytest.mark.parametrize(
    ("variable", "value"),
    [("HYPATIA_CPU_ISA", "scalar"), ("HYPATIA_CPU_ISA", "avx2"), ("HYPATIA_CPU_BF16", "widen")],
)
def test_other_instruction_sets(variable, value, monkeypatch):
    """The same suite's oracle in a process that may not use what is best."""
    monkeypatch.setenv(variable, value)
    python_ok(
        """
import json, torch, oracle, support
info = json.loads(torch.ops.hypatia.build_info())["cpu_kernels"]
import sys
assert sys.argv[1] in (info["isa"], info["bf16"]), info
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for rows in (1, 8, 33, 100):
        for relu_last in (False, True):
            x, ws, bs = support.mlp_operands([rows], [75, 64, 130, 9], dtype, bias="some")
            oracle.assert_mlp(support.mlp(x, ws, bs, relu_last), x, ws, bs, relu_last)
""",
        value,
    )
