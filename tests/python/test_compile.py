"""torch.compile and compiled autograd: one graph, few recompilations, the same
numbers."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from oracle import assert_forward, assert_gradients
from support import BACKWARD, FORWARD, Layer, eager, fused, operands, rand

BATCHES = [3, 7, 2, 129, 10]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def check_training_step(step, m, k=7, n=5, dtype=torch.float32):
    """step(input, weight, bias) computes what the operator does; so do its
    gradients."""
    leaves = operands((m,), k, n, dtype, requires_grad=True)
    output = step(*leaves)
    grad_output = rand(*output.shape, dtype=dtype)
    grads = torch.autograd.grad(output, leaves, grad_output)
    input, weight, bias = (t.detach() for t in leaves)
    assert_forward(output.detach(), input, weight, bias, what=f"M={m}")
    assert_gradients(grads, grad_output, input, weight, output.detach(), f"M={m}")


def test_one_graph_for_every_batch():
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(fused, backend=counter, fullgraph=True, dynamic=True)
    for m in BATCHES:
        check_training_step(step, m)
    assert counter.frame_count == 1
    (graph,) = counter.graphs
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [
        torch.ops.hypatia.fused_linear_relu
    ]
    assert not counters["graph_break"]
    # Sizes 0 and 1 are special to the compiler: one graph each at most.
    for m in (1, 0):
        check_training_step(step, m)
    assert counter.frame_count <= 3


def test_automatic_dynamic():
    """Without dynamic=True the second batch size makes the size symbolic."""
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(fused, backend=counter, fullgraph=True)
    for m in BATCHES:
        check_training_step(step, m)
    assert counter.frame_count == 2


def test_inductor():
    """The compiler that users get, with its own kernels around the operator."""

    def step(input, weight, bias):
        return fused(input * 2, weight, bias) * 0.5

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for m in BATCHES[:3]:
        leaves = operands((m,), 7, 5, requires_grad=True)
        got, want = compiled(*leaves), step(*leaves)
        # Doubling and halving are exact, so fusing them changes nothing.
        assert torch.equal(got, want)
        grad_output = rand(m, 5)
        got_grads = torch.autograd.grad(got, leaves, grad_output)
        want_grads = torch.autograd.grad(want, leaves, grad_output)
        assert all(map(torch.equal, got_grads, want_grads))
    assert not counters["graph_break"]


def test_inductor_inference():
    model = torch.nn.Sequential(Layer(7, 33), Layer(33, 5)).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for m in BATCHES[:3]:
            input = rand(m, 7)
            assert torch.equal(compiled(input), model(input))


def test_double_backward_outside_the_graph():
    """AOTAutograd has no double backward; it must say so, not be wrong."""
    step = torch.compile(fused, backend="aot_eager", fullgraph=True)
    leaves = operands((4,), 3, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(step(*leaves).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.sum().backward()


def test_gradient_inside_the_graph():
    """torch.func.grad compiles with the function it differentiates."""

    def gradient(function):
        loss = lambda *a: function(*a).square().sum()  # noqa: E731
        return lambda *a: torch.func.grad(loss, argnums=(0, 1, 2))(*a)

    compiled = torch.compile(gradient(fused), backend="aot_eager", fullgraph=True)
    arguments = operands((4,), 3, 5, torch.float64)
    torch.testing.assert_close(
        compiled(*arguments), gradient(eager)(*arguments), rtol=1e-13, atol=1e-13
    )


def test_vmap_inside_the_graph():
    compiled = torch.compile(
        lambda x, w: torch.func.vmap(fused, (0, None))(x, w), backend="aot_eager", fullgraph=True
    )
    inputs, weight = rand(3, 4, 7), rand(5, 7)
    assert_forward(compiled(inputs, weight), inputs, weight)


def test_data_dependent_batch():
    """The number of selected rows is unknown to the compiler: an unbacked size,
    as in mixtures of experts."""

    def selected(input, weight, bias):
        return fused(input[input[:, 0] > 0], weight, bias)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(selected, backend=counter, fullgraph=True, dynamic=True)
        for m in BATCHES:
            input, weight, bias = operands((m,), 7, 5)
            assert_forward(compiled(input, weight, bias), input[input[:, 0] > 0], weight, bias)
        assert counter.frame_count == 1


def test_autocast_inside_the_graph():
    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(*arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return fused(*arguments)

    leaves = operands((4,), 7, 5, requires_grad=True)
    output = step(*leaves)
    assert output.dtype == torch.bfloat16
    rounded = [t.detach().bfloat16() for t in leaves]
    assert_forward(output.detach(), *rounded)
    output.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves)


@pytest.mark.parametrize("compile_forward", [False, True], ids=["eager", "compiled"])
def test_compiled_autograd(compile_forward):
    """The backward graph itself is compiled, once for every batch size."""
    captured = []

    def compiler(graph):
        captured.append(graph)
        return torch.compile(graph, backend="aot_eager", fullgraph=True, dynamic=True)

    function = fused
    if compile_forward:
        function = torch.compile(fused, backend="aot_eager", fullgraph=True, dynamic=True)
    for m in BATCHES:
        leaves = operands((m,), 7, 5, requires_grad=True)
        output = function(*leaves)
        grad_output = rand(m, 5)
        with torch._dynamo.compiled_autograd._enable(compiler, dynamic=True):
            output.backward(grad_output)
        input, weight, y = leaves[0].detach(), leaves[1].detach(), output.detach()
        grads = [t.grad for t in leaves]
        assert_gradients(grads, grad_output, input, weight, y, f"M={m}")
    assert counters["compiled_autograd"]["captures"] == len(captured) <= 2


def test_compiled_autograd_of_a_network():
    """Gradients arrive from other nodes of the graph, as in every real use."""
    model = torch.nn.Sequential(Layer(7, 33), Layer(33, 5))
    input = rand(4, 7)

    def gradients():
        model.zero_grad()
        model(input).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    want = gradients()
    with torch._dynamo.compiled_autograd._enable(lambda graph: graph):
        got = gradients()
    assert all(map(torch.equal, got, want))


def test_compiled_autograd_of_second_derivatives():
    """A gradient penalty, its own backward compiled."""

    def penalty(function):
        torch.manual_seed(0)
        leaves = operands((4,), 7, 5, torch.float64, requires_grad=True)
        loss = function(*leaves).square().sum()
        (grad,) = torch.autograd.grad(loss, leaves[:1], create_graph=True)
        with torch._dynamo.compiled_autograd._enable(lambda graph: graph):
            grad.square().sum().backward()
        return [t.grad for t in leaves]

    torch.testing.assert_close(penalty(fused), penalty(eager), rtol=1e-12, atol=1e-12)


def test_compiled_autograd_follows_masks():
    """Graphs for other needs are other graphs: none is reused by mistake."""
    for requires in [(True, True, True), (True, False, False), (False, True, True)] * 2:
        leaves = [t.requires_grad_(r) for t, r in zip(operands((4,), 7, 5), requires)]
        output, grad_output = fused(*leaves), rand(4, 5)
        with torch._dynamo.compiled_autograd._enable(lambda graph: graph):
            output.backward(grad_output)
        input, weight, y = leaves[0].detach(), leaves[1].detach(), output.detach()
        grads = [t.grad for t in leaves]
        assert tuple(g is not None for g in grads) == requires
        assert_gradients(grads, grad_output, input, weight, y)


def test_compiled_autograd_by_its_switch():
    """The public way: config.compiled_autograd with torch.compile."""
    model = torch.nn.Sequential(Layer(7, 33), Layer(33, 5))
    input = rand(4, 7)

    with torch._dynamo.config.patch(compiled_autograd=True):

        @torch.compile(backend="aot_eager")
        def step(input):
            model(input).square().sum().backward()

        step(input)
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(input).square().sum().backward()
    assert counters["compiled_autograd"]["captures"] == 1
    for a, p in zip(got, model.parameters()):
        assert torch.equal(a, p.grad)


def test_operator_stays_one_node():
    """Nothing decomposes it: the compiled graphs call our kernels."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph)

    step = torch.compile(fused, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    step(*operands((4,), 7, 5, requires_grad=True)).sum().backward()
    for graph, name in zip(graphs, [FORWARD, BACKWARD], strict=True):
        names = [n.target.name() for n in graph.graph.nodes if hasattr(n.target, "name")]
        assert [n for n in names if n.startswith("hypatia")] == [name], names
