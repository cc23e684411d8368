"""Kernels of ours on the CPU (src/cpu): fp32, fp16 and bfloat16, few rows and many."""

import itertools
import json

import pytest
import torch

import oracle
from support import eager_mlp, fused, mlp, mlp_forward, mlp_operands, python, python_ok, rand, split

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KERNELS = json.loads(torch.ops.hypatia.build_info())["cpu_kernels"]
HAS_KERNELS = KERNELS["isa"] != "scalar"

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
@pytest.mark.parametrize(("least", "most"), [(1, 8), (9, 64), (65, 130), (9, 70)])
def test_a_row_is_the_same_bits_in_every_batch(dtype, least, most):
    if (least, most) == (9, 70) and dtype == torch.float32 and KERNELS["fp32"] == "amx":
        pytest.skip("fp32 goes from FMA to AMX behind 64 rows")
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


def gradients(x, weights, biases, dy, relu_last=False, mask=None):
    """(input, activations, output) of the forward call, then all that `mask` wants."""
    output, activations = mlp_forward(x, weights, biases, relu_last)
    mask = mask or [True] * (1 + 2 * len(weights))
    y = output if relu_last else None
    return torch.ops.hypatia.fused_mlp_backward(dy, x, weights, activations, y, mask)


@pytest.mark.skipif(not HAS_KERNELS, reason="needs AVX2")
def test_where_gradients_run():
    x, weights, biases = mlp_operands([40], [20, 30, 6])
    dy = rand(40, 6)
    assert not products(lambda: gradients(x, weights, biases, dy))
    assert not products(lambda: gradients(x, weights, biases, dy, True))
    assert products(lambda: gradients(x[:2], weights, biases, dy[:2])), "few rows"
    half = [t.half() for t in weights], [t.half() for t in biases]
    # ATen's on AMX alone, which has 16-bit products.
    assert bool(products(lambda: gradients(x.half(), *half, dy.half()))) == (KERNELS["amx_gflops"] > 0)


GRADIENTS_OF_16_BITS = """
import torch
import itertools
from test_cpu_kernels import gradients, products
from support import fused, mlp_forward, mlp_operands, rand, split

torch.manual_seed(0)
backward = torch.ops.hypatia.fused_mlp_backward
for dtype, relu_last, leading in itertools.product(
    (torch.bfloat16, torch.float16), (False, True), ([40], [3, 20])
):
    x, weights, biases = mlp_operands(leading, [300, 200, 33, 6], dtype, "some")
    dy = rand(*leading, 6).to(dtype)
    output, activations = mlp_forward(x, weights, biases, relu_last)
    y = output if relu_last else None
    run = lambda mask: backward(dy, x, weights, activations, y, mask)
    assert not products(lambda: run([True] * 7))
    every = run([True] * 7)
    assert all(g.dtype == dtype for g in every)
    wide = [t.float() for t in weights]
    parts = [t.float() for t in split(activations, x, weights)]
    want = [None] * 7
    g = dy.float().reshape(-1, 6)
    for i in reversed(range(3)):
        front = (x.float() if i == 0 else parts[i - 1]).reshape(g.shape[0], -1)
        after = output.float() if i == 2 else parts[i]
        if i < 2 or relu_last:
            g = g * (after.reshape(g.shape) > 0)
        want[1 + i], want[4 + i] = g.t() @ front, g.sum(0)
        g = g @ wide[i]
    want[0] = g.reshape(x.shape)
    for got, exact in zip(every, want):
        error = (got.double() - exact.double()).norm() / exact.double().norm()
        # One rounding: a quarter to half of the last place.
        assert error < (0.003 if dtype == torch.bfloat16 else 0.0004), error
    for bits in itertools.product((False, True), repeat=7):
        kept = [g for g, bit in zip(every, bits) if bit]
        got = run(list(bits))
        assert len(got) == len(kept) and all(map(torch.equal, got, kept)), bits
x, w, b = rand(40, 30).half(), rand(20, 30).half(), rand(20).half()
leaves = [t.requires_grad_() for t in (x, w, b)]
got = torch.autograd.grad(fused(x, w, b).square().sum(), leaves)
want = torch.autograd.grad(torch.relu(torch.nn.functional.linear(x, w, b)).square().sum(), leaves)
for a, b in zip(got, want):
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-1)
"""


@pytest.mark.skipif(not HAS_KERNELS, reason="needs AVX2")
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_gradients_of_16_bits_without_amx(isa, monkeypatch):
    """In fp32, rounded once: of no product of ATen's, and close to exact."""
    monkeypatch.setenv("HYPATIA_CPU_ISA", isa)
    done = python(GRADIENTS_OF_16_BITS)  # the profiler complains of a missing GPU
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("rows", [4, 40, 64, 300])
@pytest.mark.parametrize("relu_last", [False, True])
def test_threads_change_no_bit_of_a_gradient(rows, relu_last):
    x, weights, biases = mlp_operands([rows], [500, 417, 64, 10])
    dy = rand(rows, 10)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(gradients(x, weights, biases, dy, relu_last))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("relu_last", [False, True])
def test_any_strides_and_masks_of_gradients(relu_last):
    """The same bits however operands lie and whatever else is wanted."""
    x, weights, biases = mlp_operands([36], [40, 33, 12])
    dy = rand(36, 12)
    want = gradients(x, weights, biases, dy, relu_last)
    wide = rand(36, 64)
    wide[:, 3:43] = x
    forms = [
        (wide[:, 3:43], weights, dy),
        (x.t().contiguous().t(), weights, dy),
        (x, [w.t().contiguous().t() for w in weights], dy),
        (x, weights, dy.t().contiguous().t()),
        (x.view(3, 12, 40), weights, dy.view(3, 12, 12)),
    ]
    _, activations = mlp_forward(x, weights, biases, relu_last)
    y = mlp(x, weights, biases, relu_last) if relu_last else None
    backward = torch.ops.hypatia.fused_mlp_backward
    for a, ws, g in forms:
        out = y.view(g.shape) if relu_last else None
        got = backward(g, a, ws, activations, out, [True] * 5)
        assert all(torch.equal(p.reshape(q.shape), q) for p, q in zip(got, want))
    for bits in itertools.product((False, True), repeat=5):
        got = backward(dy, x, weights, activations, y, list(bits))
        kept = [q for q, bit in zip(want, bits) if bit]
        assert len(got) == len(kept) and all(torch.equal(p, q) for p, q in zip(got, kept))
    scalar = torch.ones(()).expand(36, 12)
    got = backward(scalar, x, weights, activations, y, [True] * 5)
    dense = backward(torch.ones(36, 12), x, weights, activations, y, [True] * 5)
    assert all(torch.equal(p, q) for p, q in zip(got, dense))


@pytest.mark.parametrize("rows", [5, 40])
def test_gradients_behind_special_values(rows):
    """NaN passes the mask, as threshold_backward has it."""
    x, w, dy = rand(rows, 20), rand(6, 20), rand(rows, 6)
    y = rand(rows, 6)
    y[0, 0], y[1, 1], y[2, 2], y[3, 3] = float("nan"), float("inf"), 0.0, -0.0
    got = torch.ops.hypatia.fused_linear_relu_backward(dy, x, w, y, [True] * 3)
    masked = torch.ops.aten.threshold_backward(dy, y, 0)
    torch.testing.assert_close(got[2], masked.sum(0))
    torch.testing.assert_close(got[0], masked @ w)
    torch.testing.assert_close(got[1], masked.t() @ x)


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
    [
        ("HYPATIA_CPU_ISA", "scalar"),
        ("HYPATIA_CPU_ISA", "avx2"),
        ("HYPATIA_CPU_ISA", "avx512"),
        ("HYPATIA_CPU_BF16", "widen"),
        ("HYPATIA_FP32", "ieee"),
    ],
)
def test_other_instruction_sets(variable, value, monkeypatch):
    """The same suite's oracle in a process that may not use what is best."""
    monkeypatch.setenv(variable, value)
    python_ok(
        """
import json, torch, oracle, support
info = json.loads(torch.ops.hypatia.build_info())["cpu_kernels"]
import sys
names = info["isa"], info["bf16"], "ieee" if info["fp32"] == "fma" else ""
assert sys.argv[1] in names or sys.argv[1] > info["isa"] == "avx2", info
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for rows in (1, 8, 33, 100):
        for relu_last in (False, True):
            x, ws, bs = support.mlp_operands([rows], [75, 64, 130, 9], dtype, bias="some")
            oracle.assert_mlp(support.mlp(x, ws, bs, relu_last), x, ws, bs, relu_last)
    x, w, b = support.rand(rows, 75), support.rand(64, 75), support.rand(64)
    y, dy = support.fused(x, w, b), support.rand(rows, 64)
    got = torch.ops.hypatia.fused_linear_relu_backward(dy, x, w, y, [True] * 3)
    oracle.assert_gradients(got, dy, x, w, y)
""",
        value,
    )
