"""optimize and explain as operators: what comes in, what comes out, what is
shared, saved, refused."""

import io
import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphs import check, kinds, text
from support import FORWARD, LIBRARY, MLP, optimize, python_ok, rand

explain = torch.ops.hypatia.explain


def mlp(*widths):
    layers = [nn.Sequential(nn.Linear(k, n), nn.ReLU()) for k, n in zip(widths, widths[1:])]
    return nn.Sequential(*layers)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(8, 16, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x):
        return self.body(x) + self.shift

    @torch.jit.export
    def twice(self, x):
        return torch.relu(F.linear(x, self.body[0][0].weight)) * 2

    @torch.jit.export
    def width(self) -> int:
        return 4


def test_scripted():
    optimized = check(Net(), rand(5, 8))
    assert kinds(optimized)[MLP] == 1


def test_traced():
    traced = torch.jit.trace(mlp(8, 16, 4), rand(5, 8))
    optimized = optimize(traced)
    assert kinds(optimized)[MLP] == 1
    for rows in (1, 5, 9):  # a trace's sizes are no facts
        x = rand(rows, 8)
        torch.testing.assert_close(optimized(x), traced(x))


def test_every_method_with_a_graph():
    original = torch.jit.script(Net())
    optimized = optimize(original)
    assert FORWARD in str(optimized.twice.graph)
    x = rand(3, 8)
    torch.testing.assert_close(optimized.twice(x), original.twice(x))
    assert str(optimized.width.code) == str(original.width.code)


def test_nothing_to_do_leaves_the_graph_alone():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Tanh()

        def forward(self, x):
            return self.inner(x)

    original = torch.jit.script(Plain())
    # A copy numbers its values anew; the calls are still there.
    numbers = re.compile(r"%\d+")
    assert numbers.sub("%", text(optimize(original))) == numbers.sub("%", text(original))


def test_tensors_are_shared():
    original = torch.jit.script(Net())
    optimized = optimize(original)
    ours, theirs = optimized.state_dict(keep_vars=True), original.state_dict(keep_vars=True)
    assert list(ours) == list(theirs)
    assert all(a is b for a, b in zip(ours.values(), theirs.values()))


def test_training_one_trains_the_other():
    original = torch.jit.script(Net())
    optimized = optimize(original)
    optimizer = torch.optim.SGD(optimized.parameters(), lr=0.1)
    before, x = original.body[0][0].weight.clone(), rand(5, 8)
    optimized(x).sum().backward()
    optimizer.step()
    assert not torch.equal(original.body[0][0].weight, before)
    torch.testing.assert_close(optimized(x), original(x))


def test_objects_are_separate():
    original = torch.jit.script(Net())
    optimized = optimize(original)
    optimized.eval()
    assert original.training and original.body.training and not optimized.body.training


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        self.calls += 1
        return torch.relu(self.linear(x)) * self.calls


def test_a_submodule_under_two_names_stays_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = Counter()

        def forward(self, x):
            return self.b(self.a(x))

    original = torch.jit.script(Twice())
    original._c.setattr("b", original._c.getattr("a"))  # scripting made two
    optimized, x = optimize(original), rand(3, 4)
    for _ in range(3):
        torch.testing.assert_close(optimized(x), original(x))
    assert [optimized._c.getattr(name).getattr("calls") for name in "ab"] == [6, 6]


@pytest.mark.parametrize("save", ["memory", "file", "elsewhere"])
def test_save_and_load(save, tmp_path):
    original = torch.jit.script(Net()).eval()
    optimized, x = optimize(original), rand(5, 8)
    if save == "memory":
        memory = io.BytesIO()
        torch.jit.save(optimized, memory)
        memory.seek(0)
        loaded = torch.jit.load(memory)
        assert torch.equal(loaded(x), optimized(x))
        return
    # LibTorch's bare module saves as well.
    torch.ops.hypatia.optimize(original).save(str(tmp_path / "m.pt"))
    if save == "file":
        assert torch.equal(torch.jit.load(tmp_path / "m.pt")(x), optimized(x))
        return
    torch.save((x, optimized(x).detach()), tmp_path / "data.pt")
    python_ok(
        "import sys, torch; torch.ops.load_library(sys.argv[1]);"
        "m = torch.jit.load(sys.argv[2]); x, y = torch.load(sys.argv[3]);"
        "assert torch.equal(m(x), y); m = torch.ops.hypatia.optimize(m);"
        "assert torch.allclose(m.forward(x), y)",
        LIBRARY,
        tmp_path / "m.pt",
        tmp_path / "data.pt",
    )


def test_freeze_before_and_after():
    original, x = torch.jit.script(Net()).eval(), rand(5, 8)
    for module in (optimize(torch.jit.freeze(original)), torch.jit.freeze(optimize(original))):
        torch.testing.assert_close(module(x), original(x))
        assert MLP in str(module.graph)


@pytest.mark.parametrize(
    "value, kind",
    [(1, "Int"), ("x", "String"), (torch.ones(1), "Tensor"), (None, "None"), ([1], "GenericList")],
)
@pytest.mark.parametrize("op", ["optimize", "explain"])
def test_not_a_module(op, value, kind):
    with pytest.raises(RuntimeError) as error:
        getattr(torch.ops.hypatia, op)(value)
    expected = f"hypatia::{op}: expected a TorchScript module, got {kind}"
    assert str(error.value).splitlines()[0] == expected


def test_explain():
    original = torch.jit.script(Net())
    before = text(original)
    report = json.loads(explain(original))
    assert text(original) == before
    keys = "stop_reason nodes_before nodes_after cost_before cost_after rewrites skipped fused_ops"
    assert set(keys.split()) <= set(report)
    assert report["fused_ops"] == {MLP: 1, FORWARD: 1}
    assert all({"rule", "at", "cost_delta"} <= set(r) for r in report["rewrites"])


def test_after_a_run_without_optimizations():
    """LibTorch then keeps graphs of submodules that were not inlined."""
    original, x = torch.jit.script(Net()), rand(5, 8)
    with torch.jit.optimized_execution(False):
        original(x)
    assert kinds(optimize(original))[MLP] == 1


def test_explain_says_why_not():
    class Scaled(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                return torch.relu(x)

    report = json.loads(explain(torch.jit.script(Scaled())))
    assert any("with statement" in s["reason"] for s in report["skipped"])


def test_autocast_around_optimize_does_not_stay():
    original, x = torch.jit.script(Net()), rand(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimized = optimize(original)
    assert optimized(x).dtype == torch.float32
    torch.testing.assert_close(optimized(x), original(x))
