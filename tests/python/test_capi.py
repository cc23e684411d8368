"""The C ABI, called as C calls it. Tensors cross as `at::Tensor*`, made and
taken back by the same functions that AOTInductor's Python side uses."""

import ctypes
import json
import subprocess
import sys
import threading

import pytest
import torch

from oracle import assert_gradients
from support import LIBRARY, fused, mlp, mlp_operands, operands, rand

OK, ERROR = 0, 1
NAMES = ["grad_output", "input", "weight", "output"]


@pytest.fixture(scope="module")
def library():
    library = ctypes.CDLL(str(LIBRARY))
    library.hypatia_abi_version.restype = ctypes.c_uint32
    for name in ("libtorch_version", "build_info", "last_error"):
        getattr(library, f"hypatia_{name}").restype = ctypes.c_char_p
    library.hypatia_fused_linear_relu.argtypes = [ctypes.c_void_p] * 4
    library.hypatia_fused_linear_relu_backward.argtypes = [ctypes.c_void_p] * 7
    library.hypatia_fused_mlp.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int32,
        ctypes.c_void_p,
    ]
    library.hypatia_tensor_free.argtypes = [ctypes.c_void_p]
    library.hypatia_tensor_free.restype = None
    return library


class Handles:
    """`at::Tensor*` for Python tensors, and Python tensors for results."""

    def __init__(self):
        self.owned = []

    def of(self, *tensors):
        capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        handles = [get(capsule, None) for capsule in capsules]
        self.owned += handles
        return handles


def taken(result):
    """The tensor behind a result; its handle is no longer ours to free."""
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(make(result, None, None))


@pytest.fixture
def handles(library):
    handles = Handles()
    yield handles
    for handle in handles.owned:
        library.hypatia_tensor_free(handle)


def last_error(library):
    return library.hypatia_last_error().decode()


def test_versions(library):
    assert library.hypatia_abi_version() == 1
    built_against = library.hypatia_libtorch_version().decode()
    assert built_against.split(".")[:2] == torch.__version__.split("+")[0].split(".")[:2]


def test_build_info(library):
    info = json.loads(library.hypatia_build_info())
    assert info["abi_version"] == 1
    assert info["libtorch"] == library.hypatia_libtorch_version().decode()
    assert info["version"] == json.loads(torch.ops.hypatia.build_info())["version"]
    assert library.hypatia_build_info() == library.hypatia_build_info()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_forward(library, handles, bias):
    arguments = operands((4,), 7, 5, bias=bias)
    input, weight, *rest = handles.of(*(t for t in arguments if t is not None))
    result = ctypes.c_void_p()
    call = (input, weight, rest[0] if bias else None, ctypes.byref(result))
    assert library.hypatia_fused_linear_relu(*call) == OK
    assert last_error(library) == ""
    assert torch.equal(taken(result.value), fused(*arguments))


def test_backward(library, handles):
    input, weight, bias = operands((4,), 7, 5)
    arguments = (rand(4, 5), input, weight, fused(input, weight, bias))
    results = [ctypes.c_void_p() for _ in range(3)]
    given = handles.of(*arguments)
    status = library.hypatia_fused_linear_relu_backward(*given, *map(ctypes.byref, results))
    assert (status, last_error(library)) == (OK, "")
    assert_gradients([taken(r.value) for r in results], *arguments)
    # A null result is one that is not wanted.
    only = ctypes.c_void_p()
    status = library.hypatia_fused_linear_relu_backward(*given, None, ctypes.byref(only), None)
    assert status == OK
    assert_gradients([None, taken(only.value), None], *arguments)
    assert library.hypatia_fused_linear_relu_backward(*given, None, None, None) == OK


def test_autograd_records_calls_through_the_abi(library, handles):
    leaves = operands((4,), 7, 5, requires_grad=True)
    result = ctypes.c_void_p()
    assert library.hypatia_fused_linear_relu(*handles.of(*leaves), ctypes.byref(result)) == OK
    taken(result.value).sum().backward()
    assert all(t.grad is not None for t in leaves)


@pytest.mark.parametrize("place, name", list(enumerate(["input", "weight", "bias", "result"])))
def test_null_arguments(library, handles, place, name):
    result = ctypes.c_void_p()
    arguments = [*handles.of(*operands((4,), 7, 5)), ctypes.byref(result)]
    arguments[place] = None
    status = library.hypatia_fused_linear_relu(*arguments)
    if name == "bias":
        assert status == OK
        library.hypatia_tensor_free(result)
        return
    assert status == ERROR and result.value is None
    assert last_error(library) == (
        f"hypatia::fused_linear_relu: expected a tensor for {name}, got a null pointer"
    )


@pytest.mark.parametrize("place, name", list(enumerate(NAMES)))
def test_null_arguments_of_the_backward(library, handles, place, name):
    input, weight, bias = operands((4,), 7, 5)
    output = fused(input, weight, bias)
    arguments = handles.of(output, input, weight, output)
    arguments[place] = None
    result = ctypes.c_void_p()
    status = library.hypatia_fused_linear_relu_backward(
        *arguments, ctypes.byref(result), None, None
    )
    assert status == ERROR and result.value is None
    assert last_error(library) == (
        f"hypatia::fused_linear_relu_backward: expected a tensor for {name}, got a null pointer"
    )


def test_operator_errors(library, handles):
    """One sentence, without LibTorch's C++ backtrace."""
    result = ctypes.c_void_p()
    given = handles.of(rand(4, 7), rand(5, 8))
    assert library.hypatia_fused_linear_relu(*given, None, ctypes.byref(result)) == ERROR
    assert last_error(library) == (
        "hypatia::fused_linear_relu: expected weight of shape [N, 7] for input [4, 7], got [5, 8]"
    )


def array(handles, tensors):
    """A C array of handles; NULL for None."""
    given = iter(handles.of(*(t for t in tensors if t is not None)))
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else next(given) for t in tensors))


@pytest.mark.parametrize("relu_last", [0, 1])
@pytest.mark.parametrize("bias", [True, False, "some"])
def test_mlp(library, handles, bias, relu_last):
    input, weights, biases = mlp_operands((4,), (7, 6, 5, 3), bias=bias)
    (x,) = handles.of(input)
    result = ctypes.c_void_p()
    given = array(handles, weights), array(handles, biases)
    status = library.hypatia_fused_mlp(x, *given, 3, relu_last, ctypes.byref(result))
    assert (status, last_error(library)) == (OK, "")
    assert torch.equal(taken(result.value), mlp(input, weights, biases, bool(relu_last)))
    if not bias:  # no array means none for any layer
        status = library.hypatia_fused_mlp(x, given[0], None, 3, relu_last, ctypes.byref(result))
        assert status == OK
        assert torch.equal(taken(result.value), mlp(input, weights, biases, bool(relu_last)))


def test_mlp_errors(library, handles):
    input, weights, biases = mlp_operands((4,), (7, 6, 5))
    (x,) = handles.of(input)
    ws, bs = array(handles, weights), array(handles, biases)
    result = ctypes.c_void_p()
    written = ctypes.byref(result)
    cases = {
        "a tensor for input, got a null pointer": (None, ws, bs, 2, 0, written),
        "a tensor for weights, got a null pointer": (x, None, bs, 2, 0, written),
        "a tensor for weights[1], got a null pointer": (
            x, array(handles, [weights[0], None]), bs, 2, 0, written,
        ),
        "a tensor for result, got a null pointer": (x, ws, bs, 2, 0, None),
        "a number of layers, got -1": (x, ws, bs, -1, 0, written),
        "weights of at least one layer, got none": (x, None, None, 0, 0, written),
        "weights[0] of shape [N, 7] for input [4, 7], got [5, 6]": (
            x, array(handles, weights[::-1]), None, 2, 0, written,
        ),
    }
    for text, arguments in cases.items():
        assert library.hypatia_fused_mlp(*arguments) == ERROR
        assert last_error(library) == f"hypatia::fused_mlp: expected {text}"
        assert result.value is None


def test_an_error_is_its_threads(library):
    assert library.hypatia_fused_linear_relu(None, None, None, None) == ERROR
    other = []
    thread = threading.Thread(target=lambda: other.append(last_error(library)))
    thread.start()
    thread.join()
    assert other == [""]
    assert "got a null pointer" in last_error(library)


def test_freeing_nothing(library):
    library.hypatia_tensor_free(None)


def test_without_python_torch():
    """A program that never imports torch: the library brings LibTorch along."""
    code = (
        "import ctypes, sys\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "library.hypatia_last_error.restype = ctypes.c_char_p\n"
        "assert library.hypatia_fused_linear_relu(None, None, None, None) == 1\n"
        "assert b'null pointer' in library.hypatia_last_error()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(LIBRARY)], check=True, timeout=60)
