"""`optimize` on models of the zoo: scripted and traced, frozen and not, with and
without gradients. Results, what is written into inputs, which results share
memory, and gradients stay; the expected operators are there."""

import json
import re

import pytest
import torch

from support import optimize
from zoo import CASES

explain = torch.ops.hypatia.explain


def tensors(value):
    """All tensors of a nested result, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in sorted(value) for t in tensors(value[key])]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    return []


def text(module):
    """The graph without the numbers that make copies of a class distinct."""
    return re.sub(r"___torch_mangle_\d+\.", "", str(module.graph))


def clone(inputs):
    return tuple(t.clone() if isinstance(t, torch.Tensor) else t for t in inputs)


def sharing(outputs, inputs):
    """Which pairs of results and inputs share memory."""
    storages = [t.untyped_storage().data_ptr() for t in tensors(outputs) + tensors(inputs)]
    return [[a == b for b in storages] for a in storages]


def assert_close(got, expected, what):
    """Within what reordering fp64 sums of this size can change."""
    assert got.shape == expected.shape, what
    assert got.dtype == expected.dtype, what
    scale = expected.abs().amax().clamp(min=1).item() if expected.numel() else 1
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * scale, msg=lambda m: f"{what}: {m}")


def compare(original, optimized, inputs, seed=0):
    """One call of both on equal inputs; returns both results."""
    a, b = clone(inputs), clone(inputs)
    torch.manual_seed(seed)
    want = original(*a)
    torch.manual_seed(seed)
    got = optimized(*b)
    assert len(tensors(got)) == len(tensors(want))
    for n, (t, u) in enumerate(zip(tensors(got), tensors(want))):
        assert_close(t, u, f"result {n}")
    for n, (t, u) in enumerate(zip(tensors(b), tensors(a))):
        # What is written there may be a result, summed in another order.
        assert_close(t, u, f"input {n}")
    assert sharing(got, b) == sharing(want, a)
    return want, got


def gradients(module, inputs, parameters, seed=0):
    leaves = [
        t.detach().clone().requires_grad_() if t.is_floating_point() else t
        for t in inputs
        if isinstance(t, torch.Tensor)
    ]
    moved = iter(leaves)
    arguments = [next(moved) if isinstance(t, torch.Tensor) else t for t in inputs]
    torch.manual_seed(seed)
    total = sum((t * t).sum() for t in tensors(module(*arguments)))
    wanted = [t for t in leaves if t.is_floating_point()] + parameters
    return torch.autograd.grad(total, wanted, allow_unused=True)


def compiled(case, how, train):
    torch.manual_seed(1)
    module = case.build().double().train(train)
    inputs = tuple(
        t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for t in case.inputs()
    )
    # Statistics that are not those of a fresh module.
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    if how == "traced":
        return torch.jit.trace(module, inputs, check_trace=False), inputs
    return torch.jit.script(module), inputs


WAYS = [
    pytest.param(case, how, id=f"{case.name}-{how}")
    for case in CASES
    for how in ("scripted", "traced")
    if how == "scripted" or case.traceable
]


@pytest.mark.parametrize(("case", "how"), WAYS)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_training_modules(case, how, train):
    module, inputs = compiled(case, how, train)
    before = str(module.graph)
    optimized = optimize(module)
    assert str(module.graph) == before, "the original was changed"
    for _ in range(3):  # The executor specializes after the first calls.
        compare(module, optimized, inputs)
    parameters = list(module.parameters())
    assert [p.data_ptr() for p in optimized.parameters()] == [p.data_ptr() for p in parameters]
    want = gradients(module, inputs, parameters)
    got = gradients(optimized, inputs, parameters)
    for n, (t, u) in enumerate(zip(got, want)):
        assert (t is None) == (u is None), f"gradient {n}"
        if t is not None:
            assert_close(t, u, f"gradient {n}")
    report = json.loads(explain(module))
    assert report["cost_after"] <= report["cost_before"]
    assert report["stop_reason"] == "saturated"
    # Training mode changes what a traced graph holds.
    if case.fused is not None and not (how == "traced" or train and case.name in ("pointnet",)):
        assert report["fused_ops"] == case.fused, report
    for name in report["fused_ops"]:
        assert name in text(optimized)


@pytest.mark.parametrize(("case", "how"), WAYS)
def test_frozen_modules(case, how):
    module, inputs = compiled(case, how, train=False)
    frozen = torch.jit.freeze(module, optimize_numerics=False)
    optimized = optimize(frozen)
    with torch.no_grad():
        for _ in range(3):
            compare(frozen, optimized, inputs)
            compare(module, optimized, inputs)
    want = gradients(frozen, inputs, [])
    got = gradients(optimized, inputs, [])
    for n, (t, u) in enumerate(zip(got, want)):
        assert_close(t, u, f"input gradient {n}")
    report = json.loads(explain(frozen))
    if case.frozen is not None:
        assert report["fused_ops"] == case.frozen, report


@pytest.mark.parametrize(("case", "how"), WAYS)
@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
def test_a_second_pass_changes_nothing(case, how, frozen):
    module, _ = compiled(case, how, train=False)
    if frozen:
        module = torch.jit.freeze(module, optimize_numerics=False)
    once = optimize(module)
    twice = optimize(once)
    assert text(twice) == text(once)
    assert json.loads(explain(once))["rewrites"] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
def test_saved_and_loaded(case, frozen, tmp_path):
    module, inputs = compiled(case, "scripted", train=False)
    if frozen:
        module = torch.jit.freeze(module, optimize_numerics=False)
    optimize(module).save(tmp_path / "m.pt")
    with torch.no_grad():
        compare(module, torch.jit.load(tmp_path / "m.pt"), inputs)


@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_freezing_errors_are_not_ours(how):
    """The two graphs that torch.jit.freeze gets wrong."""

    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)

        def forward(self, x):
            y = self.fc(x.view(-1, 8))
            return torch.relu(self.bn(y)) + y

    class Channels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)

        def forward(self, x):
            return torch.relu(self.bn(self.fc(x)))

    for build, shape in [(Shared, (4, 8)), (Channels, (4, 8, 8)), (Channels, (4, 8))]:
        module = build().double().eval()
        module.bn.running_mean.uniform_(-1, 1)
        module.bn.running_var.uniform_(0.5, 2)
        x = torch.randn(shape, dtype=torch.float64)
        script = torch.jit.trace(module, (x,)) if how == "traced" else torch.jit.script(module)
        frozen = torch.jit.freeze(script.eval(), optimize_numerics=False)
        compare(module, optimize(frozen), (x,))


def test_weights_that_move_on_are_followed():
    """What is not frozen is not baked in."""
    module = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4), torch.nn.ReLU()))
    optimized = optimize(module)
    x = torch.randn(3, 8)
    optimizer = torch.optim.SGD(optimized.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        optimized(x).square().sum().backward()
        optimizer.step()
        torch.testing.assert_close(optimized(x), module(x))
