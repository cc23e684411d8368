"""The rules of autograd: what is recorded, saved, computed and refused."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from oracle import assert_forward, assert_gradients
from support import BACKWARD, eager, fused, fused_backward, operands, rand

SUBSETS = list(itertools.product([False, True], repeat=3))


class Masks(TorchDispatchMode):
    """Records the output masks of the backward calls."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() == BACKWARD:
            self.seen.append(tuple(args[4]))
        return function(*args, **(kwargs or {}))


def leaves_where(requires, leading=(4,), k=3, n=5):
    arguments = operands(leading, k, n)
    return [t.requires_grad_(r) for t, r in zip(arguments, requires)]


@pytest.mark.parametrize("requires", SUBSETS, ids=str)
def test_only_what_is_required_is_computed(requires):
    leaves = leaves_where(requires)
    output = fused(*leaves)
    assert output.requires_grad == any(requires)
    if not any(requires):
        assert output.grad_fn is None
        return
    with Masks() as masks:
        output.sum().backward()
    assert masks.seen == [requires]
    assert tuple(t.grad is not None for t in leaves) == requires


@pytest.mark.parametrize("asked", [s for s in SUBSETS if any(s)], ids=str)
def test_only_what_is_asked_for_is_computed(asked):
    leaves = leaves_where((True, True, True))
    wanted = [t for t, a in zip(leaves, asked) if a]
    output = fused(*leaves)
    with Masks() as masks:
        grads = torch.autograd.grad(output.sum(), wanted)
    assert masks.seen == [asked]
    assert [g.shape for g in grads] == [t.shape for t in wanted]
    assert all(t.grad is None for t in leaves)


def test_without_bias_no_bias_gradient():
    input, weight, _ = leaves_where((True, True, False))
    with Masks() as masks:
        fused(input, weight).sum().backward()
    assert masks.seen == [(True, True, False)]


def test_node():
    output = fused(*leaves_where((True, False, True)))
    assert output.grad_fn.name() == "FusedLinearReluBackward"
    edges = [edge for edge, _ in output.grad_fn.next_functions]
    assert [edge is not None for edge in edges] == [True, False, True]
    assert output._version == 0 and output.is_leaf is False


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_recording_modes(mode):
    leaves = leaves_where((True, True, True))
    want = fused(*leaves)
    with mode():
        output = fused(*leaves)
        assert output.is_inference() == (mode is torch.inference_mode)
    assert not output.requires_grad and output.grad_fn is None
    assert torch.equal(output, want)


def test_inference_tensors_cannot_be_saved():
    with torch.inference_mode():
        input = rand(4, 3)
    weight = rand(5, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        fused(input, weight)
    assert_forward(fused(input, weight.detach()), input, weight.detach())


def test_second_backward():
    leaves = leaves_where((True, True, True))
    loss = fused(*leaves).sum()
    loss.backward(retain_graph=True)
    first = [t.grad.clone() for t in leaves]
    loss.backward()
    for t, grad in zip(leaves, first):
        assert torch.equal(t.grad, 2 * grad)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("changed", ["input", "weight", "output"])
def test_changing_what_was_saved_is_an_error(changed):
    input, weight, bias = (t * 1 for t in leaves_where((True, True, True)))
    output = fused(input, weight, bias)
    tensors = {"input": input, "weight": weight, "output": output}
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_in_place_on_the_output_is_an_error_in_the_graph_too():
    output = fused(*leaves_where((True, True, True)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.add_(1).sum().backward()


def test_in_place_on_the_bias_is_allowed():
    """As in eager: no derivative needs the bias."""
    input, weight, bias = (t * 1 for t in leaves_where((True, True, True)))
    output = fused(input, weight, bias)
    bias.zero_()
    output.sum().backward()


def test_input_of_a_frozen_layer_may_change():
    """As in eager: the input's own gradient does not need the input."""
    for function in (eager, fused):
        input, weight, bias = leaves_where((True, False, True))
        activation = input * 1
        output = function(activation, weight, bias)
        activation.add_(1)
        output.sum().backward()


def test_weight_of_a_first_layer_may_change():
    """As in eager: no gradient needs it where the input is data."""
    for function in (eager, fused):
        input, weight, bias = leaves_where((False, True, True))
        output = function(input, weight, bias)
        with torch.no_grad():
            weight.add_(1)
        output.sum().backward()


def saved_by(function, leaves):
    """Which of the leaves the graph keeps alive."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        output = function(*leaves)
    del output
    return [t.data_ptr() in kept for t in leaves]


@pytest.mark.parametrize("requires", SUBSETS, ids=str)
def test_saved_tensors(requires):
    leaves = leaves_where(requires)
    assert saved_by(fused, leaves) == saved_by(eager, leaves)


def uses(storage):
    return torch._C._storage_Use_Count(storage._cdata)


def recorded():
    """An output, and the storages of input, weight and output, which nothing
    but the graph keeps alive."""
    input, weight, bias = (t * 1 for t in leaves_where((True, True, True)))
    output = fused(input, weight, bias)
    return output, [t.untyped_storage() for t in (input, weight, output)]


def test_nothing_outlives_the_graph():
    """A node that owned its own output would be a cycle, and never freed."""
    output, storages = recorded()
    assert all(uses(storage) > 1 for storage in storages)
    del output
    assert [uses(storage) for storage in storages] == [1, 1, 1]


def test_backward_frees_what_was_saved():
    """While the output, and so its node, lives on."""
    output, storages = recorded()
    output.sum().backward()
    assert [uses(storage) for storage in storages] == [1, 1, 2]


def test_saved_tensor_hooks():
    """Offloading to disk or CPU goes through these hooks."""
    leaves = leaves_where((True, True, True))
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t.clone()) or len(packed) - 1, lambda i: packed[i]
    ):
        output = fused(*leaves)
    assert len(packed) == 3
    got = torch.autograd.grad(output.sum(), leaves)
    want = torch.autograd.grad(fused(*leaves).sum(), leaves)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    leaves = leaves_where((True, True, True))
    output = checkpoint(fused, *leaves, use_reentrant=use_reentrant)
    output.sum().backward()  # the reentrant kind refuses autograd.grad
    got = [t.grad for t in leaves]
    want = torch.autograd.grad(fused(*leaves).sum(), leaves)
    assert all(map(torch.equal, got, want))


def test_anomaly_mode_names_the_node():
    input, weight, bias = leaves_where((True, True, True))
    grad_output = torch.full((4, 5), torch.nan)
    with (
        pytest.warns(UserWarning, match="Anomaly Detection|FusedLinearReluBackward"),
        torch.autograd.detect_anomaly(check_nan=True),
        pytest.raises(RuntimeError, match="FusedLinearReluBackward.*nan"),
    ):
        fused(input, weight, bias + 9).backward(grad_output)


def test_hooks_on_the_node():
    leaves = leaves_where((True, True, True))
    output = fused(*leaves)
    output.register_hook(lambda grad: 2 * grad)
    output.grad_fn.register_hook(lambda inputs, outputs: tuple(3 * g for g in inputs))
    got = torch.autograd.grad(output.sum(), leaves)
    want = torch.autograd.grad(6 * fused(*leaves).sum(), leaves)
    assert all(map(torch.allclose, got, want))


def test_backward_operator_has_no_output_gradient():
    """The mask is piecewise constant: `output` gets no gradient."""
    input, weight, _ = operands((4,), 3, 5)
    output = fused(input, weight).requires_grad_()
    grad_output = rand(4, 5, requires_grad=True)
    grads = fused_backward(grad_output, input, weight, output, [True] * 3)
    assert all(g.requires_grad for g in grads)
    second = torch.autograd.grad(
        sum(g.sum() for g in grads), (grad_output, output), allow_unused=True
    )
    assert second[0] is not None and second[1] is None


def test_forward_mode_carries_only_given_tangents():
    input, weight, bias = operands((4,), 3, 5)
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(fused(input, weight, bias)).tangent is None
        for place in range(3):
            arguments = [input, weight, bias]
            tangent = rand(*arguments[place].shape)
            arguments[place] = forward_ad.make_dual(arguments[place], tangent)
            dual = forward_ad.unpack_dual(fused(*arguments))
            expected = forward_ad.unpack_dual(eager(*arguments))
            assert torch.allclose(dual.tangent, expected.tangent, rtol=1e-5)
            assert dual.tangent.shape == dual.primal.shape


def test_deep_graphs_are_freed():
    """Without recursion: a long chain must not overflow the stack."""
    weight = torch.eye(4, requires_grad=True)
    y = rand(2, 4).abs()
    for _ in range(100_000):
        y = fused(y, weight)
    del y


def test_backward_of_a_view_of_the_output():
    leaves = leaves_where((True, True, True))
    output = fused(*leaves)
    grad_output = torch.zeros(4, 5)
    grad_output[1:3, ::2] = 1
    grads = torch.autograd.grad(output[1:3, ::2].sum(), leaves)
    assert_gradients(grads, grad_output, leaves[0].detach(), leaves[1].detach(), output.detach())
