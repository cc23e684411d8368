"""Strict fp32 on AMX (src/cpu/amx): its error beside eager's, special values."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F

import fp32_data
from support import mlp, mlp_forward, rand

KERNELS = json.loads(torch.ops.hypatia.build_info())["cpu_kernels"]
pytestmark = pytest.mark.skipif(KERNELS["fp32"] != "amx", reason="needs AMX")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(fp32_data, "DEVICE", "cpu")
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("size", "name"), list(itertools.product(fp32_data.CPU_SIZES, fp32_data.CLASSES))
)
def test_no_more_error_than_eager(size, name):
    ours, theirs = fp32_data.compare(fp32_data.linear, F.linear, *fp32_data.CLASSES[name](*size))
    # At K = 4096 the worst element may be as bad as eager's: some spread is luck.
    spread = 1.05 if size[2] > 2048 else 1
    assert ours[0] <= theirs[0] and ours[1] <= spread * theirs[1], (ours, theirs)


def relative(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("rows", "n", "k"), [(256, 512, 784), (2500, 64, 96), (96, 2100, 40)])
def test_gradients_have_no_more_error_than_eager(rows, n, k):
    x, w, dy = rand(rows, k), rand(n, k), rand(rows, n)
    _, activations = mlp_forward(x, [w], [None], False)
    got = torch.ops.hypatia.fused_mlp_backward(dy, x, [w], activations, None, [True, True, False])
    exact = dy.double() @ w.double(), dy.double().t() @ x.double()
    for ours, eager, want in zip(got, (dy @ w, dy.t() @ x), exact):
        assert relative(ours, want) <= relative(eager, want)


def test_what_is_not_finite_is_as_in_eager():
    x, w = rand(70, 100), rand(90, 100)
    x[3, 7], x[4, 99], x[5, 0] = float("inf"), float("nan"), -float("inf")
    x[6, 1], w[2, 1] = 3.4e38, 3.4e38
    w[8, 20], w[9, 21] = float("inf"), float("nan")
    x[:, 20] = 0
    got, want = mlp(x, [w], [None]), F.linear(x, w)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4, equal_nan=True)


def test_numbers_as_small_as_documented():
    x, w = rand(80, 200), rand(60, 200)
    small = torch.full((), 2.0**-100)
    got = mlp(x * small, [w], [None])
    assert relative(got, (x * small).double() @ w.double().t()) < 1e-6
