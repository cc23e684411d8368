"""PyTorch's own audit of custom operators: schema, registrations, FakeTensor
and AOTDispatch, on both operators."""

import itertools

import pytest
import torch
from torch.library import opcheck
from torch.testing._internal.optests.generate_tests import OpCheckError

from oracle import DTYPES
from support import fused, fused_backward, operands, rand

CASES = [((), 3, 5), ((4,), 3, 5), ((2, 4), 3, 5), ((2, 1, 3), 7, 1), ((0,), 3, 5), ((4,), 0, 5)]
REQUIRES = [(False,) * 3, (True,) * 3, (True, False, False), (False, True, False)]


def requiring(tensors, requires):
    return tuple(
        t if t is None else t.detach().clone().requires_grad_(r)
        for t, r in zip(tensors, requires)
    )


@pytest.mark.parametrize("requires", REQUIRES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_forward(case, bias, requires):
    opcheck(fused.default, requiring(operands(*case, bias=bias), requires))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_forward_in_other_dtypes(dtype):
    # In 16 bits the traced sum rounds in another order than the eager one.
    tolerance = 4 * torch.finfo(dtype).eps
    arguments = operands((4,), 3, 5, dtype, requires_grad=True)
    opcheck(fused.default, arguments, atol=tolerance, rtol=tolerance)


def test_forward_on_views():
    input, weight, bias = rand(3, 4).t(), rand(5, 6)[:, ::2], rand(1).expand(5)
    opcheck(fused.default, (input, weight, bias))
    opcheck(fused.default, (input.requires_grad_(), weight.requires_grad_(), bias))


@pytest.mark.parametrize("requires", [(False,) * 4, (True, True, True, False)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(case, requires):
    input, weight, bias = operands(*case)
    output = fused(input, weight, bias)
    arguments = requiring((torch.randn_like(output), input, weight, output), requires)
    opcheck(fused_backward.default, (*arguments, [True, True, True]))


@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=3)), ids=str)
def test_backward_masks(mask):
    input, weight, bias = operands((4,), 3, 5)
    output = fused(input, weight, bias)
    arguments = (torch.randn_like(output), input, weight, output)
    opcheck(fused_backward.default, (*arguments, list(mask)))
    if any(mask):
        opcheck(
            fused_backward.default,
            (*requiring(arguments, (True, True, True, False)), list(mask)),
        )


def test_build_info():
    """All but AOTDispatch, which compares results as tensors: a string fails
    there, whatever the operator does."""
    opcheck(
        torch.ops.hypatia.build_info.default,
        (),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_opcheck_can_fail():
    """A sloppy sibling of the operator: a wrong fake shape is seen."""
    with torch.library._scoped_library("hypatia_sloppy", "DEF") as library:
        library.define("op(Tensor x) -> Tensor")
        library.impl("op", lambda x: x.relu(), "CPU")
        library.impl("op", lambda x: x.new_empty(x.shape[:-1]), "Meta")
        with pytest.raises(OpCheckError):
            opcheck(torch.ops.hypatia_sloppy.op.default, (rand(4, 3),))
