"""What LibTorch does with fused_mlp: opcheck, autocast, torch.func, vmap,
compile, compiled autograd, export, TorchScript, threads."""

import functools
import io
import itertools
import threading
from typing import List, Optional

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from oracle import DTYPES, assert_mlp, assert_mlp_gradients
from support import (
    LIBRARY,
    MLP,
    MLP_BACKWARD,
    MLP_FORWARD,
    Mlp,
    eager_mlp,
    mlp,
    mlp_backward,
    mlp_forward,
    mlp_operands,
    python_ok,
    rand,
    split,
)
from test_mlp import BOTH
from test_mlp_gradients import flat

close = functools.partial(torch.testing.assert_close, rtol=1e-11, atol=1e-11)
BATCHES = [3, 7, 2, 129]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def check_training_step(step, arguments, relu_last=False):
    """step(input, weights, biases) and its gradients are right."""
    output = step(*arguments)
    plain, grad_output = output.detach(), torch.randn_like(output)
    leaves = [t for t in flat(arguments) if t is not None]
    grads = iter(torch.autograd.grad(output, leaves, grad_output))
    input, weights, biases = (
        each if isinstance(each, torch.Tensor) else [t if t is None else t.detach() for t in each]
        for each in (arguments[0].detach(), *arguments[1:])
    )
    assert_mlp(plain, input, weights, biases, relu_last)
    _, activations = mlp_forward(input, weights, biases, relu_last)
    grads = [t if t is None else next(grads) for t in flat(arguments)]
    hidden = split(activations, input, weights)
    assert_mlp_gradients(grads, grad_output, input, weights, hidden, plain if relu_last else None)


CASES = [((), (3, 5)), ((4,), (3, 5, 2)), ((2, 4), (3, 5, 2, 7)), ((0,), (3, 5, 2)), ((4,), (0, 5, 2))]


@BOTH
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("bias", [True, False, "some"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case, bias, requires_grad, relu_last):
    arguments = mlp_operands(*case, bias=bias, requires_grad=requires_grad)
    opcheck(mlp.default, (*arguments, relu_last))
    opcheck(mlp_forward.default, (*arguments, relu_last))


@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=5)), ids=lambda m: "".join("nx"[b] for b in m))
def test_opcheck_of_the_backward(mask):
    for requires_grad, relu_last in itertools.product([False, True], repeat=2):
        if requires_grad and not any(mask):
            continue
        arguments = mlp_operands((4,), (3, 5, 2))
        output, activations = mlp_forward(*arguments, relu_last)
        grad_output = torch.randn_like(output).requires_grad_(requires_grad)
        given = (grad_output, *arguments[:2], activations, output if relu_last else None)
        opcheck(mlp_backward.default, (*given, list(mask)))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_opcheck_in_other_dtypes(dtype):
    tolerance = 8 * torch.finfo(dtype).eps
    arguments = mlp_operands((4,), (3, 5, 2), dtype, requires_grad=True)
    opcheck(mlp.default, arguments, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(low):
    leaves = mlp_operands((9,), (33, 17, 5), bias="some", requires_grad=True)
    with torch.autocast("cpu", dtype=low):
        output = mlp(*leaves)
        assert output.dtype == eager_mlp(*leaves).dtype == low
        with torch.autocast("cpu", enabled=False):
            assert mlp(*leaves).dtype == torch.float32
    rounded = [t if t is None else t.detach().to(low) for t in flat(leaves)]
    input, weights, biases = rounded[0], rounded[1:3], rounded[3:]
    assert_mlp(output.detach(), input, weights, biases)
    grad_output = rand(9, 5, dtype=low)
    output.backward(grad_output)
    grads = [t if t is None else t.grad for t in flat(leaves)]
    assert all(g is None or g.dtype == torch.float32 for g in grads)
    _, activations = mlp_forward(input, weights, biases, False)
    low_grads = [g if g is None else g.to(low) for g in grads]
    hidden = split(activations, input, weights)
    assert_mlp_gradients(low_grads, grad_output, input, weights, hidden)
    # Operators by themselves, and fp64, which autocast leaves alone.
    with torch.autocast("cpu", dtype=low):
        assert mlp_forward(*leaves, False)[1].dtype == low
        got = mlp_backward(grad_output, input.float(), weights, activations, None, [True] * 5)
        assert all(g.dtype == low for g in got)
        assert mlp(*mlp_operands((4,), (3, 5, 2), torch.float64)).dtype == torch.float64


def as_function(function, relu_last):
    """Of input, two weights and two biases, as transforms want it."""
    return lambda x, w, v, b, c: function(x, [w, v], [b, c], relu_last)


@BOTH
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)], ids=str)
@pytest.mark.usefixtures("no_vmap_fallback")
def test_func(leading, relu_last):
    arguments = flat(mlp_operands(leading, (3, 4, 2), torch.float64))
    tangents = tuple(map(torch.randn_like, arguments))
    every = tuple(range(5))

    def results(function):
        f = as_function(function, relu_last)
        loss = lambda *a: f(*a).pow(3).sum()  # noqa: E731
        yield func.grad_and_value(loss, every)(*arguments)
        yield func.jvp(f, tuple(arguments), tangents)
        for outer, inner in itertools.product([func.jacrev, func.jacfwd], repeat=2):
            yield outer(inner(loss, every), every)(*arguments)
        yield func.grad(lambda *a: func.grad(loss, 1)(*a).square().sum(), every)(*arguments)

    for got, want in zip(results(mlp), results(eager_mlp), strict=True):
        close(got, want)


@BOTH
@pytest.mark.parametrize("moving", [m for m in itertools.product([0, None], repeat=5) if 0 in m], ids=str)
@pytest.mark.usefixtures("no_vmap_fallback")
def test_vmap(moving, relu_last):
    like = flat(mlp_operands((4,), (3, 5, 2), torch.float64))
    arguments = [
        t if m is None else torch.stack([rand(*t.shape, dtype=t.dtype) for _ in range(3)])
        for t, m in zip(like, moving)
    ]

    def results(function):
        f = as_function(function, relu_last)
        loss = lambda *a: f(*a).square().sum()  # noqa: E731
        yield func.vmap(f, moving)(*arguments)
        yield func.vmap(func.grad(loss, tuple(range(5))), moving)(*arguments)
        yield func.grad(lambda *a: func.vmap(loss, moving)(*a).sum(), tuple(range(5)))(*arguments)

    for got, want in zip(results(mlp), results(eager_mlp), strict=True):
        close(got, want)


@pytest.mark.usefixtures("no_vmap_fallback")
def test_vmap_of_the_parts():
    """Activations come as without vmap, gaps and all."""
    inputs, (_, weights, biases) = rand(3, 4, 7), mlp_operands((4,), (7, 6, 5, 2))
    outputs, activations = func.vmap(lambda x: mlp_forward(x, weights, biases, True))(inputs)
    for i in range(3):
        alone = mlp_forward(inputs[i], weights, biases, True)
        torch.testing.assert_close((outputs[i], activations[i]), alone)


@BOTH
def test_one_graph_for_every_batch(relu_last):
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(
        lambda *a: mlp(*a, relu_last), backend=counter, fullgraph=True, dynamic=True
    )
    for m in BATCHES:
        check_training_step(step, mlp_operands((m,), (7, 6, 5), requires_grad=True), relu_last)
    assert counter.frame_count == 1 and not counters["graph_break"]


def test_inductor():
    def step(input, weights, biases):
        return mlp(input * 2, weights, biases) * 0.5

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for m in BATCHES[:3]:
        leaves = mlp_operands((m,), (7, 6, 5), requires_grad=True)
        got, want = compiled(*leaves), step(*leaves)
        assert torch.equal(got, want)  # doubling and halving are exact
        grad_output = rand(m, 5)
        got, want = (torch.autograd.grad(y, flat(leaves), grad_output) for y in (got, want))
        assert all(map(torch.equal, got, want))
    assert not counters["graph_break"]


def test_inductor_of_a_module():
    model = Mlp((7, 33, 12, 5))
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for m in BATCHES[:3]:
        input = rand(m, 7)
        assert torch.equal(compiled(input), model(input))
        with torch.no_grad():
            assert torch.equal(compiled(input), model(input))


def test_data_dependent_batch():
    def selected(input, weights, biases):
        return mlp(input[input[:, 0] > 0], weights, biases)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(selected, backend="aot_eager", fullgraph=True, dynamic=True)
        for requires_grad, m in itertools.product([False, True], BATCHES):
            input, *rest = mlp_operands((m,), (7, 6, 5), requires_grad=requires_grad)
            output = compiled(input, *rest)
            detached = [[t.detach() for t in ts] for ts in rest]
            assert_mlp(output.detach(), input.detach()[input[:, 0] > 0], *detached)
            if requires_grad:
                output.sum().backward()


def test_calls_stay_one_node_each():
    """One operator forward and one backward in the compiled graphs."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph)

    step = torch.compile(mlp, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    step(*mlp_operands((4,), (7, 6, 5, 3), requires_grad=True)).sum().backward()
    for graph, name in zip(graphs, [MLP_FORWARD, MLP_BACKWARD], strict=True):
        names = [n.target.name() for n in graph.graph.nodes if hasattr(n.target, "name")]
        assert [n for n in names if n.startswith("hypatia")] == [name], names
        assert not [n for n in names if "mm" in n], names


@BOTH
@pytest.mark.parametrize("requires", [(1,) * 5, (1, 0, 0, 0, 0), (0, 1, 1, 1, 1), (0, 0, 0, 0, 1), (0, 0, 1, 0, 0)], ids=str)
def test_compiled_autograd(requires, relu_last):
    captured = []

    def compiler(graph):
        captured.append(graph)
        return torch.compile(graph, backend="aot_eager", fullgraph=True, dynamic=True)

    for m in BATCHES:
        arguments = mlp_operands((m,), (7, 6, 5))
        leaves = [t for t, r in zip(flat(arguments), requires) if r]
        for t in leaves:
            t.requires_grad_()
        grad_output = rand(m, 5)
        want = torch.autograd.grad(mlp(*arguments, relu_last), leaves, grad_output)
        output = mlp(*arguments, relu_last)
        with torch._dynamo.compiled_autograd._enable(compiler):
            output.backward(grad_output)
        assert all(map(torch.equal, [t.grad for t in leaves], want))
    assert len(captured) <= 2


def test_compiled_autograd_of_second_derivatives():
    def penalty(function):
        torch.manual_seed(0)
        leaves = mlp_operands((4,), (7, 6, 5), torch.float64, requires_grad=True)
        loss = function(*leaves).square().sum()
        (grad,) = torch.autograd.grad(loss, leaves[:1], create_graph=True)
        with torch._dynamo.compiled_autograd._enable(lambda graph: graph):
            grad.square().sum().backward()
        return [t.grad for t in flat(leaves)]

    got, want = penalty(mlp), penalty(eager_mlp)
    for ours, theirs in zip(got, want):
        # Zeros and None say the same.
        close(ours if ours is not None else torch.zeros_like(theirs), theirs)


def test_compiled_autograd_by_its_switch():
    model, input = Mlp((7, 33, 5)), rand(4, 7)
    with torch._dynamo.config.patch(compiled_autograd=True):

        @torch.compile(backend="aot_eager")
        def step(input):
            model(input).square().sum().backward()

        step(input)
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(input).square().sum().backward()
    assert counters["compiled_autograd"]["captures"] == 1
    assert all(torch.equal(a, p.grad) for a, p in zip(got, model.parameters()))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own,
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # both
@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_export(strict, tmp_path):
    model = Mlp((7, 6, 5), relu_last=True)
    program = export(model, (rand(4, 7),), dynamic_shapes=({0: Dim("batch")},), strict=strict)
    names = [n.target.name() for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert names == [MLP]
    torch.export.save(program, tmp_path / "mlp.pt2")
    loaded = torch.export.load(tmp_path / "mlp.pt2")
    for m in BATCHES:
        input = rand(m, 7)
        want = model(input)
        for each in (program, program.run_decompositions(), loaded):
            assert torch.equal(each.module()(input), want)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_of_gradients(mode):
    def gradients(grad_output, *leaves):
        leaves = [t.detach().requires_grad_() for t in leaves]
        output = mlp(leaves[0], leaves[1:3], leaves[3:])
        return torch.autograd.grad(output, leaves, grad_output)

    arguments = flat(mlp_operands((4,), (7, 6, 5)))
    graph = make_fx(gradients, tracing_mode=mode)(rand(4, 5), *arguments)
    names = [n.target.name() for n in graph.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert [n for n in names if n.startswith("hypatia")] == [MLP_FORWARD, MLP_BACKWARD]
    m, widths = (4, (7, 6, 5)) if mode == "real" else (9, (3, 11, 2))
    arguments, grad_output = flat(mlp_operands((m,), widths)), rand(m, widths[-1])
    got, want = graph(grad_output, *arguments), gradients(grad_output, *arguments)
    assert all(map(torch.equal, got, want))


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(7, 6), torch.nn.Linear(6, 5, bias=False)

    def forward(self, input):
        biases: List[Optional[torch.Tensor]] = [self.first.bias, None]
        weights = [self.first.weight, self.last.weight]
        hidden = torch.ops.hypatia.fused_mlp(input, weights, biases, relu_last=True)
        return hidden + torch.ops.hypatia.fused_mlp(input, weights, biases)


LOAD = """
import sys, torch
torch.ops.load_library(sys.argv[1])
input, want = torch.load(sys.argv[3])
module = torch.jit.load(sys.argv[2])
assert torch.equal(module(input), want)
input.requires_grad_()
module(input).sum().backward()
assert input.grad.shape == input.shape
"""


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript(how, tmp_path):
    plain, input = Scripted().eval(), rand(4, 7)
    module = torch.jit.script(plain) if how == "script" else torch.jit.trace(plain, (input,))
    assert [n.kind() for n in module.inlined_graph.nodes()].count(MLP) == 2
    memory = io.BytesIO()
    torch.jit.save(module, memory)
    memory.seek(0)
    for each in (module, torch.jit.load(memory), torch.jit.freeze(module)):
        for shape in [(4, 7), (33, 7), (2, 3, 7), (0, 7)]:
            sample = rand(*shape)
            assert torch.equal(each(sample), plain(sample))
    for _ in range(4):  # the profiling executor specialises at the third
        grads = [
            torch.autograd.grad(m(input).square().sum(), [*m.parameters()]) for m in (module, plain)
        ]
        assert all(map(torch.allclose, *grads))
    module.save(tmp_path / "module.pt")
    torch.save((input, plain(input).detach()), tmp_path / "data.pt")
    python_ok(LOAD, LIBRARY, tmp_path / "module.pt", tmp_path / "data.pt")


def test_threads():
    """The same bits as alone, forward and backward, and each its own graph."""
    torch.set_num_threads(1)
    arguments = mlp_operands((33,), (65, 40, 17))
    shared = [t.requires_grad_() for t in flat(arguments)]
    output = mlp(*arguments)
    grad_output = torch.randn_like(output)

    def backward(y):
        return torch.autograd.grad(y, shared, grad_output, retain_graph=True)

    want, failed = backward(output), []

    def work():
        torch.set_num_threads(1)
        for _ in range(20):
            own = mlp(*arguments)
            for y in (output, own):
                if not torch.equal(y, output) or not all(map(torch.equal, backward(y), want)):
                    failed.append(y)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_training():
    """Curves of a network trained through fused_mlp are eager's."""
    input, target = rand(64, 20), rand(64, 4)
    curves = []
    for function in (mlp, eager_mlp):
        torch.manual_seed(2)
        model = Mlp((20, 32, 16, 4), function).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        curve = []
        for _ in range(30):
            loss = (model(input.double()) - target.double()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.detach())
        curves.append(torch.stack(curve))
    close(curves[0], curves[1])
    assert curves[0][-1] < 0.8 * curves[0][0]
