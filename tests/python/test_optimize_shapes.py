"""Sizes that the predictions rest on: of a trace, of an example, or unknown."""

import json

import pytest
import torch
from torch import nn

from opt_support import opt_fails, opt_ok, save
from support import optimize

ops = torch.ops.hypatia


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 16)

    def forward(self, x, scale: float = 2.0):
        y = torch.relu(self.b(torch.relu(self.a(x.view(-1, 64)))))
        return torch.sigmoid(y) * scale


def cost(script, rows=None):
    text = ops.explain(script) if rows is None else ops.explain_for(script, [torch.ones(rows, 64)])
    return json.loads(text)


def test_the_report_says_where_sizes_came_from():
    script = torch.jit.script(Chain())
    assert cost(script)["shapes"].startswith("recorded where there are any, otherwise unknown")
    assert cost(script, 8)["shapes"] == "of the example"


def test_costs_follow_the_example():
    """All the way through views and layers: 1000 times the rows cost nearly that
    many times more."""
    script = torch.jit.script(Chain())
    few, many = cost(script, 100), cost(script, 100_000)
    assert few["cost_before"] < many["cost_before"] / 100
    assert few["cost_after"] < many["cost_after"] / 100


def test_an_example_is_as_good_as_a_trace():
    traced = torch.jit.trace(Chain(), torch.ones(4096, 64))
    report = json.loads(ops.explain(traced))
    assert report["cost_before"] == pytest.approx(cost(torch.jit.script(Chain()), 4096)["cost_before"], rel=0.2)


def test_the_result_is_right_for_other_sizes():
    script = torch.jit.script(Chain())
    bare = ops.optimize_for(script, [torch.ones(4096, 64)])
    optimized = torch.jit._recursive.wrap_cpp_module(bare)
    for rows in (0, 1, 7):
        x = torch.randn(rows, 64)
        torch.testing.assert_close(optimized(x), script(x))
        torch.testing.assert_close(optimized(x, scale=0.5), script(x, scale=0.5))


def test_the_example_is_only_looked_at():
    script = torch.jit.script(Chain())
    before = str(script.graph)
    x = torch.full((3, 64), float("nan"))
    ops.optimize_for(script, [x])
    assert x.isnan().all() and str(script.graph) == before


@pytest.mark.parametrize(
    "example",
    [[torch.ones(3, 5)], [torch.ones(())], [7], ["text"], [None, None, None, None], [torch.ones(2, 64).to_sparse()]],
    ids=["columns", "dimensions", "number", "text", "too many", "sparse"],
)
def test_a_wrong_example_does_no_harm(example):
    script = torch.jit.script(Chain())
    optimized = torch.jit._recursive.wrap_cpp_module(ops.optimize_for(script, example))
    x = torch.randn(5, 64)
    torch.testing.assert_close(optimized(x), script(x))


def test_none_given():
    with pytest.raises(RuntimeError, match="hypatia::optimize_for: expected the arguments of a call as example_inputs, got none"):
        ops.optimize_for(torch.jit.script(Chain()), [])
    with pytest.raises(RuntimeError, match="hypatia::explain_for: expected a TorchScript module, got Tensor"):
        ops.explain_for(torch.ones(1), [torch.ones(1)])


def test_branches_and_loops_have_sizes_too():
    class Steps(Chain):
        def forward(self, x, scale: float = 2.0):
            if scale > 0:
                x = torch.relu(self.a(x))
            else:
                x = torch.relu(self.a(x)) * scale
            for _ in range(3):
                x = x + torch.relu(x)
            return torch.relu(self.b(x))

    script = torch.jit.script(Steps())
    assert cost(script, 100)["cost_before"] < cost(script, 100_000)["cost_before"] / 100


def test_hypatia_opt_takes_them_from_options_and_traces(tmp_path):
    scripted = save(Chain(), tmp_path / "scripted.pt")
    traced = tmp_path / "traced.pt"
    torch.jit.save(torch.jit.trace(Chain().eval(), torch.ones(4096, 64)), str(traced))
    of = lambda path, *options: json.loads(opt_ok(path, "--json", *options))  # noqa: E731
    assert of(scripted)["shapes"].startswith("recorded where")
    assert of(scripted, "--input", "f32[4096,64]")["shapes"] == "of the example"
    assert of(traced)["shapes"] == "of the example"
    assert of(traced)["cost_before"] > 5 * of(scripted)["cost_before"]
    # Rows are the user's word; what was recorded is of another call.
    assert of(traced, "--rows", "8")["shapes"] == "given"
    assert of(scripted, "--input", "f32[4096,64]")["cost_before"] == of(traced)["cost_before"]


def test_too_many_for_hypatia_opt(tmp_path):
    path = save(Chain(), tmp_path / "m.pt")
    many = ["--input", "f32[1,64]", "--input", "1.0", "--input", "3"]
    assert "at most 2 --input" in opt_fails(2, path, *many)
