"""The main job on real data: train on handwritten digits, save, serve from C++.

Trains the same MLP twice from the same seed on scikit-learn's digits (1797
scans of 8 x 8 pixels), once with nn.Linear + relu, once with
hypatia::fused_linear_relu; compares the loss curves step by step; saves the
fused model as TorchScript and serves the file from the C++ example. On the CPU,
and on the GPU where there is one. Run it with `make demo`.
"""

import json
import pathlib
import subprocess
import sys
import time
import warnings

import torch

import serving
import training

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "target/demo"


def load_library():
    library = serving.library(ROOT)
    if not library.exists():
        sys.exit(f"demo: expected {library}, got none; run `make build`")
    torch.ops.load_library(str(library))
    info = json.loads(torch.ops.hypatia.build_info())
    print(f"hypatia {info['version']} ({info['git_revision']}), torch {torch.__version__}")


def print_curves(plain, fused):
    print(f"{'step':>6}  {'nn.Linear + relu':>18}  {'fused_linear_relu':>18}  {'difference':>11}")
    last = len(plain) - 1
    for step in sorted({*range(0, len(plain), max(1, last // 12)), last}):
        a, b = plain[step], fused[step]
        print(f"{step:6d}  {a:18.8f}  {b:18.8f}  {abs(a - b):11.2e}")


def run(device, data):
    """One device: a row of the final table, or exits with what went wrong."""
    print(f"\nOn {device}:")
    start = time.perf_counter()
    plain = training.train("nn.Linear + relu", training.Mlp(fused=False), data, device)
    fused = training.train("fused_linear_relu", training.Mlp(fused=True), data, device)
    print_curves(plain.losses, fused.losses)
    worst = training.worst_disagreement(plain.losses, fused.losses)
    if worst > 1:
        sys.exit(f"demo: the loss curves differ by {worst:.2g} times what fp32 rounding explains")
    if min(plain.accuracy, fused.accuracy) < 0.95:
        sys.exit(f"demo: expected 95 % accuracy, got {plain.accuracy:.1%} and {fused.accuracy:.1%}")

    model = OUT / f"digits_{device}.pt"
    with warnings.catch_warnings():
        # torch 2.11 announces the end of TorchScript's Python side.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(fused.model).save(str(model))
    served = serving.predictions(ROOT, OUT, model, data.test_x, device)
    agree = (served == fused.predictions).sum().item()
    if agree != len(served):
        sys.exit(f"demo: C++ agrees on {agree} of {len(served)} predictions")
    print(f"C++ served {model.name}: the same {agree} predictions")
    return {
        "device": device,
        "plain": plain,
        "fused": fused,
        "worst": worst,
        "served": agree,
        "model": model,
        "seconds": time.perf_counter() - start,
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    load_library()
    data = training.load_digits()
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    rows = [run(device, data) for device in devices]
    print(
        f"\n{'device':8}{'accuracy plain':>15}{'fused':>8}{'curves':>24}"
        f"{'served by C++':>15}{'seconds':>9}"
    )
    for row in rows:
        print(
            f"{row['device']:8}{row['plain'].accuracy:15.1%}{row['fused'].accuracy:8.1%}"
            f"{format(row['worst'], '.2g') + ' of their bound':>24}"
            f"{row['served']:15d}{row['seconds']:9.1f}"
        )
    for row in rows:
        print(f"wrote {row['model'].relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: {' '.join(map(str, error.cmd))} failed:\n{error.stdout}")
