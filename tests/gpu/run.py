"""Everything that needs a GPU, on a machine without Rust.

    python3 tests/gpu/run.py [--sanitize] [--no-cpp] [--jobs 8]

Needs Python with torch, and what `make build` (or `make gpu-bundle`, stripped,
to copy elsewhere) left. With CMake and g++ it builds the C++ consumer against
this machine's LibTorch; with compute-sanitizer it runs our kernels under it.

Each module is a process of its own, several of them at a time: most of their time
goes into the host (contexts, compiling kernels, references). Nothing here measures
time. Devices, where there are several, take turns.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def command(title, arguments, seconds=150, cwd=None, **env):
    """Runs one program; prints what it said only if it fails. (passed, failed): of
    unittest its tests, else the program itself."""
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
    ran = re.search(r"^Ran (\d+) tests? in", said, re.M)
    counts = {key: int(n) for key, n in re.findall(r"(failures|errors|skipped)=(\d+)", said)}
    bad = max(counts.get("failures", 0) + counts.get("errors", 0), not good)
    passed = max(int(ran[1]) - bad - counts.get("skipped", 0), 0) if ran else int(good)
    what = f"{passed} passed, " if ran else ""
    if counts.get("skipped"):
        what += f"{counts['skipped']} skipped, "
    text = f"{title}: {'ok' if good else 'FAILED'} ({what}{time.monotonic() - start:.0f} s)\n"
    if not good:
        text += (said if len(said) < 8000 else f"{said[:4000]}\n[...]\n{said[-4000:]}") + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()
    return passed, bad


def job(*what, **env):
    """A command that will be told which device is its own; its counts."""
    return lambda **device: [command(*what, **env, **device)]


def unittests(title, *modules, **env):
    """Test modules in a process of its own."""
    return job(title, [sys.executable, "-m", "unittest", *modules], 600, HERE, **env)


def python_tests():
    """Every module; those that run longest come first."""
    long = ["test_plan_file", "test_cluster_mlp", "test_fp32", "test_tensor_chain"]
    names = sorted((f.stem for f in HERE.glob("test_*.py")), key=lambda n: (n not in long, n))
    return [unittests(name, name) for name in names]


def python_tests_again():
    """The kernels of sm_90 for sizes that are not given to them otherwise."""
    return [
        unittests(
            "strict fp32 of every size on the tensor cores",
            "test_numbers", "test_chains", "test_fp32",
            HYPATIA_FP32="tensor",
            HYPATIA_CLUSTER_MLP="0",
        ),
        unittests(
            "16-bit products by our kernel wherever it works",
            "test_numbers", "test_chains",
            HYPATIA_TENSOR_GEMM="1",
            HYPATIA_TENSOR_CHAIN="1",
            HYPATIA_CLUSTER_MLP="0",
            HYPATIA_TUNE="0",
        ),
        unittests(
            "rows copied wherever they are not aligned",
            "test_numbers", "test_chains",
            HYPATIA_PAD_ROWS="1",
            HYPATIA_ONE_LAUNCH="0",
            HYPATIA_CLUSTER_MLP="0",
            HYPATIA_TENSOR_CHAIN="0",
            HYPATIA_FP32="ieee",
            HYPATIA_TUNE="0",
        ),
        unittests(
            "chains of every size that fits by clusters",
            "test_numbers", "test_chains", "test_cluster_mlp",
            HYPATIA_CLUSTER_MLP="1",
            HYPATIA_TUNE="0",
        ),
    ]


def rust_tests(torch_dir):
    """The tch tests, built elsewhere; they use CUDA where there is one."""
    from support import BUNDLE

    path = f"{torch_dir}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}"
    binaries = sorted(BUNDLE.glob("tch_*"))
    return [job(f"rust {binary.name}", [binary], LD_LIBRARY_PATH=path) for binary in binaries]


def sanitizers():
    """memcheck over whole operator calls; every check over our kernels alone."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(tool).exists():
        print("compute-sanitizer: not on this machine, skipped")
        return []
    under = lambda check: [tool, "--tool", check, "--error-exitcode", "9"]
    jobs = [
        job(
            "compute-sanitizer memcheck, operators",
            [*under("memcheck"), sys.executable, HERE / "memcheck.py"],
            300,
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
        return jobs
    sources = sorted((HERE / "kernels").glob("*.cu"))
    return jobs + [lambda s=s, **device: sanitize(s, nvcc, under, device) for s in sources]


def sanitize(source, nvcc, under, device):
    """Builds one kernel's test, runs it, and runs it under every check that knows it."""
    import torch

    flags, hopper, counts = ["-arch=native"], source.stem != "relu_backward_test", []
    if hopper:
        if torch.cuda.get_device_capability() != (9, 0):
            return []
        flags = ["-gencode", "arch=compute_90a,code=sm_90a"]
    with tempfile.TemporaryDirectory() as folder:
        program, kernels = f"{folder}/{source.stem}", HERE.parents[1] / "kernels"
        build = [nvcc, "-std=c++17", *flags, "-lineinfo", "-I", kernels, "-o", program, source]
        counts.append(command(f"build {source.stem}", build))
        if counts[0][1]:
            return counts
        counts.append(command(source.stem, [program], **device))
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
            counts.append(command(title, [*under(check), program, *few], 300, **device))
    return counts


def run(jobs, at_a_time, devices):
    """All counts. A second device stays visible, for the tests of two."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
    order = lambda first: ",".join(visible[first:devices] + visible[:first])
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        waiting = [
            pool.submit(job, **({"CUDA_VISIBLE_DEVICES": order(i % devices)} if devices > 1 else {}))
            for i, job in enumerate(jobs)
        ]
        return [counts for w in waiting for counts in w.result()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", action="store_true", help="only compute-sanitizer")
    parser.add_argument("--no-sanitize", action="store_true")
    parser.add_argument("--no-cpp", action="store_true")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=max(1, min(8, cores // 2)), help="at a time")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu-test: expected a CUDA device, got none", file=sys.stderr)
        return 2
    os.environ["HYPATIA_PLAN_CACHE"] = "0"
    import support

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {support.LIBRARY}", flush=True)
    jobs = []
    if not options.sanitize:
        torch_dir = pathlib.Path(torch.__file__).parent
        jobs += python_tests()
        if torch.cuda.get_device_capability() == (9, 0):
            jobs += python_tests_again()
        jobs += rust_tests(torch_dir)
        if not options.no_cpp:
            consumer = HERE.parent / "consumer/run.sh"
            library = str(support.LIBRARY)
            jobs.append(job("C++ consumer", ["bash", consumer, sys.executable], 600, HYPATIA_LIBRARY=library))
    if not options.no_sanitize:
        jobs += sanitizers()
    counts = run(jobs, options.jobs, torch.cuda.device_count())
    passed, failed = (sum(column) for column in zip(*counts))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
