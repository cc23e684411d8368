"""Every refusal, by its exact text: hypatia::op: expected …, got ….

The same on the CPU, on Meta and for FakeTensor, and a RuntimeError always.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from support import fused, fused_backward, rand

F16, F32, F64 = torch.float16, torch.float32, torch.float64
KINDS = "of dtype Float, Double, Half or BFloat16"


def zeros(*shape, dtype=F32):
    return torch.zeros(shape, dtype=dtype)


X, W, B = zeros(4, 3), zeros(5, 3), zeros(5)

# name: (input, weight, bias), what is wrong
FORWARD = {
    "integer input": ((X.int(), W, B), f"expected input {KINDS}, got Int"),
    "long input": ((X.long(), W.long(), None), f"expected input {KINDS}, got Long"),
    "bool input": ((X.bool(), W, B), f"expected input {KINDS}, got Bool"),
    "complex input": ((X.cfloat(), W, B), f"expected input {KINDS}, got ComplexFloat"),
    "integer weight": ((X, W.short(), B), f"expected weight {KINDS}, got Short"),
    "complex weight": ((X, W.cdouble(), B), f"expected weight {KINDS}, got ComplexDouble"),
    "integer bias": ((X, W, B.byte()), f"expected bias {KINDS}, got Byte"),
    "fp8 input": ((X.to(torch.float8_e4m3fn), W, B), f"expected input {KINDS}, got Float8_e4m3fn"),
    "double weight": ((X, W.double(), B), "expected weight of input's dtype Float, got Double"),
    "half bias": ((X, W, B.half()), "expected bias of input's dtype Float, got Half"),
    "half input": ((X.half(), W, B), "expected weight of input's dtype Half, got Float"),
    "bfloat16 bias": (
        (X.double(), W.double(), B.bfloat16()),
        "expected bias of input's dtype Double, got BFloat16",
    ),
    "scalar input": ((zeros(), W, B), "expected input of shape [*, K], got a scalar"),
    "scalar weight": ((X, zeros(), B), "expected weight of shape [N, K], got []"),
    "1-D weight": ((X, zeros(3), B), "expected weight of shape [N, K], got [3]"),
    "3-D weight": ((X, zeros(2, 5, 3), B), "expected weight of shape [N, K], got [2, 5, 3]"),
    "other K": (
        (X, zeros(5, 4), B),
        "expected weight of shape [N, 3] for input [4, 3], got [5, 4]",
    ),
    "transposed weight": (
        (X, zeros(3, 5), B),
        "expected weight of shape [N, 3] for input [4, 3], got [3, 5]",
    ),
    "1-D input of other K": (
        (zeros(2), W, B),
        "expected weight of shape [N, 2] for input [2], got [5, 3]",
    ),
    "empty K": (
        (zeros(4, 0), W, B),
        "expected weight of shape [N, 0] for input [4, 0], got [5, 3]",
    ),
    "longer bias": ((X, W, zeros(6)), "expected bias of shape [5], got [6]"),
    "bias of one": ((X, W, zeros(1)), "expected bias of shape [5], got [1]"),
    "scalar bias": ((X, W, zeros()), "expected bias of shape [5], got []"),
    "2-D bias": ((X, W, zeros(1, 5)), "expected bias of shape [5], got [1, 5]"),
}

DY = Y = zeros(4, 5)

# name: (grad_output, input, weight, output), what is wrong
BACKWARD = {
    "integer input": ((DY, X.int(), W, Y), f"expected input {KINDS}, got Int"),
    "scalar input": ((DY, zeros(), W, Y), "expected input of shape [*, K], got a scalar"),
    "1-D weight": ((DY, X, zeros(3), Y), "expected weight of shape [N, K], got [3]"),
    "other K": (
        (DY, X, zeros(5, 4), Y),
        "expected weight of shape [N, 3] for input [4, 3], got [5, 4]",
    ),
    "half gradient": (
        (DY.half(), X, W, Y),
        "expected grad_output of input's dtype Float, got Half",
    ),
    "integer gradient": ((DY.int(), X, W, Y), f"expected grad_output {KINDS}, got Int"),
    "double output": ((DY, X, W, Y.double()), "expected output of input's dtype Float, got Double"),
    "bool output": ((DY, X, W, Y.bool()), f"expected output {KINDS}, got Bool"),
    "fewer rows of gradient": (
        (zeros(3, 5), X, W, Y),
        "expected grad_output of shape [4, 5], got [3, 5]",
    ),
    "other columns of gradient": (
        (zeros(4, 6), X, W, Y),
        "expected grad_output of shape [4, 5], got [4, 6]",
    ),
    "scalar gradient": ((zeros(), X, W, Y), "expected grad_output of shape [4, 5], got []"),
    "flattened gradient": (
        (zeros(4, 5), zeros(2, 2, 3), W, zeros(2, 2, 5)),
        "expected grad_output of shape [2, 2, 5], got [4, 5]",
    ),
    "broadcastable output": (
        (DY, X, W, zeros(1, 5)),
        "expected output of shape [4, 5], got [1, 5]",
    ),
    "transposed output": ((DY, X, W, zeros(5, 4)), "expected output of shape [4, 5], got [5, 4]"),
    "1-D": (
        (zeros(4), zeros(3), W, zeros(5)),
        "expected grad_output of shape [5], got [4]",
    ),
}


def assert_refused(function, arguments, text):
    """Exactly one sentence; a C++ backtrace may follow on lines of its own."""
    with pytest.raises(RuntimeError) as caught:
        function(*arguments)
    assert str(caught.value).split("\n")[0] == text


def as_meta(t):
    return t if t is None else t.to("meta")


def as_leaf(t):
    differentiable = t is not None and (t.is_floating_point() or t.is_complex())
    return t.detach().requires_grad_() if differentiable else t


VARIANTS = {"plain": lambda t: t, "requires_grad": as_leaf, "meta": as_meta}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", FORWARD)
def test_forward(case, variant):
    arguments, text = FORWARD[case]
    arguments = [VARIANTS[variant](t) for t in arguments]
    assert_refused(fused, arguments, f"hypatia::fused_linear_relu: {text}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", BACKWARD)
def test_backward(case, variant):
    arguments, text = BACKWARD[case]
    arguments = [VARIANTS[variant](t) for t in arguments]
    for mask in [(True, True, True), (False, False, False)]:
        assert_refused(
            fused_backward, (*arguments, mask), f"hypatia::fused_linear_relu_backward: {text}"
        )


@pytest.mark.parametrize("case", FORWARD)
def test_forward_on_fake_tensors(case):
    arguments, text = FORWARD[case]
    with FakeTensorMode() as mode:
        arguments = [t if t is None else mode.from_tensor(t) for t in arguments]
        assert_refused(fused, arguments, f"hypatia::fused_linear_relu: {text}")


@pytest.mark.parametrize("case", BACKWARD)
def test_backward_on_fake_tensors(case):
    arguments, text = BACKWARD[case]
    with FakeTensorMode() as mode:
        arguments = [mode.from_tensor(t) for t in arguments]
        assert_refused(
            fused_backward, (*arguments, [True] * 3), f"hypatia::fused_linear_relu_backward: {text}"
        )


VMAPPED = [
    "long input",
    "half bias",
    "scalar input",
    "1-D weight",
    "other K",
    "bias of one",
    "2-D bias",
]


@pytest.mark.parametrize("case", VMAPPED)
def test_forward_under_vmap(case):
    """Batching excuses nothing. The sizes in the text are one sample's."""
    (input, *rest), text = FORWARD[case]
    batched = torch.func.vmap(lambda x: fused(x, *rest))
    assert_refused(batched, [torch.stack([input, input])], f"hypatia::fused_linear_relu: {text}")


@pytest.mark.parametrize("case", ["fewer rows of gradient", "broadcastable output", "other K"])
def test_backward_under_vmap(case):
    (grad_output, *rest), text = BACKWARD[case]
    batched = torch.func.vmap(lambda dy: fused_backward(dy, *rest, [True] * 3))
    assert_refused(
        batched,
        [torch.stack([grad_output, grad_output])],
        f"hypatia::fused_linear_relu_backward: {text}",
    )


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_devices_of_the_forward(name):
    arguments = {"input": X, "weight": W, "bias": B}
    arguments[name] = as_meta(arguments[name])
    assert_refused(
        fused,
        arguments.values(),
        f"hypatia::fused_linear_relu: expected {name} on input's device cpu, got meta",
    )


@pytest.mark.parametrize("name", ["grad_output", "weight", "output"])
def test_devices_of_the_backward(name):
    arguments = {"grad_output": DY, "input": X, "weight": W, "output": Y}
    arguments[name] = as_meta(arguments[name])
    assert_refused(
        fused_backward,
        (*arguments.values(), [True] * 3),
        f"hypatia::fused_linear_relu_backward: expected {name} on input's device cpu, got meta",
    )


def test_fake_devices():
    """Not ours: FakeTensor compares devices before it asks the operator."""
    with FakeTensorMode(), pytest.raises(RuntimeError, match=r"fused_linear_relu.*cuda:0, cpu"):
        fused(torch.empty(4, 3, device="cuda:0"), torch.empty(5, 3))


SPARSE = {
    "Sparse": lambda t: t.to_sparse(),
    "SparseCsr": lambda t: t.to_sparse_csr(),
    "Mkldnn": lambda t: t.to_mkldnn(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("name", ["input", "weight"])
@pytest.mark.parametrize("layout", SPARSE)
def test_layouts(layout, name):
    arguments = {"input": rand(4, 3), "weight": rand(5, 3)}
    arguments[name] = SPARSE[layout](arguments[name])
    assert_refused(
        fused,
        arguments.values(),
        f"hypatia::fused_linear_relu: expected a strided {name}, got layout {layout}",
    )


def test_quantized_input():
    input = torch.quantize_per_tensor(rand(4, 3), 0.1, 0, torch.qint8)
    assert_refused(
        fused, (input, W), f"hypatia::fused_linear_relu: expected input {KINDS}, got QInt8"
    )


def test_the_first_wrong_argument_is_named():
    """In the schema's order, one sentence however much is wrong."""
    assert_refused(
        fused,
        (X.int(), W.double(), zeros(9)),
        f"hypatia::fused_linear_relu: expected input {KINDS}, got Int",
    )


def test_errors_leave_nothing_behind():
    """After a refusal the same arguments, corrected, work."""
    leaf = W.clone().requires_grad_()
    for _ in range(3):
        with pytest.raises(RuntimeError):
            fused(X, leaf, zeros(6))
        fused(X + 1, leaf, B).sum().backward()


def test_wrong_kinds_of_argument():
    """Not ours: the dispatcher's own message, which names the operator."""
    with pytest.raises((RuntimeError, TypeError), match="hypatia::fused_linear_relu"):
        fused(X)
    with pytest.raises((RuntimeError, TypeError), match="hypatia::fused_linear_relu"):
        fused("input", W)
    with pytest.raises((RuntimeError, TypeError), match="hypatia::fused_linear_relu_backward"):
        fused_backward(DY, X, W, Y)
