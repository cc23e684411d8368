"""The file itself: what it needs, what it registers, and every way to load it
that must do no harm. Each way gets a process of its own."""

import json
import re
import shutil
import subprocess

import pytest
import torch

from support import (
    BACKWARD,
    BUILD_INFO,
    EXPLAIN,
    EXPLAIN_FOR,
    FORWARD,
    LIBRARY,
    MLP,
    MLP_BACKWARD,
    MLP_FORWARD,
    OPTIMIZE,
    OPTIMIZE_FOR,
    python_ok,
)

# What every process ends with: operators that work, forward and backward.
CHECK = """
def check():
    import json, torch
    x, w = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    y = torch.ops.hypatia.fused_linear_relu(x, w)
    # Sums of three products: within four roundings of the exact one.
    want = torch.relu(x.double() @ w.double().t())
    assert ((y - want).abs() <= 4 * 2.0**-24 * (x.abs() @ w.abs().t())).all()
    y.sum().backward()
    assert torch.equal(w.grad, (y > 0).float().t() @ x)
    assert torch.equal(torch.ops.hypatia.fused_mlp(x, [w], [None], True), y)
    assert torch.func.vmap(lambda x: torch.ops.hypatia.fused_linear_relu(x, w))(x).shape == y.shape
    with torch.autocast("cpu"):
        assert torch.ops.hypatia.fused_linear_relu(x, w).dtype == torch.bfloat16
    assert json.loads(torch.ops.hypatia.build_info())["version"]
    try:
        torch.ops.hypatia.fused_linear_relu(x, w[:, :2])
    except RuntimeError as error:
        assert "hypatia::fused_linear_relu: expected" in str(error)
    else:
        raise AssertionError("a wrong shape was accepted")
"""


def loads(script, *arguments):
    """Runs `script`, with the names above and sys.argv[1:] as `arguments`."""
    return python_ok(f"import ctypes, os, sys, torch\n{CHECK}\n{script}", *arguments)


@pytest.fixture
def copies(tmp_path):
    """The same library under two more paths."""
    paths = [tmp_path / "a" / LIBRARY.name, tmp_path / "b" / "libother.so"]
    for path in paths:
        path.parent.mkdir()
        shutil.copy(LIBRARY, path)
    return paths


def test_twice():
    loads(
        "for _ in range(2):\n"
        "    torch.ops.load_library(sys.argv[1])\n"
        "    check()\n",
        LIBRARY,
    )


def test_two_paths_in_any_order(copies):
    """The first registers; the others stand back, whatever is called when."""
    for order in [(LIBRARY, copies[0]), (copies[0], LIBRARY), (copies[1], copies[0], LIBRARY)]:
        loads(
            "for path in sys.argv[1:]:\n"
            "    torch.ops.load_library(path)\n"
            "    check()\n",
            *order,
        )


def test_link_to_the_library(tmp_path):
    link = tmp_path / "libhypatia.so"
    link.symlink_to(LIBRARY)
    loads("for path in sys.argv[1:]: torch.ops.load_library(path)\ncheck()", link, LIBRARY)


def test_dlclose():
    """The dispatcher keeps our functions, so the code must stay mapped."""
    loads(
        "import _ctypes\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "check()\n"
        "for _ in range(3):\n"
        "    _ctypes.dlclose(library._handle)\n"
        "    check()\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "check()\n",
        LIBRARY,
    )


def test_the_first_copy_is_closed(copies):
    loads(
        "import _ctypes\n"
        "_ctypes.dlclose(ctypes.CDLL(sys.argv[1])._handle)\n"
        "torch.ops.load_library(sys.argv[2])\n"
        "check()\n",
        *copies,
    )


@pytest.mark.parametrize("binding", ["RTLD_NOW", "RTLD_LAZY"])
@pytest.mark.parametrize("visibility", ["RTLD_LOCAL", "RTLD_GLOBAL"])
def test_modes(visibility, binding):
    loads(
        "mode = getattr(os, sys.argv[2]) | getattr(os, sys.argv[3])\n"
        "ctypes.CDLL(sys.argv[1], mode)\n"
        "check()\n",
        LIBRARY,
        visibility,
        binding,
    )


def test_local_and_then_global(copies):
    """Symbols of one copy must not leak into the other."""
    loads(
        "ctypes.CDLL(sys.argv[1], os.RTLD_GLOBAL | os.RTLD_NOW)\n"
        "ctypes.CDLL(sys.argv[2], os.RTLD_GLOBAL | os.RTLD_NOW)\n"
        "check()\n",
        *copies,
    )


def test_before_torch():
    """A process that loads us first gets LibTorch from us."""
    python_ok(
        "import ctypes, sys\n"
        "ctypes.CDLL(sys.argv[1])\n"
        f"{CHECK}\ncheck()\n",
        LIBRARY,
    )


def test_in_a_thread():
    loads(
        "import threading\n"
        "thread = threading.Thread(target=torch.ops.load_library, args=(sys.argv[1],))\n"
        "thread.start(); thread.join()\n"
        "check()\n",
        LIBRARY,
    )


def test_operators():
    """All of them, and no others."""
    names = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("hypatia::")}
    assert names == {
        FORWARD,
        BACKWARD,
        MLP,
        MLP_FORWARD,
        MLP_BACKWARD,
        BUILD_INFO,
        OPTIMIZE,
        EXPLAIN,
        OPTIMIZE_FOR,
        EXPLAIN_FOR,
    }
    for name in names:
        overload = getattr(torch.ops.hypatia, name.removeprefix("hypatia::")).default
        assert torch.Tag.pt2_compliant_tag in overload.tags


@pytest.mark.parametrize("name", [FORWARD, BACKWARD, MLP, MLP_FORWARD, MLP_BACKWARD])
def test_kernels(name):
    """A key that someone forgot shows here, not in a user's program."""

    def has(key):
        return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)

    for key in ["CPU", "CUDA", "Meta", "AutocastCPU", "AutocastCUDA"]:
        assert has(key), key
    assert has("FuncTorchBatchedDecomposition")
    for key in ["AutogradCPU", "AutogradCUDA", "AutogradMeta", "AutogradOther"]:
        # Registered once for all backends, under their alias.
        assert has(key) or has("Autograd"), key
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, key), key


def test_needed_libraries():
    """One file for CPU-only and CUDA LibTorch: no CUDA library is linked."""
    dynamic = subprocess.run(
        ["readelf", "-dW", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert {"libtorch_cpu.so", "libc10.so"} <= needed
    allowed = {"libtorch.so", "libtorch_cpu.so", "libc10.so", "libstdc++.so.6", "libgcc_s.so.1"}
    allowed |= {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0"}
    assert all(n in allowed or n.startswith("ld-linux") for n in needed), needed
    assert "NODELETE" in dynamic
    assert not re.search(r"\(TEXTREL\)", dynamic)


def test_exported_symbols():
    """The C ABI and the bridge, but nothing else of the C++ or Rust inside: other
    libraries of the process would find it."""
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in symbols.splitlines()}
    assert {"hypatia_abi_version", "hypatia_last_error", "hypatia_fused_linear_relu"} <= names
    ours = ("hypatia", "HYPATIA_", "cxxbridge1$")
    assert all(n.startswith(ours) for n in names), sorted(names)


def test_build_info():
    info = json.loads(torch.ops.hypatia.build_info())
    assert re.fullmatch(r"\d+\.\d+\.\d+", info["version"])
    assert info["libtorch"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert re.fullmatch(r"[0-9a-f]{7,40}\+?|unknown", info["git_revision"])
    assert isinstance(info["cuda_kernels"], str) and info["cuda_kernels"]
    for arch in info["cuda_archs"]:
        assert re.fullmatch(r"(sm|compute)_\d+a?", arch)
    features = set(info["cpu_features"])
    with open("/proc/cpuinfo") as cpuinfo:
        flags = next((set(line.split()) for line in cpuinfo if line.startswith("flags")), set())
    # Linux writes some names with an underscore that others write without.
    plain = {flag.replace("_", "") for flag in flags}
    assert {feature.replace("_", "") for feature in features} <= plain
    assert not flags or ("avx2" in features) == ("avx2" in flags)
