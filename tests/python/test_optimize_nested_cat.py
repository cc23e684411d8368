"""LibTorch's peephole pass makes one cat of a cat of a cat, in the place of the
outer one, whatever was written to the inner one's elements between them. The
optimizer must neither let it (it runs the pass itself) nor make a graph that it
would break when it runs."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support import FORWARD, optimize, rand


class Folds(nn.Module):
    """Frozen, the middle layer folds into the last: a cat of a cat."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.wide = nn.Linear(8, 4)

    def forward(self, x):
        y = self.first(x)
        z = self.wide(torch.cat([y, y], -1))
        F.relu_(y)
        return self.wide(torch.cat([z, x], -1)), y


class AsWritten(Folds):
    def forward(self, x):
        y = self.first(x)
        z = torch.cat([y, y], -1)
        F.relu_(y)
        return F.relu(self.wide(torch.cat([z, x], -1)[:, 4:])), y


class Carried(Folds):
    """The write is behind both, but in a loop: before the second round."""

    def forward(self, x):
        y = self.first(x)
        z = torch.cat([y, y], -1)
        kept = x
        for _ in range(2):
            kept = kept + F.relu(self.wide(torch.cat([x, z], -1)[:, 4:]))
            F.relu_(y)
        return kept, y


class WrittenBefore(Folds):
    """The write is before both: no reason to leave anything alone."""

    def forward(self, x):
        y = F.relu_(self.first(x))
        z = torch.cat([y, y], -1)
        return F.relu(self.wide(torch.cat([z, x], -1)[:, 4:])), y


# torch.jit.freeze runs the pass: a frozen AsWritten is wrong before we see it.
@pytest.mark.parametrize(
    ("cls", "frozen"),
    [
        (Folds, True),
        (AsWritten, False),
        (Carried, False),
        (WrittenBefore, False),
        (WrittenBefore, True),
    ],
)
def test_elements_written_between_the_cats(cls, frozen):
    module = cls().double().eval()
    x = rand(3, 4).double() - 0.5
    original = torch.jit.script(module)
    if frozen:
        original = torch.jit.freeze(original, optimize_numerics=False)
    optimized = optimize(original)
    # So does the profiling executor, on cats that the user wrote.
    profiled = cls in (Folds, WrittenBefore)
    with torch.no_grad(), torch.jit.optimized_execution(profiled):
        for _ in range(3):
            torch.testing.assert_close(optimized(x), module(x), rtol=1e-12, atol=1e-12)
    assert (FORWARD in str(optimized.graph)) == (cls is WrittenBefore)


def test_a_graph_that_is_discarded_is_not_reported():
    original = torch.jit.freeze(torch.jit.script(Folds().eval()), optimize_numerics=False)
    report = json.loads(torch.ops.hypatia.explain(original))
    assert report["rewrites"] == [] and report["fused_ops"] == {}
    assert report["nodes_after"] == report["nodes_before"] == 6
    assert report["cost_after"] == report["cost_before"]
    assert "cat of that cat" in report["skipped"][-1]["reason"]
