"""fused_mlp forward on chains of every kind, against the fp64 oracle."""

import itertools

import pytest
import torch

from oracle import DTYPES, assert_close, assert_mlp, mlp_layers
from support import (
    eager_mlp,
    fused,
    mlp,
    mlp_backward,
    mlp_forward,
    mlp_operands,
    rand,
    split,
)
from test_strides import BIASES, INPUTS, WEIGHTS, negative, offset

LEADING = [(), (1,), (3,), (129,), (2, 3), (2, 1, 3, 2)]
WIDTHS = [(7, 5), (1, 1, 1), (3, 10, 7), (64, 33, 129, 10), (784, 100, 64, 10), (5,) * 9]
BOTH = pytest.mark.parametrize("relu_last", [False, True], ids=["linear_last", "relu_last"])


def check(input, weights, biases, relu_last=False, what="output"):
    """The result of both forward operators, and the activations of one."""
    got = mlp(input, weights, biases, relu_last)
    assert_mlp(got, input, weights, biases, relu_last, what)
    assert got.is_contiguous()
    output, activations = mlp_forward(input, weights, biases, relu_last)
    assert_mlp(output, input, weights, biases, relu_last, what)
    assert output.is_contiguous() and activations.dtype == input.dtype
    layers = mlp_layers(input, weights, biases, relu_last)
    for i, part in enumerate(split(activations, input, weights)):
        assert_close(part, *layers[i], f"{what}, result of layer {i}")

    def meta(t):
        return t if t is None else t.to("meta")

    of_meta = meta(input), [*map(meta, weights)], [*map(meta, biases)], relu_last
    for ours, fake in [(got, mlp(*of_meta)), *zip((output, activations), mlp_forward(*of_meta))]:
        assert (ours.shape, ours.dtype, ours.stride()) == (fake.shape, fake.dtype, fake.stride())


@BOTH
@pytest.mark.parametrize("bias", [True, False, "some"])
@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(dtype, leading, bias, relu_last):
    for widths in WIDTHS:
        check(*mlp_operands(leading, widths, dtype, bias), relu_last, f"{widths}")


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_dimension_may_be_zero(dtype, relu_last):
    for rank, depth in itertools.product([1, 2, 3], [1, 2, 3]):
        for sizes in itertools.product((0, 3), repeat=rank + depth):
            if 0 in sizes:
                arguments = mlp_operands(sizes[: rank - 1], sizes[rank - 1 :], dtype, "some")
                check(*arguments, relu_last, f"{sizes}")


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_input_strides(dtype, name):
    for shape in [(9, 7), (4, 6, 10), (2, 3, 5, 7)]:
        _, weights, biases = mlp_operands((), (shape[-1], 6, 5), dtype)
        check(INPUTS[name](rand(*shape, dtype=dtype)), weights, biases, what=f"{shape}")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_strides(dtype, name, place):
    input, weights, biases = mlp_operands((9,), (7, 6, 5, 4), dtype)
    weights[place] = WEIGHTS[name](weights[place])
    check(input, weights, biases)


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_strides(dtype, name):
    input, weights, biases = mlp_operands((9,), (7, 6, 5, 4), dtype)
    check(input, weights, [BIASES[name](bias) for bias in biases])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misalignment(dtype):
    for elements in range(1, 9):
        input, weights, biases = mlp_operands((33,), (40, 24, 16), dtype)
        moved = [[offset(t, elements) for t in ts] for ts in ([input], weights, biases)]
        check(*moved[0], *moved[1:])


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_lazy_negation(dtype):
    input, weights, biases = mlp_operands((9,), (7, 6, 5), dtype)
    for places in itertools.product([False, True], repeat=3):
        chosen = [
            [negative(t) if lazy else t for t in ts]
            for lazy, ts in zip(places, ([input], weights, biases))
        ]
        check(*chosen[0], *chosen[1:], what=f"{places}")


def test_lazy_zeros():
    """Forward-mode AD brings tensors that are zero without memory."""
    input, weights, biases = mlp_operands((4,), (7, 6, 5))
    zeros = torch._efficientzerotensor
    got = mlp(zeros(4, 7), weights, biases)
    assert torch.equal(got, mlp(torch.zeros(4, 7), weights, biases))
    got = mlp(input, weights, [zeros(6), zeros(5)])
    assert torch.equal(got, mlp(input, weights, [torch.zeros(6), torch.zeros(5)]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_layer_is_the_layer(dtype):
    input, weights, biases = mlp_operands((9,), (7, 5), dtype)
    assert torch.equal(mlp(input, weights, biases, True), fused(input, weights[0], biases[0]))
    output, activations = mlp_forward(input, weights, biases, True)
    assert torch.equal(output, fused(input, weights[0], biases[0])) and not activations.numel()


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_as_eager(dtype, relu_last):
    for value in [torch.nan, torch.inf, -torch.inf, -0.0, 1e-40]:
        input, weights, biases = mlp_operands((9,), (7, 6, 5), dtype)
        input[3, 5] = value
        got, want = (f(input, weights, biases, relu_last) for f in (mlp, eager_mlp))
        assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


def test_gaps_between_activations_are_zero():
    """No garbage, which differs from run to run, in a result."""
    input, weights, biases = mlp_operands((3,), (7, 5, 3, 2))
    torch.full((1 << 16,), torch.nan)  # what the allocator may hand out again
    _, activations = mlp_forward(input, weights, biases, False)
    assert activations.numel() == 64 + 9
    assert not activations[15:64].any()


def test_arguments():
    input, weights, biases = mlp_operands((4,), (3, 5, 2))
    want = mlp(input, weights, biases)
    named = mlp(relu_last=False, biases=biases, weights=weights, input=input)
    assert torch.equal(named, want)
    assert torch.equal(mlp.default(input, tuple(weights), tuple(biases)), want)
    assert torch.equal(mlp(input, weights, biases, True), want.relu())


def test_result_is_memory_of_its_own():
    for leading, widths in [((4,), (3, 5, 2)), ((4,), (0, 5)), ((), (3, 0, 5))]:
        input, weights, biases = mlp_operands(leading, widths)
        arguments = [input, *weights, *biases]
        copies = [t.clone() for t in arguments]
        mlp(input, weights, biases).fill_(-7)
        for t in mlp_forward(input, weights, biases, True):
            t.fill_(-7)
        assert all(map(torch.equal, arguments, copies))


def test_same_bits_every_time():
    arguments = mlp_operands((129,), (784, 100, 10))
    want = mlp(*arguments)
    assert all(torch.equal(mlp(*arguments), want) for _ in range(10))
    assert torch.equal(mlp_forward(*arguments, False)[0], want)


def test_schemas():
    """The texts of the Contract: scripts in the wild rely on them."""
    assert str(mlp.default._schema) == (
        "hypatia::fused_mlp(Tensor input, Tensor[] weights, Tensor?[] biases, "
        "bool relu_last=False) -> Tensor"
    )
    assert str(mlp_backward.default._schema) == (
        "hypatia::fused_mlp_backward(Tensor grad_output, Tensor input, Tensor[] weights, "
        "Tensor activations, Tensor? output, bool[] output_mask) -> Tensor[]"
    )


def test_the_bound_can_fail():
    """A chain whose middle layer is off by a little is seen."""
    for dtype, little in [(torch.float32, 1e-2), (torch.float64, 1e-10)]:
        input, weights, biases = mlp_operands((64,), (64, 64, 64, 64), dtype)
        wrong = [weights[0], weights[1] * (1 + little), weights[2]]
        with pytest.raises(AssertionError, match="out of bound"):
            assert_mlp(mlp(input, wrong, biases), input, weights, biases)
