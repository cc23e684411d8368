"""Loads libhypatia.so into this process, after checking that it fits.

    import hypatia
    hypatia.load()  # then torch.ops.hypatia.fused_linear_relu, ...

`torch.ops.load_library(path)` does the same without the check: a library that
was built for another minor version of LibTorch then fails with an undefined
C++ symbol, because LibTorch's C++ ABI changes with every minor version.
"""

import mmap
import os
import pathlib
import re

import torch

# src/capi.rs puts this sentence into the library; it is read from the file,
# because a library that does not fit cannot be opened to be asked.
_BUILT_FOR = re.compile(rb"hypatia built for LibTorch (\d+)\.(\d+)\.(\d+)\0")


def built_for(library):
    """`(major, minor, patch)` of the LibTorch that a library file was built for."""
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        found = _BUILT_FOR.search(image)
        if found is None:
            raise RuntimeError(f"hypatia::load: expected a libhypatia.so, got {library}")
        return tuple(int(part) for part in found.groups())


def find():
    """`$HYPATIA_LIBRARY`, else the library of an installation or of a build."""
    if "HYPATIA_LIBRARY" in os.environ:
        return pathlib.Path(os.environ["HYPATIA_LIBRARY"])
    here = pathlib.Path(__file__).resolve().parent
    candidates = [
        here / "libhypatia.so",
        here.parents[1] / "lib/libhypatia.so",  # PREFIX/share/hypatia/hypatia.py
        here.parent / "target/release/libhypatia.so",
    ]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = ", ".join(map(str, candidates))
    raise RuntimeError(f"hypatia::load: expected libhypatia.so, got none in {looked}")


def load(library=None):
    """Loads `library` (default: `find()`) and returns `torch.ops.hypatia`."""
    library = pathlib.Path(library) if library is not None else find()
    major, minor, patch = built_for(library)
    here = torch.__version__.split("+")[0]
    if here.split(".")[:2] != [str(major), str(minor)]:
        raise RuntimeError(
            f"hypatia::load: expected LibTorch {major}.{minor} (for which {library} was built), "
            f"got {here}; build Hypatia again with this LibTorch"
        )
    torch.ops.load_library(str(library))
    return torch.ops.hypatia


def optimize(module, example_inputs=()):
    """A ScriptModule that computes the same as `module`, with the same parameters.

    `example_inputs` are arguments of a typical call: what pays at their sizes is
    done, instead of only what pays at every size. The result is right for
    others too.

    `torch.ops.hypatia.optimize` returns LibTorch's bare module, which has
    `forward` and `save`; this puts Python's class around it again.
    """
    ops = torch.ops.hypatia
    if example_inputs:
        bare = ops.optimize_for(module, list(example_inputs))
    else:
        bare = ops.optimize(module)
    return torch.jit._recursive.wrap_cpp_module(bare)
