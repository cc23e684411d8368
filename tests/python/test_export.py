"""torch.export, make_fx and FakeTensor: the operators without data."""

import io
import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

from oracle import DTYPES, assert_forward, assert_gradients
from support import (
    BACKWARD,
    FORWARD,
    LIBRARY,
    Layer,
    fused,
    fused_backward,
    operands,
    python_ok,
    rand,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # torch's own,
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),  # both
]

BATCHES = [2, 5, 33]


def names_in(graph):
    """The operators of a graph, by name."""
    return [n.target.name() for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload)]


def check_layer(function, layer, m):
    input = rand(m, layer.linear.in_features)
    weight, bias = layer.linear.weight.detach(), layer.linear.bias.detach()
    assert_forward(function(input).detach(), input, weight, bias, f"M={m}")


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
@pytest.mark.parametrize("size", [Dim("batch"), Dim.DYNAMIC, Dim.AUTO], ids=str)
def test_dynamic_batch(size, strict):
    layer = Layer(7, 5)
    program = export(layer, (rand(4, 7),), dynamic_shapes=({0: size},), strict=strict)
    assert names_in(program.graph) == [FORWARD]
    for m in BATCHES:
        check_layer(program.module(), layer, m)
        check_layer(program.run_decompositions().module(), layer, m)


def test_constraints_between_sizes():
    """K of input and weight is one symbol, found by the operator's own check."""

    class Free(torch.nn.Module):
        def forward(self, input, weight, bias):
            return fused(input, weight, bias)

    sizes = ({0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO})
    program = export(Free(), operands((4,), 7, 5), dynamic_shapes=sizes)
    arguments = operands((9,), 3, 11)
    assert_forward(program.module()(*arguments), *arguments)
    with pytest.raises(AssertionError, match="Guard failed"):
        program.module()(rand(9, 3), rand(11, 4), rand(11))


def test_save_and_load(tmp_path):
    layer = Layer(7, 5)
    program = export(layer, (rand(4, 7),), dynamic_shapes=({0: Dim("batch")},))
    memory = io.BytesIO()
    torch.export.save(program, memory)
    memory.seek(0)
    for m in BATCHES:
        check_layer(torch.export.load(memory).module(), layer, m)
        memory.seek(0)

    # In a process that has never seen this file's Python.
    torch.export.save(program, tmp_path / "layer.pt2")
    input = rand(6, 7)
    torch.save((input, layer(input).detach()), tmp_path / "data.pt")
    python_ok(
        "import sys, torch, warnings\n"
        "warnings.simplefilter('ignore')  # torch's own, of its archive\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "input, want = torch.load(sys.argv[3])\n"
        "got = torch.export.load(sys.argv[2]).module()(input)\n"
        "assert torch.equal(got, want)\n",
        LIBRARY,
        tmp_path / "layer.pt2",
        tmp_path / "data.pt",
    )


def test_export_under_autocast():
    class Mixed(Layer):
        def forward(self, input):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(input)

    layer = Mixed(7, 5)
    program = export(layer, (rand(4, 7),))
    input = rand(4, 7)
    got = program.module()(input)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, layer(input))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode):
    graph = make_fx(lambda *a: fused(*a) + 1, tracing_mode=mode)(*operands((4,), 7, 5))
    assert names_in(graph.graph)[0] == FORWARD
    sizes = [((4,), 7, 5)] if mode == "real" else [((9,), 3, 11), ((4,), 7, 5)]
    for leading, k, n in sizes:
        input, weight, bias = operands(leading, k, n)
        assert torch.equal(graph(input, weight, bias), fused(input, weight, bias) + 1)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_of_gradients(mode):
    def gradients(grad_output, *leaves):
        leaves = [t.detach().requires_grad_() for t in leaves]
        return torch.autograd.grad(fused(*leaves), leaves, grad_output)

    graph = make_fx(gradients, tracing_mode=mode)(rand(4, 5), *operands((4,), 7, 5))
    assert [n for n in names_in(graph.graph) if n.startswith("hypatia")] == [FORWARD, BACKWARD]
    m, k, n = (4, 7, 5) if mode == "real" else (9, 3, 11)
    leaves, grad_output = operands((m,), k, n), rand(m, n)
    assert_gradients(
        graph(grad_output, *leaves), grad_output, *leaves[:2], fused(*leaves)
    )


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "meta"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fake_tensors(dtype, device):
    """Shape, dtype, strides and device, also of devices that are not here."""
    for leading, has_bias in itertools.product([(), (4,), (2, 0, 3)], [True, False]):
        real = operands(leading, 7, 5, dtype, has_bias)
        real_output = fused(*real)
        with FakeTensorMode():
            fake = [
                t if t is None else torch.empty(t.shape, dtype=dtype, device=device)
                for t in real
            ]
            output = fused(*fake)
            grads = fused_backward(torch.empty_like(output), *fake[:2], output, [1, 0, 1])
        expected = fake[0].device
        for got, like in [(output, real_output), (grads[0], real[0]), (grads[2], torch.empty(5))]:
            assert (got.shape, got.stride()) == (like.shape, like.contiguous().stride())
            assert (got.dtype, got.device) == (dtype, expected)
        assert grads[1] is None


def test_symbolic_sizes():
    """The result's sizes are the arguments' symbols, and the one thing learnt
    is that input, weight and bias agree: nothing is specialised."""
    graph = make_fx(fused, tracing_mode="symbolic")(*operands((4,), 7, 5))
    input, weight, _, output = (n.meta["val"] for n in graph.graph.nodes if "val" in n.meta)
    assert str(output.shape) == str(torch.Size([input.shape[0], weight.shape[0]]))
    assert all(isinstance(size, torch.SymInt) for size in output.shape)
    guards = {str(guard.expr) for guard in graph.shape_env.guards}
    assert len(guards) <= 2 and all(g.startswith("Eq(") for g in guards), guards
