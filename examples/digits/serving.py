"""Builds the C++ server against the installed package and asks it."""

import os
import pathlib
import subprocess

import torch


def library(root):
    return pathlib.Path(os.environ.get("HYPATIA_LIBRARY", root / "target/release/libhypatia.so"))


def run(*command):
    subprocess.run(
        [str(part) for part in command],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def build(root, out):
    """cmake --install, then find_package(Hypatia), as any user would."""
    prefix, server = out / "prefix", out / "serve"
    if not (server / "serve").exists():
        print("  building the C++ server ...", flush=True)
    torch_dir = pathlib.Path(torch.__file__).parent
    run(
        "cmake", "-S", root / "cmake", "-B", out / "package",
        f"-DCMAKE_INSTALL_PREFIX={prefix}", f"-DHYPATIA_LIBTORCH={torch_dir}",
        f"-DHYPATIA_LIBRARY={library(root)}",
    )  # fmt: skip
    run("cmake", "--install", out / "package")
    run("cmake", "-S", root / "examples/serve", "-B", server, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", server)
    return server / "serve"


def predictions(root, out, model, x, device):
    """The class of each row of x, from the C++ program."""
    server = build(root, out)
    data, answers = out / "digits.bin", out / f"predictions_{device}.txt"
    data.write_bytes(x.contiguous().numpy().tobytes())
    rows, cols = x.shape
    run(
        server, model, "--input", data, "--shape", rows, cols,
        "--output", answers, "--device", device,
    )  # fmt: skip
    return torch.tensor([int(line) for line in answers.read_text().split()])
