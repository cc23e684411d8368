"""Autocast on the CPU: the operators run in its dtype, like linear."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from oracle import assert_forward, assert_gradients
from support import Layer, eager, fused, fused_backward, operands, rand

LOW = [torch.bfloat16, torch.float16]
pytestmark = pytest.mark.parametrize("low", LOW, ids=str)


class Casts(TorchDispatchMode):
    """Counts conversions between dtypes, by the shape that was converted."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("leading", [(), (9,), (2, 3)], ids=str)
def test_runs_in_lower_precision(low, leading, bias):
    arguments = operands(leading, 33, 17, bias=bias)
    with torch.autocast("cpu", dtype=low):
        got = fused(*arguments)
        assert eager(*arguments).dtype == low
    rounded = [t if t is None else t.to(low) for t in arguments]
    assert_forward(got, *rounded)


def test_mixed_dtypes_meet(low):
    """Half an input, half a weight: autocast makes them one dtype."""
    input, weight, bias = operands((9,), 33, 17)
    with torch.autocast("cpu", dtype=low):
        got = fused(input.to(low), weight, bias)
    assert_forward(got, input.to(low), weight.to(low), bias.to(low))
    other = LOW[1 - LOW.index(low)]
    with torch.autocast("cpu", dtype=low):
        got = fused(input.to(other), weight, bias)
    assert_forward(got, input.to(other).to(low), weight.to(low), bias.to(low))


def test_fp64_is_left_alone(low):
    """As eager's linear: autocast never narrows fp64, so a mix is an error."""
    input, weight, bias = operands((9,), 33, 17, torch.float64)
    with torch.autocast("cpu", dtype=low):
        assert_forward(fused(input, weight, bias), input, weight, bias)
        for function in (fused, eager):
            with pytest.raises(RuntimeError):
                function(input, weight.float(), bias.float())


def test_disabled_inside(low):
    arguments = operands((9,), 33, 17)
    with torch.autocast("cpu", dtype=low):
        with torch.autocast("cpu", enabled=False):
            got = fused(*arguments)
        assert fused(*arguments).dtype == low
    assert_forward(got, *arguments)
    assert fused(*arguments).dtype == torch.float32


def test_nested_in_another_dtype(low):
    arguments = operands((9,), 33, 17)
    other = LOW[1 - LOW.index(low)]
    with torch.autocast("cpu", dtype=low):
        with torch.autocast("cpu", dtype=other):
            assert fused(*arguments).dtype == other
        assert fused(*arguments).dtype == low


def test_weight_is_cast_once(low):
    """Autocast caches casts of leaves that need gradients, for the region."""
    leaves = operands((9,), 33, 17, requires_grad=True)
    for cached in (True, False):
        for function in (fused, eager):
            with Casts() as casts, torch.autocast("cpu", dtype=low, cache_enabled=cached):
                for _ in range(3):
                    function(*leaves)
            assert casts.shapes.count((17, 33)) == (1 if cached else 3), function
    # A new region casts anew: the optimizer has changed the weight meanwhile.
    with torch.no_grad():
        leaves[1].mul_(2)
    with torch.autocast("cpu", dtype=low):
        got = fused(*leaves).detach()
    assert_forward(got, *(t.detach().to(low) for t in leaves))


def test_gradients_have_the_parameters_dtype(low):
    leaves = operands((9,), 33, 17, requires_grad=True)
    with torch.autocast("cpu", dtype=low):
        output = fused(*leaves)
    grad_output = rand(9, 17, dtype=low)
    output.backward(grad_output)
    assert [t.grad.dtype for t in leaves] == [torch.float32] * 3
    # Computed in low precision, so exactly representable in it.
    grads = [t.grad.to(low) for t in leaves]
    assert all(torch.equal(g.float(), t.grad) for g, t in zip(grads, leaves))
    input, weight = (t.detach().to(low) for t in leaves[:2])
    assert_gradients(grads, grad_output, input, weight, output.detach())


def test_backward_inside_the_region(low):
    """Not recommended by PyTorch, and still right."""
    leaves = operands((9,), 33, 17, requires_grad=True)
    with torch.autocast("cpu", dtype=low):
        output = fused(*leaves)
        output.sum().backward()
    assert [t.grad.dtype for t in leaves] == [torch.float32] * 3


def test_backward_operator_itself(low):
    input, weight, bias = operands((9,), 33, 17)
    output, grad_output = fused(input, weight, bias), rand(9, 17)
    with torch.autocast("cpu", dtype=low):
        grads = fused_backward(grad_output, input, weight, output, [True] * 3)
    rounded = [t.to(low) for t in (grad_output, input, weight, output)]
    assert_gradients(grads, *rounded)


def test_forward_mode(low):
    input, weight, bias = operands((9,), 33, 17)

    def push(function):
        with torch.autocast("cpu", dtype=low):
            return torch.func.jvp(lambda x: function(x, weight, bias), (input,), (input,))

    for got, want in zip(push(fused), push(eager)):
        assert got.dtype == want.dtype == low
        scale = want.double().abs().max()
        # Two results in the same low dtype, from sums of the same products.
        assert (got.double() - want.double()).abs().max() <= 2 * torch.finfo(low).eps * scale


def test_gradient_scaling(low):
    """The mixed-precision recipe as a whole: scale, backward, unscale, step."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(Layer(13, 40), Layer(40, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    input, target = rand(65, 13), rand(65, 3).abs()
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=low):
            loss = (model(input) - target).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() == 1024.0
    assert losses[-1] < losses[0]
