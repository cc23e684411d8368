"""Everything that needs a GPU, on a machine without Rust.

    python3 tests/gpu/run.py [--sanitize] [--no-cpp]

Needs Python with torch, and what `make build` (or `make gpu-bundle`, stripped,
to copy elsewhere) left. With CMake and g++ it builds the C++ consumer against
this machine's LibTorch; with compute-sanitizer it runs our kernels under it.
"""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def python_tests():
    suite = unittest.defaultTestLoader.discover(str(HERE), pattern="test_*.py")
    result = unittest.TextTestRunner(verbosity=1, buffer=False).run(suite)
    bad = len(result.failures) + len(result.errors)
    return result.testsRun - bad, bad


def command(title, arguments, seconds=150, cwd=None, **env):
    """Runs one program; prints what it said only if it fails."""
    start = time.monotonic()
    process = subprocess.Popen(
        [str(a) for a in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **env},
        cwd=cwd,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
        good = process.returncode == 0
    except subprocess.TimeoutExpired:
        # Its children too: compute-sanitizer's target outlives it otherwise.
        os.killpg(process.pid, signal.SIGKILL)
        said, good = f"no end within {seconds} s\n" + process.communicate()[0], False
    print(f"{title}: {'ok' if good else 'FAILED'} ({time.monotonic() - start:.0f} s)", flush=True)
    if not good:
        print(said if len(said) < 8000 else f"{said[:4000]}\n[...]\n{said[-4000:]}", flush=True)
    return (1, 0) if good else (0, 1)


def again(title, *modules, **env):
    """Test modules once more, in a process of another environment."""
    return command(title, [sys.executable, "-m", "unittest", *modules], cwd=HERE, **env)


def rust_tests(torch_dir):
    """The tch tests, built elsewhere; they use CUDA where there is one."""
    from support import BUNDLE

    counts = []
    for binary in sorted(BUNDLE.glob("tch_*")):
        path = f"{torch_dir}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}"
        counts.append(command(f"rust {binary.name}", [binary], LD_LIBRARY_PATH=path))
    return counts


def sanitizers():
    """memcheck over whole operator calls; every check over our kernels alone."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(tool).exists():
        print("compute-sanitizer: not on this machine, skipped")
        return []
    under = lambda check: [tool, "--tool", check, "--error-exitcode", "9"]
    counts = [
        command(
            "compute-sanitizer memcheck, operators",
            [*under("memcheck"), sys.executable, HERE / "memcheck.py"],
            # The caching allocator would hide accesses out of bounds, and
            # timing algorithms would run hundreds of kernels more.
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
            HYPATIA_TUNE="0",
            HYPATIA_FP32="tensor",
            HYPATIA_TENSOR_GEMM="1",
            HYPATIA_TENSOR_CHAIN="1",
        )
    ]
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not pathlib.Path(nvcc).exists():
        print("nvcc: not on this machine, so our kernels alone were not sanitized")
        return counts
    import torch

    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((HERE / "kernels").glob("*.cu")):
            flags, hopper = ["-arch=native"], source.stem != "relu_backward_test"
            if hopper:
                if torch.cuda.get_device_capability() != (9, 0):
                    continue
                flags = ["-gencode", "arch=compute_90a,code=sm_90a"]
            program, kernels = f"{folder}/{source.stem}", HERE.parents[1] / "kernels"
            build = [nvcc, "-std=c++17", *flags, "-lineinfo", "-I", kernels, "-o", program, source]
            counts.append(command(f"build {source.stem}", build))
            counts.append(command(source.stem, [program]))
            for check in ("memcheck", "racecheck", "synccheck", "initcheck"):
                # It knows nothing of what the copy engine writes, and says so of
                # every byte that is read behind it.
                if hopper and check == "initcheck":
                    continue
                # It follows every look at a barrier, here by eight warps: one case took
                # more than two minutes.
                if check == "racecheck" and source.stem == "cluster_fp32_test":
                    continue
                title = f"compute-sanitizer {check}, {source.stem}"
                few = ["few"] if check == "racecheck" else []
                counts.append(command(title, [*under(check), program, *few]))
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", action="store_true", help="only compute-sanitizer")
    parser.add_argument("--no-sanitize", action="store_true")
    parser.add_argument("--no-cpp", action="store_true")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu-test: expected a CUDA device, got none", file=sys.stderr)
        return 2
    os.environ["HYPATIA_PLAN_CACHE"] = "0"
    import support

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {support.LIBRARY}")
    counts = []
    if not options.sanitize:
        torch_dir = pathlib.Path(torch.__file__).parent
        counts.append(python_tests())
        if torch.cuda.get_device_capability() == (9, 0):
            counts.append(
                again(
                    "strict fp32 of every size on the tensor cores",
                    "test_numbers", "test_chains", "test_fp32",
                    HYPATIA_FP32="tensor",
                    HYPATIA_CLUSTER_MLP="0",
                )
            )
            counts.append(
                again(
                    "16-bit products by our kernel wherever it works",
                    "test_numbers", "test_chains",
                    HYPATIA_TENSOR_GEMM="1",
                    HYPATIA_TENSOR_CHAIN="1",
                    HYPATIA_CLUSTER_MLP="0",
                    HYPATIA_TUNE="0",
                )
            )
            counts.append(
                again(
                    "chains of every size that fits by clusters",
                    "test_numbers", "test_chains", "test_cluster_mlp",
                    HYPATIA_CLUSTER_MLP="1",
                    HYPATIA_TUNE="0",
                )
            )
        counts += rust_tests(torch_dir)
        if not options.no_cpp:
            consumer = HERE.parent / "consumer/run.sh"
            counts.append(
                command("C++ consumer", ["bash", consumer, sys.executable], HYPATIA_LIBRARY=str(support.LIBRARY))
            )
    if not options.no_sanitize:
        counts += sanitizers()
    passed, failed = (sum(column) for column in zip(*counts))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
