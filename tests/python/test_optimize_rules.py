"""Every rule of the optimizer in LibTorch: on random sizes and all dtypes the
rewritten model is as near to fp64 as its sums allow, special values are where
they were, and what looks alike but is not the same stays as it is."""

import json
import pathlib
import random
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphs import kinds
from support import optimize

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
RULES = {}  # name of a rule -> modules that it must rewrite
NEVER = {}  # name of a rule -> modules that it must leave alone


def on(rule, table=RULES):
    def add(cls):
        table.setdefault(rule, []).append(cls)
        return cls

    return add


class Sized(nn.Module):
    """`n` outputs of `k` inputs in `m` rows; some have a `wide` input."""

    frozen = False
    dims = 2
    # Operators that the rule does away with, where another rule takes its
    # result on and is the one that the report names; operators that must stay.
    gone, kept = [], []

    def __init__(self, rng):
        super().__init__()
        self.m, self.n, self.k = (rng.randrange(2, 40) for _ in range(3))
        self.l = nn.Linear(self.k, self.n, bias=rng.random() < 0.7)
        self.w = nn.Parameter(torch.randn(self.k, self.n) / self.k**0.5)
        self.b = nn.Parameter(torch.randn(self.n))
        self.setup(rng)

    def setup(self, rng):
        pass

    def inputs(self, dtype):
        rows = (self.m,) if self.dims == 2 else (2, self.m)
        return torch.randn(*rows, self.k).to(dtype)


class Frozen(Sized):
    frozen = True

    def setup(self, rng):
        self.after = nn.Linear(self.n, rng.randrange(1, 9))
        self.register_buffer("c", torch.randn(self.n))
        self.register_buffer("ck", torch.randn(self.k))


@on("linear_relu")
class LinearRelu(Sized):
    dims = 3

    def forward(self, x):
        return torch.relu(self.l(x))


@on("linear_from_addmm")
class Addmm(Sized):
    # Frozen, so that the transposed weight costs nothing and the rule pays.
    frozen, gone = True, ["aten::addmm"]

    def forward(self, x):
        return torch.relu(torch.addmm(self.b, x, self.w))


@on("linear_from_matmul")
@on("linear_bias")
class Matmul(Sized):
    gone = ["aten::matmul", "aten::add"]
    frozen = True

    def forward(self, x):
        return torch.relu(self.b + torch.matmul(x, self.w))


@on("transposed")
class Transposed(Sized):
    gone = ["aten::matmul", "aten::t"]

    def forward(self, x):
        return torch.relu(torch.matmul(x, self.l.weight.t()))


@on("relu_from_threshold")
class Threshold(Sized):
    gone = ["aten::threshold"]

    def forward(self, x):
        return F.threshold(self.l(x), 0.0, 0.0)


@on("relu_from_clamp")
class Clamp(Sized):
    gone = ["aten::clamp_min"]
    frozen = True

    def forward(self, x):
        return self.l(x).clamp_min(0)


@on("relu_of_nonnegative")
class Twice(Sized):
    gone = ["aten::relu"]

    def forward(self, x):
        return torch.relu(torch.relu(self.l(x)).view(-1))


@on("relu_past_view")
class PastView(Sized):
    def forward(self, x):
        return torch.relu(self.l(x).unsqueeze(0).transpose(0, 2))


@on("relu_past_cat")
class PastCat(Sized):
    gone = ["aten::relu"]

    def forward(self, x):
        return torch.relu(torch.cat([self.l(x), torch.sigmoid(x)], -1))


@on("relu_past_max_pool")
class PastAmax(Sized):
    dims = 3

    def forward(self, x):
        return torch.relu(torch.amax(self.l(x), [1]))


@on("relu_past_dropout")
class PastDropout(Sized):
    def forward(self, x):
        return torch.relu(F.dropout(self.l(x), 0.3, True))


@on("dropout_off")
class DropoutOff(Sized):
    def forward(self, x):
        return torch.relu(F.dropout(self.l(x), 0.3, False))


@on("fused_mlp")
class Chain(Frozen):
    frozen = False

    def forward(self, x):
        return self.after(torch.relu(self.l(x)))


@on("fold_batch_norm")
class BatchNorm(Frozen):
    def setup(self, rng):
        self.bn = nn.BatchNorm1d(self.n, affine=rng.random() < 0.7)
        self.bn.running_mean.uniform_(-1, 1)
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return torch.relu(self.bn(self.l(x.view(-1, x.size(-1)))))


@on("fold_scale")
class Scale(Frozen):
    def forward(self, x):
        return torch.relu(self.c * self.l(x))


@on("fold_scale")
class Quotient(Frozen):
    def forward(self, x):
        return torch.relu(self.l(x) / 3.0)


@on("fold_shift")
class Shift(Frozen):
    def forward(self, x):
        return torch.relu(self.l(x) + self.c)


@on("fold_shift")
class Difference(Frozen):
    def forward(self, x):
        return torch.relu(self.l(x) - 0.75)


@on("fold_input_scale")
class InputScale(Frozen):
    def forward(self, x):
        return self.after(torch.relu(self.l(x)) * self.c)


@on("fold_input_shift")
class InputShift(Frozen):
    def forward(self, x):
        return self.after(torch.relu(self.l(x)) + self.c)


@on("fold_linears")
class Linears(Frozen):
    def setup(self, rng):
        # Few outputs of many: one layer is less work than two.
        self.wide = nn.Linear(self.n, self.n + self.k, bias=rng.random() < 0.5)
        self.after = nn.Linear(self.n + self.k, 1, bias=rng.random() < 0.5)

    def forward(self, x):
        return self.after(self.wide(torch.relu(self.l(x))))


@on("fold_through_cat")
class ThroughCat(Frozen):
    def setup(self, rng):
        self.wide = nn.Linear(self.k, 4 * self.k)
        self.after = nn.Linear(5 * self.k, 2)

    def forward(self, x):
        return self.after(torch.cat([self.wide(x), torch.sigmoid(x)], -1))


@on("merge_parallel")
class Parallel(Frozen):
    def setup(self, rng):
        self.other = nn.Linear(self.k, self.n, bias=self.l.bias is not None)

    def forward(self, x):
        return torch.sigmoid(self.l(x)) * torch.tanh(self.other(x))


@on("sizes")
class Sizes(Sized):
    def forward(self, x):
        y = self.l(x)
        z = torch.relu(y)
        return z.view(y.size(0) * y.size(1))


@on("linear_from_addmm", NEVER)
class AddmmScaled(Sized):
    kept = ["aten::addmm"]

    def forward(self, x):
        return torch.relu(torch.addmm(self.b, x, self.w, alpha=2))


@on("linear_from_addmm", NEVER)
class AddmmWideBias(Sized):
    """One bias a row: addmm takes it, linear does not."""

    kept = ["aten::addmm"]

    def setup(self, rng):
        self.rows = nn.Parameter(torch.randn(self.m, 1))

    def forward(self, x):
        return torch.relu(torch.addmm(self.rows, x, self.w))


@on("linear_bias", NEVER)
class BiasOfRows(Sized):
    kept = ["aten::add"]

    def setup(self, rng):
        self.rows = nn.Parameter(torch.randn(self.m, 1))

    def forward(self, x):
        return torch.relu(torch.matmul(x, self.w) + self.rows)


@on("linear_bias", NEVER)
class BiasOfAnotherDtype(Sized):
    """The sum is promoted; a layer would refuse or round."""

    kept = ["aten::add"]

    def setup(self, rng):
        self.register_buffer("whole", torch.ones(self.n, dtype=torch.int64))

    def forward(self, x):
        return torch.relu(torch.matmul(x, self.w) + self.whole)


@on("linear_relu", NEVER)
class BiasOfOne(Sized):
    """linear spreads a bias of one element, our operator wants [N]."""

    kept = ["aten::relu"]

    def setup(self, rng):
        self.one = nn.Parameter(torch.randn(1))

    def forward(self, x):
        return torch.relu(F.linear(x, self.l.weight, self.one))


@on("linear_relu", NEVER)
class Activations(Sized):
    """A right factor that is computed: no layer."""

    kept = ["aten::relu"]

    def forward(self, x):
        return torch.relu(F.linear(x, x))


@on("relu_from_clamp", NEVER)
class ClampTrained(Sized):
    """At exactly 0 clamp passes gradients on, ReLU does not."""

    kept = ["aten::clamp_min"]

    def forward(self, x):
        return self.l(x).clamp_min(0)


@on("relu_from_clamp", NEVER)
class ClampElsewhere(Sized):
    kept = ["aten::clamp_min"]
    frozen = True

    def forward(self, x):
        return self.l(x).clamp_min(0.5)


@on("relu_from_threshold", NEVER)
class ThresholdElsewhere(Sized):
    kept = ["aten::threshold"]

    def forward(self, x):
        return F.threshold(self.l(x), 0.0, 0.25)


@on("fold_batch_norm", NEVER)
class BatchNormTrained(Sized):
    """Not frozen: folded statistics would go stale."""

    kept = ["aten::batch_norm"]

    def setup(self, rng):
        self.bn = nn.BatchNorm1d(self.n)

    def forward(self, x):
        return torch.relu(self.bn(self.l(x)))


@on("fold_scale", NEVER)
class ScaleOfRows(Frozen):
    kept = ["aten::mul"]

    def setup(self, rng):
        self.register_buffer("c", torch.randn(self.m, 1))

    def forward(self, x):
        return torch.relu(self.l(x) * self.c)


@on("fold_scale", NEVER)
class ScaleNotFinite(Frozen):
    """0 · inf is NaN where nobody computed 0 · inf before."""

    kept = ["aten::mul"]

    def setup(self, rng):
        self.register_buffer("c", torch.full((self.n,), float("inf")))

    def forward(self, x):
        return torch.relu(self.l(x) * self.c)


@on("fold_shift", NEVER)
class ShiftScaled(Frozen):
    kept = ["aten::add"]

    def forward(self, x):
        return torch.relu(torch.add(self.l(x), self.c, alpha=2))


@on("fold_linears", NEVER)
class Bottleneck(Frozen):
    def setup(self, rng):
        self.n, self.k = 64, 64
        self.l = nn.Linear(64, 4)
        self.after = nn.Linear(4, 64)

    def forward(self, x):
        return self.after(self.l(x))


@on("merge_parallel", NEVER)
class ParallelReturned(Parallel):
    """The caller would get views into one tensor."""

    def forward(self, x):
        return self.l(x), self.other(x)


@on("merge_parallel", NEVER)
class ParallelViewed(Parallel):
    """view minds strides."""

    def forward(self, x):
        return self.l(x).view(-1) * self.other(x).view(-1)


@on("relu_past_dropout", NEVER)
class DropoutReadTwice(Sized):
    kept = ["aten::relu"]

    def forward(self, x):
        y = F.dropout(self.l(x), 0.3, True)
        return torch.relu(y) + y


def every(table):
    return [
        pytest.param(rule, cls, id=f"{rule}-{cls.__name__}") for rule in table for cls in table[rule]
    ]


def tensors(value):
    return list(value) if isinstance(value, tuple) else [value]


def scripted(module):
    module.eval()
    script = torch.jit.script(module)
    return torch.jit.freeze(script, optimize_numerics=False) if module.frozen else script


def rules_of(script):
    return {entry["rule"] for entry in json.loads(torch.ops.hypatia.explain(script))["rewrites"]}


def magnitude(module, x):
    """What the largest sum of absolute values may be: of the module's own
    function with everything positive."""
    with torch.no_grad():
        for tensor in list(module.parameters()) + list(module.buffers()):
            if tensor.is_floating_point():
                tensor.abs_()
    return max(t[t.isfinite()].abs().amax().item() if t.isfinite().any() else 1 for t in tensors(module(x.abs())))


def assert_as_exact(got, want, exact, module, x, dtype):
    """`got` may be off by what two layers of sums with K terms may be, in the
    dtype; `want`, the original's, is held to the same."""
    unit = torch.finfo(dtype).eps / 2
    terms = max(tensor.shape[-1] for tensor in module.state_dict().values() if tensor.dim() > 1)
    bound = 4 * (terms + 4) * unit * max(1.0, magnitude(module, x))
    for a, b, c in zip(tensors(got), tensors(want), tensors(exact)):
        assert a.dtype == b.dtype and a.shape == b.shape
        finite = c.isfinite()
        assert torch.equal(a.isfinite(), b.isfinite())
        for result in (a, b):
            error = (result.double() - c)[finite & result.isfinite()].abs()
            assert error.numel() == 0 or error.amax().item() <= bound


def call(module, x):
    torch.manual_seed(3)
    with torch.no_grad():
        return module(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rule", "cls"), every(RULES))
def test_a_rule_keeps_the_function(rule, cls, dtype):
    for seed in range(4):
        torch.manual_seed(seed)
        module = cls(random.Random(seed))
        x = module.inputs(dtype)
        module.to(dtype)
        script = scripted(module)
        optimized = optimize(script)
        used = cls.gone and not set(cls.gone) & set(kinds(optimized))
        assert used or rule in rules_of(script), torch.ops.hypatia.explain(script)
        exact = cls(random.Random(seed))
        exact.load_state_dict(module.state_dict())
        exact = call(exact.double().eval(), x.double())
        assert_as_exact(call(optimized, x), call(script, x), exact, module.double(), x.double(), dtype)


# Where 0 · NaN and inf − inf may arise or not by the order of the sums, or (a
# dropped −inf) by that of the operators.
FOLDS = ("fold_", "merge_", "linear_bias", "relu_past_dropout")


@pytest.mark.parametrize(("rule", "cls"), every(RULES))
def test_special_values_stay(rule, cls):
    if rule.startswith(FOLDS):
        pytest.skip("constants are finite; inputs are not regrouped bit for bit")
    torch.manual_seed(0)
    module = cls(random.Random(1))
    script = scripted(module)
    optimized = optimize(script)
    x = module.inputs(torch.float32)
    x.view(-1)[0] = float("nan")
    x.view(-1)[-1] = float("inf")
    for got, want in zip(tensors(call(optimized, x)), tensors(call(script, x))):
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize(("rule", "cls"), every(NEVER))
def test_what_is_not_the_same_stays(rule, cls):
    for seed in range(3):
        torch.manual_seed(seed)
        module = cls(random.Random(seed))
        script = scripted(module)
        assert rule not in rules_of(script)
        assert set(cls.kept) <= set(kinds(optimize(script)))
        x = module.inputs(torch.float32)
        if cls is Activations:
            x = x[:, : module.k]
        for got, want in zip(tensors(call(optimize(script), x)), tensors(call(script, x))):
            torch.testing.assert_close(got, want, equal_nan=True)


def test_clamp_keeps_its_gradient_at_zero():
    """The reason of the guard: a weight of zeros makes every output exactly 0."""
    module = ClampTrained(random.Random(0))
    with torch.no_grad():
        for tensor in module.l.parameters():
            tensor.zero_()
    script = torch.jit.script(module)
    x = module.inputs(torch.float32)
    grads = []
    for form in (script, optimize(script)):
        module.zero_grad()
        form(x).sum().backward()
        grads.append(module.l.weight.grad.clone())
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(grads[1], grads[0])


def test_statistics_that_move_on_are_followed():
    """The reason of the guard: what trains is not folded."""
    module = BatchNormTrained(random.Random(0)).eval()
    script = torch.jit.script(module)
    optimized = optimize(script)
    x = module.inputs(torch.float32)
    optimized(x)
    module.bn.running_mean.add_(1.0)
    with torch.no_grad():
        module.l.weight.mul_(2)
    torch.testing.assert_close(optimized(x), module(x))


def test_an_int_weight_is_no_layer():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", torch.randint(-3, 3, (4, 6)))

        def forward(self, x):
            return torch.relu(F.linear(x, self.w))

    script = torch.jit.script(Whole())
    x = torch.randint(-3, 3, (2, 6))
    assert "linear_relu" not in rules_of(script)
    assert torch.equal(optimize(script)(x), script(x))


def test_every_rule_is_here():
    text = (pathlib.Path(__file__).parents[2] / "src/graph/rules").glob("*.rs")
    named = {name for file in text for name in re.findall(r'(?:name: |NAME: &str = )"(\w+)"', file.read_text())}
    assert named - set(RULES) == set()
    gone = ["aten::addmm"]

