"""TorchScript: script, trace, save, load elsewhere, freeze, optimise, copy."""

import copy
import io
import pickle

import pytest
import torch

from oracle import assert_gradients
from support import FORWARD, LIBRARY, fused, operands, python, python_ok, rand


class Scripted(torch.nn.Module):
    """Called by its full name, as scripts must."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(7, 5)

    def forward(self, input):
        weight, bias = self.linear.weight, self.linear.bias
        first = torch.ops.hypatia.fused_linear_relu(input, weight, bias)
        second = torch.ops.hypatia.fused_linear_relu(input, weight)  # without bias
        return first + second


def scripted():
    return torch.jit.script(Scripted().eval())


def traced():
    return torch.jit.trace(Scripted().eval(), (rand(4, 7),))


MAKERS = pytest.mark.parametrize("make", [scripted, traced])


def assert_same(module, other):
    """The same bits for several batch sizes and ranks."""
    for shape in [(4, 7), (1, 7), (33, 7), (2, 3, 7), (0, 7)]:
        input = rand(*shape)
        assert torch.equal(module(input), other(input)), shape


@MAKERS
def test_same_as_eager(make):
    module = make()
    plain = Scripted().eval()
    plain.load_state_dict(module.state_dict())
    assert_same(module, plain)
    nodes = [n.kind() for n in module.inlined_graph.nodes()]
    assert nodes.count(FORWARD) == 2


@MAKERS
def test_save_and_load(make, tmp_path):
    module, memory = make(), io.BytesIO()
    torch.jit.save(module, memory)
    memory.seek(0)
    assert_same(torch.jit.load(memory), module)
    module.save(tmp_path / "module.pt")
    assert_same(torch.jit.load(tmp_path / "module.pt"), module)


LOAD = """
import sys, torch
if sys.argv[1]:
    torch.ops.load_library(sys.argv[1])
input, want = torch.load(sys.argv[3])
module = torch.jit.load(sys.argv[2])
assert torch.equal(module(input), want)
input.requires_grad_()
module(input).sum().backward()
assert input.grad.shape == input.shape
"""


@MAKERS
def test_load_in_another_process(make, tmp_path):
    module, input = make(), rand(4, 7)
    module.save(tmp_path / "module.pt")
    torch.save((input, module(input).detach()), tmp_path / "data.pt")
    python_ok(LOAD, LIBRARY, tmp_path / "module.pt", tmp_path / "data.pt")


def test_load_without_the_library(tmp_path):
    """LibTorch says what is missing."""
    scripted().save(tmp_path / "module.pt")
    torch.save((rand(4, 7), rand(4, 5)), tmp_path / "data.pt")
    done = python(LOAD, "", tmp_path / "module.pt", tmp_path / "data.pt")
    assert done.returncode == 1
    assert "Unknown builtin op: hypatia::fused_linear_relu" in done.stderr


@MAKERS
def test_freeze(make):
    module = make()
    frozen = torch.jit.freeze(module)
    assert FORWARD in str(frozen.graph)
    assert_same(frozen, module)


@MAKERS
def test_optimize_for_inference(make):
    module = make()
    with torch.no_grad():
        assert_same(torch.jit.optimize_for_inference(module), module)


@MAKERS
def test_deepcopy(make):
    module = make()
    twin = copy.deepcopy(module)
    assert_same(twin, module)
    with torch.no_grad():
        twin.linear.weight.zero_()
        twin.linear.bias.fill_(1)
    assert torch.equal(twin(rand(4, 7)), torch.ones(4, 5))
    assert not torch.equal(module(rand(4, 7)), torch.ones(4, 5))


@MAKERS
def test_gradients(make):
    """Also from the third run on, when the profiling executor has specialised."""
    module = make()
    plain = Scripted()
    plain.load_state_dict(module.state_dict())
    for _ in range(4):
        input = rand(4, 7)
        grads = []
        for m in (module, plain):
            m.zero_grad()
            leaf = input.clone().requires_grad_()
            m(leaf).square().sum().backward()
            grads.append([leaf.grad, m.linear.weight.grad, m.linear.bias.grad])
        assert all(map(torch.allclose, *grads))


def test_backward_operator_in_a_script():
    """With a full mask: scripts fail on undefined results, ATen's as well."""

    @torch.jit.script
    def gradients(dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, y: torch.Tensor):
        return torch.ops.hypatia.fused_linear_relu_backward(dy, x, w, y, [True, True, True])

    input, weight, bias = operands((4,), 7, 5)
    output, grad_output = fused(input, weight, bias), rand(4, 5)
    for _ in range(3):
        grads = gradients(grad_output, input, weight, output)
        assert_gradients(grads, grad_output, input, weight, output)


def test_build_info_in_a_script():
    @torch.jit.script
    def info() -> str:
        return torch.ops.hypatia.build_info()

    assert '"version"' in info()


def test_errors_in_a_script():
    module = scripted()
    with pytest.raises(RuntimeError, match=r"hypatia::fused_linear_relu: expected weight of shape"):
        module(rand(4, 8))


def test_shape_propagation():
    """Scripts know the result type: the schema is a tensor's."""
    graph = torch.jit.script(Scripted()).inlined_graph
    node = graph.findNode(FORWARD)
    assert node.outputsAt(0).type().isSubtypeOf(torch._C.TensorType.get())


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_of_an_eager_module(protocol):
    module = Scripted()
    assert_same(pickle.loads(pickle.dumps(module, protocol)), module)


def test_torch_save_of_an_eager_module(tmp_path):
    module = Scripted()
    torch.save(module, tmp_path / "module.pt")
    assert_same(torch.load(tmp_path / "module.pt", weights_only=False), module)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    fresh = Scripted()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert_same(fresh, module)
