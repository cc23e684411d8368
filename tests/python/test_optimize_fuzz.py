"""Random modules with everything TorchScript users write: layers in all their
spellings, in-place operators, views, lists, branches, loops, dropout. The
optimized module must do the same: results, writes into inputs, which results
share memory, gradients, the random state. HYPATIA_FUZZ_SECONDS runs longer."""

import importlib.util
import os
import random
import time

import torch

from support import optimize
from test_optimize_zoo import compare, gradients

# Variables hold [M, W] tensors, W fixed: every statement fits every other.
M, W = 3, 4

SIMPLE = [
    "{v} = F.relu({a})",
    "{v} = F.relu({a})",
    "{v} = torch.relu(self.l{i}({a}))",
    "{v} = self.l{i}({a})",
    "{v} = self.l{i}({a})",
    "{v} = F.linear({a}, self.w{i})",
    "{v} = F.linear({a}, self.w{i}.t(), self.b{i})",
    "{v} = torch.addmm(self.b{i}, {a}, self.w{i}.t())",
    "{v} = torch.addmm(self.b{i}, {a}, self.w{i}, alpha=2)",
    "{v} = torch.matmul({a}, self.w{i}.t()) + self.b{i}",
    "{v} = self.b{i} + {a} @ self.w{i}",
    "{v} = {a} * self.b{i}",
    "{v} = {a} + self.b{i}",
    "{v} = {a} - {b}",
    "{v} = {a} + {b}",
    "{v} = {a} * -0.5",
    # The same of batch norm, which writes its statistics unseen by TorchScript.
    "{v} = self.n{i}({a}); kept = kept + {v}.sum()",
    "{v} = self.l{i}({a}.view(-1, 4))",
    "{v} = self.n{i}(self.l{i}({a}.view(-1, 4))); kept = kept + {v}.sum()",
    "{v} = {a}.clamp_min(0.0)",
    "{v} = F.threshold({a}, 0.0, 0.0)",
    "{v} = F.relu({a}.reshape(2, -1)).view(3, 4)",
    "{v} = self.wide(torch.cat([{a}, {b}], -1))",
    "{v} = F.relu(torch.cat([{a}[:, :2], {b}[:, 2:]], 1))",
    # Every draw is read: of others TorchScript itself drops some, some not.
    "{v} = F.dropout({a}, 0.5, self.training); kept = kept + {v}.sum()",
    "{v} = F.dropout({a}, 0.5, False)",
    "{v} = F.dropout({a}, 0.25, True); kept = kept + {v}.sum()",
    "{v} = torch.sigmoid({a})",
    "{v} = {a}.t().contiguous().t()",
    "{v} = {a}.transpose(0, 1).transpose(1, 0)",
    "{v} = {a}[:, 0:4]",
    "{v} = {a}",
    "{a} = F.relu_({a})",
    "{v} = self.l{i}({a}).relu_()",
    "{v} = torch.matmul({a}, self.w{i}).add_(self.b{i}).relu_()",
    "{a}.add_(1.0)",
    "{a}.mul_({b})",
    "{a}[0].zero_()",
    "{a}.view(-1)[2:5].add_(0.5)",
    "{v} = torch.stack([{a}, {b}], 0).amax(0)",
]
BLOCKS = [
    "if {a}.sum() > 0:\n    {s}\nelse:\n    {t}",
    "if flag:\n    {s}\n    {t}",
    "for i in range(2):\n    {s}\n    {t}",
    "items = [{a}, {b}]\nitems.append({a})\n{s}\n{v} = items[2] + {v}",
]

HEADER = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"

INIT = """
class Module{n}(nn.Module):
    def __init__(self):
        super().__init__()
        for i in range(3):
            setattr(self, f"l{{i}}", nn.Linear(4, 4, bias=i != 2))
            setattr(self, f"n{{i}}", nn.BatchNorm1d(4))
            setattr(self, f"w{{i}}", nn.Parameter(torch.randn(4, 4) / 2))
            setattr(self, f"b{{i}}", nn.Parameter(torch.randn(4)))
            getattr(self, f"n{{i}}").running_mean.uniform_(-1, 1)
            getattr(self, f"n{{i}}").running_var.uniform_(0.5, 2)
        self.wide = nn.Linear(8, 4)

    def forward(self, x0, x1, flag: bool):
        v0, v1 = x0, x1
{body}
        return {results}
"""


def statement(rng, depth=0):
    names = ["v0", "v1", "v2", "v3"]
    fill = {"v": rng.choice(names), "a": rng.choice(names), "b": rng.choice(names), "i": rng.randrange(3)}
    if depth == 0 and rng.random() < 0.12:
        fill["s"], fill["t"] = statement(rng, 1), statement(rng, 1)
        return rng.choice(BLOCKS).format(**fill)
    return rng.choice(SIMPLE).format(**fill)


def source(seed, n):
    rng = random.Random(seed)
    lines = ["kept = x0.sum() * 0", "v2 = self.l0(x0)", "v3 = x1 * 2.0"]
    for _ in range(rng.randrange(3, 14)):
        lines += statement(rng).split("\n")
    body = "\n".join("        " + line for line in lines)
    results = "kept, " + ", ".join(rng.sample(["v0", "v1", "v2", "v3"], rng.randrange(1, 4)))
    return INIT.format(n=n, body=body, results=results)


def modules(seeds, folder):
    text = HEADER + "".join(source(seed, n) for n, seed in enumerate(seeds))
    path = folder / f"fuzz_{seeds[0]}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for n, seed in enumerate(seeds):
        yield seed, getattr(module, f"Module{n}")


def inputs():
    return torch.randn(M, W, dtype=torch.float64), torch.randn(M, W, dtype=torch.float64), True


def check(seed, cls):
    """One module, trained and frozen. Returns whether its original runs."""
    torch.manual_seed(seed)
    module = cls().double()
    module.train(seed % 3 == 0)
    arguments = inputs()
    try:
        script = torch.jit.script(module)
        with torch.jit.optimized_execution(False):
            script(*(t.clone() if isinstance(t, torch.Tensor) else t for t in arguments))
    except RuntimeError:
        return False  # A view of an input that wants a gradient, and the like.
    forms = [script]
    if not module.training:
        forms.append(torch.jit.freeze(torch.jit.script(module), optimize_numerics=False))
    for form in forms:
        with torch.no_grad(), torch.jit.optimized_execution(False):
            # Batch norm moves its statistics on: each form from the same ones.
            state = [t.clone() for t in module.buffers()]
            optimized = optimize(form)
            restore(module, state)
            _, after = run(form, optimized, arguments, module, state)
            assert after
        if form is script:
            gradients_agree(form, optimized, arguments, module, state)
    return True


def restore(module, state):
    with torch.no_grad():
        for t, s in zip(module.buffers(), state):
            t.copy_(s)


class Restored:
    """Calls a module with its buffers as they were."""

    def __init__(self, form, module, state):
        self.form, self.module, self.state = form, module, state

    def __call__(self, *arguments):
        restore(self.module, self.state)
        result = self.form(*arguments)
        self.left = [t.clone() for t in self.module.buffers()]
        self.random = torch.get_rng_state()
        return result


def run(form, optimized, arguments, module, state):
    a, b = Restored(form, module, state), Restored(optimized, module, state)
    result = compare(a, b, arguments)
    same = all(torch.allclose(s, t, rtol=1e-9, atol=1e-9) for s, t in zip(a.left, b.left))
    return result, same and torch.equal(a.random, b.random)


def gradients_agree(form, optimized, arguments, module, state):
    # In-place operators on leaves refuse: both must.
    parameters = list(module.parameters())
    a, b = Restored(form, module, state), Restored(optimized, module, state)
    shifted = lambda f: lambda x, y, flag: f(x + 0, y + 0, flag)  # noqa: E731
    with torch.jit.optimized_execution(False):
        try:
            want = gradients(shifted(a), arguments, parameters)
        except RuntimeError:
            return  # A saved value was written to; ours may not have saved it.
        got = gradients(shifted(b), arguments, parameters)
    for n, (t, u) in enumerate(zip(got, want)):
        # A gradient of zeros and none at all mean the same.
        t, u = (torch.zeros(()) if g is None else g for g in (t, u))
        torch.testing.assert_close(
            t.expand_as(u) if t.dim() == 0 else t,
            u.expand_as(t) if u.dim() == 0 else u,
            rtol=1e-9,
            atol=1e-9,
            msg=lambda m: f"gradient {n}: {m}",
            check_dtype=False,
        )


def test_random_modules(tmp_path):
    seconds = float(os.environ.get("HYPATIA_FUZZ_SECONDS", 0))
    start, seed, ran = time.monotonic(), (os.getpid() << 20) if seconds else 0, 0
    while time.monotonic() - start < seconds or ran < 60:
        seeds = list(range(seed, seed + 20))
        for number, cls in modules(seeds, tmp_path):
            try:
                ran += check(number, cls)
            except Exception as error:
                raise AssertionError(f"seed {number}:\n{source(number, 0)}") from error
        seed += 20
    print(f"{ran} random modules in {time.monotonic() - start:.0f} s")
