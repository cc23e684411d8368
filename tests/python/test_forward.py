"""The forward on shapes of every kind, against the fp64 oracle."""

import itertools

import pytest
import torch

from oracle import DTYPES, assert_forward
from support import fused, operands

LEADING = [(), (1,), (3,), (129,), (2, 3), (7, 1, 10), (2, 1, 3, 2)]
K_AND_N = [
    (1, 1),
    (1, 7),
    (3, 10),
    (7, 3),
    (10, 129),
    (129, 10),
    (784, 129),
    (1000, 7),
    (7, 1000),
]


def check(input, weight, bias=None, what="output"):
    got = fused(input, weight, bias)
    assert_forward(got, input, weight, bias, what)
    assert got.is_contiguous()
    meta = fused(*(t if t is None else t.to("meta") for t in (input, weight, bias)))
    assert (got.shape, got.dtype, got.stride()) == (
        meta.shape,
        meta.dtype,
        meta.stride(),
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(dtype, leading, bias):
    for k, n in K_AND_N:
        check(*operands(leading, k, n, dtype, bias), what=f"K={k} N={n}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m, k, n", [(129, 784, 1000), (1000, 129, 7)])
def test_real_layers(m, k, n, dtype):
    check(*operands((m,), k, n, dtype))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_dimension_may_be_zero(dtype, bias):
    for rank in range(1, 5):
        # Every way to choose which of the leading sizes, K and N are zero.
        for sizes in itertools.product((0, 3), repeat=rank + 1):
            if 0 in sizes:
                *leading, k, n = sizes
                check(*operands(leading, k, n, dtype, bias), what=f"{sizes}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_inputs_give_relu_of_bias(dtype):
    bias = torch.tensor([-1.5, 0.0, 2.5], dtype=dtype)
    got = fused(torch.empty(4, 2, 0, dtype=dtype), torch.empty(3, 0, dtype=dtype), bias)
    assert torch.equal(got, bias.clamp(min=0).expand(4, 2, 3))
    assert torch.equal(
        fused(torch.empty(4, 0, dtype=dtype), torch.empty(3, 0, dtype=dtype)),
        torch.zeros(4, 3, dtype=dtype),
    )


def test_arguments_by_name():
    input, weight, bias = operands((4,), 3, 5)
    want = fused(input, weight, bias)
    assert torch.equal(fused(bias=bias, weight=weight, input=input), want)
    assert torch.equal(fused.default(input, weight, bias), want)
    assert torch.equal(fused(input, weight, None), fused(input, weight))


def test_result_is_memory_of_its_own():
    """Also where nothing needs computing, the result aliases no argument."""
    for leading, k, n in [((4,), 3, 5), ((4,), 0, 5), ((), 0, 5)]:
        arguments = operands(leading, k, n)
        copies = [t.clone() for t in arguments]
        fused(*arguments).fill_(-7)
        assert all(map(torch.equal, arguments, copies))


def test_schemas():
    """The texts of the Contract: scripts in the wild rely on them."""
    assert str(fused.default._schema) == (
        "hypatia::fused_linear_relu(Tensor input, Tensor weight, "
        "Tensor? bias=None) -> Tensor"
    )
    assert str(torch.ops.hypatia.fused_linear_relu_backward.default._schema) == (
        "hypatia::fused_linear_relu_backward(Tensor grad_output, Tensor input, "
        "Tensor weight, Tensor output, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
    )
    assert str(torch.ops.hypatia.build_info.default._schema) == (
        "hypatia::build_info() -> str"
    )


def test_same_bits_every_time():
    arguments = operands((129,), 784, 10)
    want = fused(*arguments)
    assert all(torch.equal(fused(*arguments), want) for _ in range(10))
