"""Batch norm behind a layer, where nothing says how many dimensions the input
has: one version for matrices, in which it is folded, and one for the rest."""

import json

import pytest
import torch
from torch import nn

from graphs import kinds, text
from support import optimize


def build(*widths):
    layers = []
    for k, n in zip(widths, widths[1:]):
        norm = nn.BatchNorm1d(n)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        layers += [nn.Linear(k, n), norm, nn.ReLU()]
    return nn.Sequential(*layers).double().eval()


def frozen(module):
    return torch.jit.freeze(torch.jit.script(module), optimize_numerics=False)


def test_both_versions_are_right():
    """As many channels as columns, so that both are legal and differ."""
    module = build(8, 8, 8)
    optimized = optimize(frozen(module))
    for shape in [(4, 8), (0, 8), (1, 8), (4, 8, 8), (2, 8, 8)]:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(optimized(x), module(x), rtol=1e-10, atol=1e-10)
    for shape in [(8,), (2, 8, 8, 8)]:
        with pytest.raises(Exception, match="expected 2D or 3D input"):
            optimized(torch.randn(shape, dtype=torch.float64))


def test_matrices_run_without_batch_norm():
    optimized = optimize(frozen(build(8, 16, 4)))
    x = torch.randn(5, 8, dtype=torch.float64)
    optimized(x)
    with torch.profiler.profile() as seen, torch.jit.optimized_execution(False):
        optimized(x)
    names = {event.key for event in seen.key_averages()}
    assert "aten::batch_norm" not in names and "hypatia::fused_mlp" in names, names


def test_the_report_is_about_matrices():
    report = json.loads(torch.ops.hypatia.explain(frozen(build(8, 16, 4))))
    rules = [entry["rule"] for entry in report["rewrites"]]
    assert "rank_guard" in rules and "fold_batch_norm" in rules
    assert report["fused_ops"] == {"hypatia::fused_mlp": 1}
    assert report["nodes_after"] < report["nodes_before"]
    assert report["cost_after"] < report["cost_before"]


def test_a_second_pass_changes_nothing():
    once = optimize(frozen(build(8, 16, 4)))
    assert text(optimize(once)) == text(once)
    assert json.loads(torch.ops.hypatia.explain(once))["rewrites"] == []


def test_saved_and_loaded(tmp_path):
    module = build(8, 8)
    torch.jit.save(optimize(frozen(module)), tmp_path / "m.pt")
    loaded = torch.jit.load(tmp_path / "m.pt")
    for shape in [(4, 8), (4, 8, 8)]:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(loaded(x), module(x), rtol=1e-10, atol=1e-10)


def test_gradients_of_the_input():
    module = build(8, 8)
    optimized = optimize(frozen(module))
    for shape in [(4, 8), (4, 8, 8)]:
        grads = []
        for form in (module, optimized):
            x = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64)
            x = x.view(shape).requires_grad_()
            form(x).square().sum().backward()
            grads.append(x.grad)
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-10)


def test_only_where_it_folds():
    class Mixed(nn.Module):
        def __init__(self, trains):
            super().__init__()
            self.body, self.trains = build(8, 8), trains

        def forward(self, x):
            return self.body(x)

    unfrozen = optimize(torch.jit.script(Mixed(True)))
    assert str(unfrozen.inlined_graph).count("aten::batch_norm") == 1
    # Behind a convolution there is no layer to fold into.
    conv = nn.Sequential(nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8), nn.ReLU()).eval()
    assert kinds(optimize(frozen(conv))).get("aten::batch_norm") == 1


def test_results_of_all_kinds():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = build(8, 8)

        def forward(self, x, scale: float, names: str):
            y = self.body(x)
            return {names: y, "input": x}, [y * scale, x], (names, scale)

    module = Many().eval()
    optimized = optimize(frozen(module))
    x = torch.randn(3, 8, dtype=torch.float64)
    got, want = optimized(x, 2.0, "a"), module(x, 2.0, "a")
    torch.testing.assert_close(got[0]["a"], want[0]["a"])
    torch.testing.assert_close(got[1], want[1])
    assert got[2] == want[2]
    assert got[0]["input"].data_ptr() == x.data_ptr() == got[1][1].data_ptr()


def test_the_input_that_matters_is_found():
    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = build(8, 8)

        def forward(self, unused, x):
            return self.body(x) + unused.sum()

    report = json.loads(torch.ops.hypatia.explain(frozen(Second().eval())))
    guards = [entry["at"] for entry in report["rewrites"] if entry["rule"] == "rank_guard"]
    assert len(guards) == 1 and guards[0].startswith("forward: x."), report
