"""Gradients of fused_mlp: the backward operator and what autograd makes of it,
against the oracle; what is saved, computed, refused; higher orders."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from oracle import DTYPES, assert_mlp_gradients
from support import (
    MLP_BACKWARD,
    eager_mlp,
    mlp,
    mlp_backward,
    mlp_forward,
    mlp_operands,
    rand,
    split,
)
from test_mlp import BOTH, WIDTHS
from test_strides import INPUTS, WEIGHTS

SHAPES = [((), (7, 5, 3)), ((10,), (7, 3)), ((129,), (10, 33, 7)), ((2, 3), (33, 17, 5, 4))]


def flat(arguments):
    """All tensors of (input, weights, biases), None where a bias is missing."""
    input, weights, biases = arguments
    return [input, *weights, *biases]


def check(grads, grad_output, arguments, relu_last, what=""):
    """`grads` in flat order, None where not asked for, are right."""
    input, weights, biases = arguments
    input, weights = input.detach(), [w.detach() for w in weights]
    biases = [b if b is None else b.detach() for b in biases]
    output, activations = mlp_forward(input, weights, biases, relu_last)
    hidden = split(activations, input, weights)
    last = output if relu_last else None
    assert_mlp_gradients(grads, grad_output, input, weights, hidden, last, what=what)


def spread(grads, mask):
    grads = iter(grads)
    return [next(grads) if m else None for m in mask]


@BOTH
@pytest.mark.parametrize("bias", [True, False, "some"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autograd(dtype, bias, relu_last):
    zero_sized = [((0,), (3, 5, 2)), ((4,), (0, 5, 2)), ((4,), (3, 0, 2)), ((2,), (3, 5, 0))]
    for leading, widths in SHAPES + [((9,), w) for w in WIDTHS[:4]] + zero_sized:
        arguments = mlp_operands(leading, widths, dtype, bias, requires_grad=True)
        output = mlp(*arguments, relu_last)
        assert output.grad_fn.name() == "FusedMlpBackward"
        grad_output = rand(*output.shape, dtype=dtype)
        output.backward(grad_output)
        grads = [t if t is None else t.grad for t in flat(arguments)]
        check(grads, grad_output, arguments, relu_last, f"{leading} {widths}")


@BOTH
@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=7)), ids=lambda m: "".join("nx"[b] for b in m))
def test_every_mask_of_the_operator(mask, relu_last):
    """Three layers: whatever is asked for comes, in order, and nothing else."""
    arguments = mlp_operands((9,), (7, 6, 5, 4))
    output, activations = mlp_forward(*arguments, relu_last)
    grad_output = torch.randn_like(output)
    input, weights, _ = arguments
    last = output if relu_last else None
    got = mlp_backward(grad_output, input, weights, activations, last, mask)
    assert len(got) == sum(mask)
    check(spread(got, mask), grad_output, arguments, relu_last)
    of_meta = mlp_backward(
        *(t.to("meta") for t in (grad_output, input)),
        [w.to("meta") for w in weights],
        activations.to("meta"),
        last if last is None else last.to("meta"),
        mask,
    )
    for ours, fake in zip(got, of_meta, strict=True):
        assert (ours.shape, ours.stride()) == (fake.shape, fake.stride())


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_of_grad_output(dtype, name):
    arguments = mlp_operands((4, 6), (7, 6, 10), dtype)
    for relu_last in (False, True):
        output, activations = mlp_forward(*arguments, relu_last)
        grad_output = INPUTS[name](torch.randn_like(output))
        last = output if relu_last else None
        got = mlp_backward(grad_output, *arguments[:2], activations, last, [True] * 5)
        check(got, grad_output, arguments, relu_last)
        assert all(g.is_contiguous() for g in got)


@pytest.mark.parametrize("name", WEIGHTS)
def test_strides_of_weights(name):
    input, weights, biases = mlp_operands((9,), (7, 6, 5))
    weights = [WEIGHTS[name](w) for w in weights]
    output, activations = mlp_forward(input, weights, biases, False)
    grad_output = torch.randn_like(output)
    got = mlp_backward(grad_output, input, weights, activations, None, [True] * 5)
    check(got, grad_output, (input, weights, biases), False)


def test_zero_stride_gradients():
    arguments = mlp_operands((9,), (7, 6, 5), requires_grad=True)
    for relu_last in (False, True):
        output = mlp(*arguments, relu_last)
        grads = torch.autograd.grad(output.sum(), flat(arguments))
        check(grads, torch.ones(()).expand_as(output), arguments, relu_last)


class Masks(TorchDispatchMode):
    """Records the output masks of the backward calls, and counts products."""

    def __init__(self):
        super().__init__()
        self.seen, self.others = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() == MLP_BACKWARD:
            self.seen.append(tuple(args[5]))
        else:
            self.others.append(function.name())
        return function(*args, **(kwargs or {}))


@BOTH
@pytest.mark.parametrize("requires", list(itertools.product([False, True], repeat=5)), ids=lambda m: "".join("nx"[b] for b in m))
def test_only_what_is_required_is_computed(requires, relu_last):
    """One call forward, one backward, with exactly the needed mask."""
    arguments = mlp_operands((9,), (7, 6, 5))
    leaves = [t.requires_grad_(r) for t, r in zip(flat(arguments), requires)]
    output = mlp(*arguments, relu_last)
    assert output.requires_grad == any(requires)
    if not any(requires):
        return
    grad_output = torch.randn_like(output)
    with Masks() as masks:
        output.backward(grad_output)
    assert masks.seen == [requires]
    assert not [name for name in masks.others if "mm" in name or "linear" in name]
    grads = [t.grad for t in leaves]
    assert tuple(g is not None for g in grads) == requires
    check(grads, grad_output, arguments, relu_last)


def test_only_what_is_asked_for_is_computed():
    arguments = mlp_operands((9,), (7, 6, 5), requires_grad=True)
    output = mlp(*arguments)
    for asked in range(5):
        with Masks() as masks:
            torch.autograd.grad(output.sum(), flat(arguments)[asked], retain_graph=True)
        assert masks.seen == [tuple(i == asked for i in range(5))]


def saved_by(function, arguments, relu_last):
    """Which of the tensors the graph keeps alive."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        output = function(*arguments, relu_last)
    return [t.data_ptr() in kept for t in [*flat(arguments), output]]


@BOTH
@pytest.mark.parametrize("requires", [r for r in itertools.product([False, True], repeat=5) if any(r)], ids=lambda m: "".join("nx"[b] for b in m))
def test_saved_tensors(requires, relu_last):
    """Of what users see, what eager's chain keeps and no more."""
    arguments = mlp_operands((9,), (7, 6, 5))
    for t, r in zip(flat(arguments), requires):
        t.requires_grad_(r)
    assert saved_by(mlp, arguments, relu_last) == saved_by(eager_mlp, arguments, relu_last)


@pytest.mark.parametrize("changed", ["input", "weights[0]", "weights[1]", "output"])
def test_changing_what_was_saved_is_an_error(changed):
    input, weights, biases = mlp_operands((9,), (7, 6, 5), requires_grad=True)
    input, weights = input * 1, [w * 1 for w in weights]
    output = mlp(input, weights, biases, True)
    tensors = {"input": input, "output": output, **{f"weights[{i}]": w for i, w in enumerate(weights)}}
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_changing_what_no_gradient_reads_is_allowed():
    """As in eager: biases, a plain last layer's output, a first weight under
    data, the input of a frozen first layer."""
    for function in (eager_mlp, mlp):
        input, weights, biases = mlp_operands((9,), (7, 6, 5), requires_grad=True)
        own = [b * 1 for b in biases]
        output = function(input, weights, own)
        for b in own:
            b.zero_()
        output.add_(1).sum().backward()

        output = function(input.detach(), weights, biases)
        with torch.no_grad():
            weights[0].add_(1)
        output.sum().backward()

        moved = input * 1
        output = function(moved, [weights[0].detach(), weights[1]], biases)
        moved.add_(1)
        output.sum().backward()


def test_second_backward():
    leaves = mlp_operands((9,), (7, 6, 5), requires_grad=True)
    loss = mlp(*leaves).sum()
    loss.backward(retain_graph=True)
    first = [t.grad.clone() for t in flat(leaves)]
    loss.backward()
    for t, grad in zip(flat(leaves), first):
        assert torch.equal(t.grad, 2 * grad)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def uses(storage):
    return torch._C._storage_Use_Count(storage._cdata)


@pytest.mark.parametrize("backward", [False, True])
def test_nothing_outlives_its_use(backward):
    """Neither the graph, by a cycle, nor its backward, what was saved."""
    input, weights, biases = mlp_operands((9,), (7, 6, 5), requires_grad=True)
    input, weights = input * 1, [w * 1 for w in weights]
    output = mlp(input, weights, biases, True)
    storages = [t.untyped_storage() for t in (input, *weights, output)]
    del input, weights
    assert all(uses(s) > 1 for s in storages)
    if backward:
        output.sum().backward()
        assert [uses(s) for s in storages] == [1, 1, 1, 2]
    else:
        del output
        assert [uses(s) for s in storages] == [1, 1, 1, 1]


def test_backward_frees_activations():
    """Which no user holds: only the hooks see them."""
    leaves, storages = mlp_operands((9,), (7, 6, 5), requires_grad=True), {}

    def pack(t):
        storages[t.numel()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = mlp(*leaves)
    assert uses(storages[9 * 6]) > 1
    output.sum().backward()
    assert uses(storages[9 * 6]) == 1 and output.grad_fn is not None


def test_saved_tensor_hooks_and_checkpointing():
    leaves = mlp_operands((9,), (7, 6, 5), requires_grad=True)
    want = torch.autograd.grad(mlp(*leaves).sum(), flat(leaves))
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t.clone()) or len(packed) - 1, lambda i: packed[i]
    ):
        output = mlp(*leaves)
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), flat(leaves)), want))
    output = checkpoint(mlp, *leaves, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), flat(leaves)), want))


def packed(relu_last=False, bias=True, places=None):
    """mlp as a function of its tensors alone, as gradcheck wants it, and
    arguments whose hidden results keep away from the ReLU's kink."""
    for _ in range(1000):
        input, weights, biases = mlp_operands((3,), (3, 4, 3, 2), torch.float64, bias)
        h, far = input, True
        for i, (w, b) in enumerate(zip(weights, biases)):
            z = torch.nn.functional.linear(h, w, b)
            far &= bool(z.abs().min() > 1e-3) and (i == 2 or bool((z > 0).any(0).all()))
            h = z.relu()
        if far:
            break
    else:
        raise AssertionError("no operands away from the kink")
    every = [input, *weights, *biases]
    moving = [i for i, t in enumerate(every) if t is not None and (not places or i in places)]

    def function(*tensors):
        full = list(every)
        for place, t in zip(moving, tensors):
            full[place] = t
        return mlp(full[0], full[1:4], full[4:], relu_last)

    return function, [every[i].requires_grad_() for i in moving]


PLACES = [None, [0], [1], [3], [2, 5], [6], [0, 3]]


@BOTH
@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.usefixtures("no_vmap_fallback")
def test_gradcheck(places, relu_last):
    for bias in (True, "some") if not places else (True,):
        function, leaves = packed(relu_last, bias, places)
        assert gradcheck(
            function,
            leaves,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            check_undefined_grad=True,
        )


@BOTH
@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.usefixtures("no_vmap_fallback")
def test_gradgradcheck(places, relu_last):
    function, leaves = packed(relu_last, True, places)
    assert gradgradcheck(
        function,
        leaves,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
        check_undefined_grad=True,
    )


def test_third_order():
    function, leaves = packed(places=[0, 1, 3])

    def first_order(*leaves):
        return torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)

    assert gradgradcheck(first_order, leaves)


@BOTH
def test_second_derivatives_as_eager(relu_last):
    """A gradient penalty: the first derivative depends on activations, which
    depend on every layer in front."""

    def penalty(function):
        torch.manual_seed(1)
        arguments = mlp_operands((9,), (7, 6, 5, 4), torch.float64, requires_grad=True)
        loss = function(*arguments, relu_last).pow(2).sum()
        grads = torch.autograd.grad(loss, flat(arguments), create_graph=True)
        sum(g.pow(3).sum() for g in grads).backward()
        return [t.grad for t in flat(arguments)]

    torch.testing.assert_close(penalty(mlp), penalty(eager_mlp), rtol=1e-11, atol=1e-11)


def test_derivatives_of_the_parts():
    """The operators below fused_mlp are differentiable by themselves."""
    input, weights, biases = mlp_operands((3,), (3, 4, 2), torch.float64, requires_grad=True)

    def parts(*leaves):
        return mlp_forward(leaves[0], leaves[1:3], leaves[3:], False)

    leaves = (input, *weights, *biases)
    assert gradcheck(parts, leaves, check_forward_ad=True)
    assert gradgradcheck(parts, leaves)
    grad_output = rand(3, 2, dtype=torch.float64, requires_grad=True)
    # Any are legal here; these keep away from the mask's edge.
    activations = rand(12, dtype=torch.float64)
    activations += activations.sign()

    def backward(grad_output, input, activations, *weights):
        return tuple(mlp_backward(grad_output, input, weights, activations, None, [True] * 5))

    arguments = (grad_output, input, activations.requires_grad_(), *weights)
    assert gradcheck(backward, arguments, check_forward_ad=True)


@pytest.mark.parametrize("width, shared", [(16, True), (256, False)])
def test_small_gradients_share_a_storage_and_large_ones_do_not(width, shared):
    # malloc gives large blocks back to the system: a page fault for each 4 KiB of every step.
    x = torch.randn(32, width, requires_grad=True)
    weights = [torch.randn(width, width, requires_grad=True) for _ in range(2)]
    y = torch.ops.hypatia.fused_mlp(x, weights, [None, None])
    gradients = torch.autograd.grad(y.sum(), [x, *weights])
    assert len({g.untyped_storage().data_ptr() for g in gradients}) == (1 if shared else 3)
