"""Every refusal of fused_mlp and its backward, by its exact text."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from support import mlp, mlp_backward, mlp_forward, mlp_operands
from test_errors import KINDS, VARIANTS, assert_refused, zeros

X, W, V = zeros(4, 3), zeros(5, 3), zeros(2, 5)
B, C = zeros(5), zeros(2)

# name: (input, weights, biases), what is wrong
FORWARD = {
    "integer input": ((X.int(), [W], [B]), f"expected input {KINDS}, got Int"),
    "scalar input": ((zeros(), [W], [B]), "expected input of shape [*, K], got a scalar"),
    "no layer": ((X, [], []), "expected weights of at least one layer, got none"),
    "integer weight": ((X, [W, V.int()], [B, C]), f"expected weights[1] {KINDS}, got Int"),
    "double weight": (
        (X, [W, V.double()], [B, C]),
        "expected weights[1] of input's dtype Float, got Double",
    ),
    "1-D weight": ((X, [zeros(3), V], [B, C]), "expected weights[0] of shape [N, K], got [3]"),
    "other K": (
        (X, [zeros(5, 4), V], [B, C]),
        "expected weights[0] of shape [N, 3] for input [4, 3], got [5, 4]",
    ),
    "layers that do not meet": (
        (X, [W, zeros(2, 6)], [B, C]),
        "expected weights[1] of shape [N, 5] behind weights[0] [5, 3], got [2, 6]",
    ),
    "fewer biases": ((X, [W, V], [B]), "expected as many biases as weights, 2, got 1"),
    "more biases": ((X, [W], [B, C]), "expected as many biases as weights, 1, got 2"),
    "half bias": (
        (X, [W, V], [None, C.half()]),
        "expected biases[1] of input's dtype Float, got Half",
    ),
    "bool bias": ((X, [W, V], [B.bool(), C]), f"expected biases[0] {KINDS}, got Bool"),
    "longer bias": ((X, [W, V], [B, B]), "expected biases[1] of shape [2], got [5]"),
    "scalar bias": ((X, [W, V], [zeros(), C]), "expected biases[0] of shape [5], got []"),
    "the first of many": (
        (X, [W.int(), zeros(1)], [C.int()]),
        f"expected weights[0] {KINDS}, got Int",
    ),
}

DY, A, MASK = zeros(4, 2), zeros(20), [True] * 5

# name: (grad_output, input, weights, activations, output, mask), what is wrong
BACKWARD = {
    "no layer": ((DY, X, [], A, None, MASK), "expected weights of at least one layer, got none"),
    "layers that do not meet": (
        (DY, X, [W, zeros(2, 6)], A, None, MASK),
        "expected weights[1] of shape [N, 5] behind weights[0] [5, 3], got [2, 6]",
    ),
    "other gradient": (
        (zeros(4, 3), X, [W, V], A, None, MASK),
        "expected grad_output of shape [4, 2], got [4, 3]",
    ),
    "half gradient": (
        (DY.half(), X, [W, V], A, None, MASK),
        "expected grad_output of input's dtype Float, got Half",
    ),
    "fewer activations": (
        (DY, X, [W, V], zeros(19), None, MASK),
        "expected activations of shape [20], as the forward call returned, got [19]",
    ),
    "activations as they are": (
        (DY, X, [W, V], zeros(4, 5), None, MASK),
        "expected activations of shape [20], as the forward call returned, got [4, 5]",
    ),
    "other output": (
        (DY, X, [W, V], A, zeros(4, 5), MASK),
        "expected output of shape [4, 2], got [4, 5]",
    ),
    "short mask": (
        (DY, X, [W, V], A, None, [True] * 4),
        "expected output_mask of 5 entries, one for input and two a layer, got 4",
    ),
    "no mask": (
        (DY, X, [W, V], A, DY, []),
        "expected output_mask of 5 entries, one for input and two a layer, got 0",
    ),
}


def each(change, arguments):
    """`change` of every tensor, in lists too."""
    if isinstance(arguments, (list, tuple)):
        return [each(change, a) for a in arguments]
    return change(arguments) if isinstance(arguments, torch.Tensor) else arguments


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", FORWARD)
def test_forward(case, variant):
    arguments, text = FORWARD[case]
    arguments = each(VARIANTS[variant], arguments)
    assert_refused(mlp, arguments, f"hypatia::fused_mlp: {text}")
    assert_refused(mlp_forward, (*arguments, False), f"hypatia::fused_mlp: {text}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", BACKWARD)
def test_backward(case, variant):
    arguments, text = BACKWARD[case]
    arguments = each(VARIANTS[variant], arguments)
    assert_refused(mlp_backward, arguments, f"hypatia::fused_mlp_backward: {text}")


def test_on_fake_tensors():
    with FakeTensorMode() as mode:
        for function, name, cases in [
            (mlp, "fused_mlp", FORWARD),
            (mlp_backward, "fused_mlp_backward", BACKWARD),
        ]:
            for arguments, text in cases.values():
                fake = each(mode.from_tensor, arguments)
                assert_refused(function, fake, f"hypatia::{name}: {text}")


@pytest.mark.parametrize("case", ["scalar input", "no layer", "other K", "fewer biases"])
def test_under_vmap(case):
    """Batching excuses nothing. The sizes in the text are one sample's."""
    (input, *rest), text = FORWARD[case]
    for function in (mlp, lambda *a: mlp_forward(*a, False)):
        batched = torch.func.vmap(lambda x: function(x, *rest))
        assert_refused(batched, [torch.stack([input, input])], f"hypatia::fused_mlp: {text}")


@pytest.mark.parametrize("case", ["other gradient", "fewer activations", "short mask"])
def test_backward_under_vmap(case):
    (grad_output, *rest), text = BACKWARD[case]
    batched = torch.func.vmap(lambda dy: mlp_backward(dy, *rest))
    stacked = [torch.stack([grad_output, grad_output])]
    assert_refused(batched, stacked, f"hypatia::fused_mlp_backward: {text}")


@pytest.mark.parametrize("case", ["no layer", "other K", "fewer biases", "longer bias"])
def test_with_tangents(case):
    """Forward mode goes another way, past the same checks."""
    (input, *rest), text = FORWARD[case]
    for function in (mlp, lambda *a: mlp_forward(*a, False)):
        pushed = lambda x: torch.func.jvp(lambda x: function(x, *rest), (x,), (x,))  # noqa: E731
        assert_refused(pushed, [input], f"hypatia::fused_mlp: {text}")


def test_devices():
    cases = {"weights[1]": (X, [W, V.to("meta")], [B, C]), "biases[0]": (X, [W], [B.to("meta")])}
    for name, arguments in cases.items():
        text = f"expected {name} on input's device cpu, got meta"
        assert_refused(mlp, arguments, f"hypatia::fused_mlp: {text}")
    for place, name in enumerate(["grad_output", "input", None, "activations", "output"]):
        arguments = [DY, X, [W, V], A, DY, MASK]
        if name is None or name == "input":
            continue
        arguments[place] = arguments[place].to("meta")
        text = f"expected {name} on input's device cpu, got meta"
        assert_refused(mlp_backward, arguments, f"hypatia::fused_mlp_backward: {text}")


def test_layouts():
    for place in range(2):
        weights = [W.clone(), V.clone()]
        weights[place] = weights[place].to_sparse()
        text = f"expected a strided weights[{place}], got layout Sparse"
        assert_refused(mlp, (X, weights, [B, C]), f"hypatia::fused_mlp: {text}")


def test_wrong_kinds_of_argument():
    """Not ours: the dispatcher's own message, which names the operator."""
    for arguments in [(X,), (X, [None], [None]), (X, W, B, "yes")]:
        with pytest.raises((RuntimeError, TypeError), match="hypatia::fused_mlp"):
            mlp(*arguments)


def test_errors_leave_nothing_behind():
    input, weights, biases = mlp_operands((4,), (3, 5, 2), requires_grad=True)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            mlp(input, weights, biases[:1])
        mlp(input, weights, biases).sum().backward()
