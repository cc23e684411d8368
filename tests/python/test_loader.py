"""python/hypatia.py: loads the library, and says in a sentence when it does not fit."""

import sys

import pytest
import torch

from support import LIBRARY, ROOT, python_ok

sys.path.insert(0, str(ROOT / "python"))
import hypatia  # noqa: E402

VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split("."))


def other_version(tmp_path, minor):
    """A copy of the library that says it was built for another LibTorch."""
    image = LIBRARY.read_bytes()
    here = "hypatia built for LibTorch {}.{}.{}\0".format(*VERSION).encode()
    there = "hypatia built for LibTorch {}.{}.{}\0".format(VERSION[0], minor, VERSION[2]).encode()
    assert image.count(here) == 1 and len(here) == len(there)
    copy = tmp_path / "libhypatia.so"
    copy.write_bytes(image.replace(here, there))
    return copy


def test_says_what_it_was_built_for():
    assert hypatia.built_for(LIBRARY) == VERSION


def test_loads_and_returns_the_operators():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import hypatia, torch\n"
        "ops = hypatia.load(sys.argv[2])\n"
        "print(ops.fused_linear_relu(torch.ones(1, 2), torch.ones(3, 2)).tolist())"
    )
    assert python_ok(code, ROOT / "python", LIBRARY) == "[[2.0, 2.0, 2.0]]\n"


def test_refuses_another_minor_version_before_opening(tmp_path):
    copy = other_version(tmp_path, 99)
    with pytest.raises(RuntimeError) as error:
        hypatia.load(copy)
    assert str(error.value) == (
        f"hypatia::load: expected LibTorch 2.99 (for which {copy} was built), got "
        f"{'.'.join(map(str, VERSION))}; build Hypatia again with this LibTorch"
    )


def test_refuses_another_file(tmp_path):
    other = tmp_path / "other.so"
    other.write_bytes(b"\x7fELF and nothing else")
    with pytest.raises(RuntimeError, match="expected a libhypatia.so, got"):
        hypatia.load(other)


def test_finds_the_library_of_the_environment(monkeypatch):
    monkeypatch.setenv("HYPATIA_LIBRARY", "/somewhere/libhypatia.so")
    assert str(hypatia.find()) == "/somewhere/libhypatia.so"
