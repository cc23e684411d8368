"""Benchmarks with their baselines in the same run.

    python benches/bench.py [--quick] [--modes bf16,fp32] [--against compile,jax] [--json FILE]
    python benches/bench.py --device cpu --against frozen,jit,onednn [--batch 1] [--fastest 15]

Parts: `inference` and `training` (the nine MLPs, or those of --models: eager, torch._addmm_activation,
a chain of our single operators, one call of fused_mlp, in training also our operators
without the autograd engine, "ops"; wall time in a Python
loop and, on CUDA, captured in a CUDA graph) and `single` (one operator call, wall
time, against eager's linear + ReLU). A training step is forward and the
gradients of the input and all parameters. `benches/plot.py` draws the JSON.
Algorithms are timed afresh in every run: plans of earlier ones are not taken unless
HYPATIA_PLAN_CACHE says so.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import torch

import contenders
import models
import timing

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"inference": contenders.inference, "training": contenders.training}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shapes")
    parser.add_argument("--modes", default=None, help="of " + ",".join(models.MODES))
    names = [m.name for m in (*models.MLPS, *models.OTHERS)]
    parser.add_argument("--models", default=None, help="`others`, or of " + ",".join(names))
    parser.add_argument("--parts", default="inference,training,single")
    parser.add_argument("--against", default="", help="of " + ",".join(contenders.OTHERS) + ", besides")
    parser.add_argument(
        "--fastest",
        type=float,
        default=None,
        metavar="SECONDS",
        help="so long a model, in short rounds of which the fastest tenth counts: for busy machines, CPU",
    )
    parser.add_argument(
        "--caller-thread",
        action="store_true",
        help="LibTorch's autograd engine on the calling thread (set_multithreading_enabled(False))",
    )
    parser.add_argument("--batch", type=int, default=None, help="rows in place of the models' own")
    parser.add_argument("--json", type=Path, default=None, help="write every figure there")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def matrix_rate(mode, args):
    """FLOP/s of torch.mm at 8192 (CPU: 1024): what the machine can do."""
    dtype = models.set_mode(mode)
    n = 8192 if args.device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=args.device).to(dtype) for _ in range(2))
    product = timing.Wall([lambda: torch.mm(a, b)], warmups=3)
    return 2 * n**3 / min(product.microseconds(5) for _ in range(3)) * 1e6


def whole(part, mlp, mode, rate, args):
    """One MLP: medians per contender, ratios of all others to fused_mlp."""
    training, cuda = part == "training", args.device == "cuda"
    dtype = models.set_mode(mode)
    # A training step reads and writes more than a cache holds by itself.
    inputs = [models.make(mlp, dtype, args.device)] if training else models.copies(mlp, dtype, args.device)
    for t in models.leaves(*inputs[0]) if training else []:
        t.requires_grad_()
    names = [*contenders.FORWARDS, *(name for name in args.against.split(",") if name)]
    names = [name for name in names if not (training and name in contenders.INFERENCE_ONLY)]
    names += contenders.TRAINING_ONLY if training else []
    rounds = (7 if args.quick else 15) if cuda else 9
    target, wall = 1500 if cuda else 20_000, timing.Wall
    # A round of fewer steps is no loop.
    in_a_loop = 10 if training else 1
    if args.fastest:
        target, in_a_loop, wall = 1000, 1, functools.partial(timing.Wall, settles=2)
    row = {"part": part, "model": mlp.name, "mode": mode, "caller_thread": args.caller_thread}
    one_thread = torch.autograd.set_multithreading_enabled(not args.caller_thread)
    with torch.set_grad_enabled(training), one_thread:
        # Captured first: max-autotune's compiled steps keep leaves tied to the default
        # stream, and a capture of eager's steps after them fails.
        for kind in ["captured", "wall"] if cuda else ["wall"]:
            timer = timing.Captured if kind == "captured" else wall
            timers = {}
            for name in names:
                if name in contenders.WALL_ONLY and kind == "captured":
                    continue
                try:
                    timers[name] = timer(PARTS[part](name, inputs))
                except RuntimeError as error:
                    # torch.compile's training steps cannot all be captured; oneDNN packs
                    # bfloat16 only for CPUs with AVX-512.
                    if name not in (*contenders.COMPILED, *contenders.FROZEN):
                        raise
                    print(f"{part} {mlp.name} {mode} {kind}: no {name}: {str(error).splitlines()[0]}")
            times = timing.alternate(
                timers, rounds, target * (in_a_loop if kind == "wall" else 1), args.fastest
            )
            us, spread, over = timing.summary(times, "mlp", bool(args.fastest))
            row[kind] = {"us": us, "spread": spread, "over_mlp": over}
    best = row["captured" if cuda else "wall"]["us"]["mlp"]
    row["tflops"] = mlp.flops(training) / best * 1e-6
    row["share"] = row["tflops"] * 1e12 / rate
    return row


def show(row):
    """One line a row: medians in us of every contender, the last ours, and the
    others over ours."""
    for kind in ("captured", "wall"):
        if kind in row:
            figures, ratios = row[kind]["us"], row[kind]["over_mlp"]
            text = "  ".join(
                f"{name} {us:.1f}" + (f" ({ratios[name]:.2f}x)" if name in ratios else "")
                for name, us in figures.items()
            )
            share = ""
            if kind == "captured":
                share = f"  {row['tflops']:.0f} TFLOP/s, {row['share']:.0%} of mm"
            elif "captured" not in row:
                peak = peak_rate(row["mode"])
                share = f"  {row['tflops'] * 1e3:.0f} GFLOP/s, {row['tflops'] * 1e12 / peak:.0%} of the peak"
            print(f"{row['part']:10}{row['model']:13}{row['mode']:5} {kind:9}{text}{share}", flush=True)


def single(batch, k, n, mode, args):
    """One layer: wall time of a call."""
    dtype = models.set_mode(mode)
    layer = models.Mlp("layer", (k, n), batch)
    x, parameters, _ = models.make(layer, dtype, args.device)
    w, b = parameters[0]
    with torch.no_grad():
        calls = {
            name: timing.Wall([lambda layer=layer: layer(x, w, b)])
            for name, layer in models.LAYERS.items()
            if name != "act"
        }
        times = timing.alternate(calls, 7 if args.quick else 15, 4000)
    us, spread, over = timing.summary(times, "hypatia")
    return {
        "part": "single",
        "shape": f"{batch}x{n}x{k}",
        "mode": mode,
        "us": us,
        "spread": spread,
        "eager_over_ours": over["eager"],
    }


def single_shapes():
    """Every hidden layer of the nine MLPs, once, and one that is large all over."""
    shapes = {(m.batch, k, n) for m in models.MLPS for k, n in m.layers()[:-1]}
    if torch.cuda.is_available():
        shapes.add((4096, 4096, 4096))
    return sorted(shapes, key=lambda s: s[0] * s[1] * s[2])


def describe(args):
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    info = json.loads(torch.ops.hypatia.build_info())
    return f"{name}, torch {torch.__version__}, hypatia {info['version']} ({info['git_revision']})"


def peak_rate(mode="fp32"):
    """FLOP/s of the CPU's FMAs on all threads, in bf16 of its dot products or AMX if they
    are faster, as the library measured it on one."""
    cpu = json.loads(torch.ops.hypatia.build_info())["cpu_kernels"]
    names = ["fma_gflops", *(["bf16_dot_gflops", "amx_gflops"] if mode == "bf16" else [])]
    return max(cpu[name] for name in names) * 1e9 * torch.get_num_threads()


def keep(rows, args):
    """Writes what there is so far, for a run that is stopped."""
    if args.json:
        args.json.write_text(json.dumps({"device": describe(args), "rows": rows}, indent=1))


def main():
    args = arguments()
    os.environ.setdefault("HYPATIA_PLAN_CACHE", "0")
    library = os.environ.get("HYPATIA_LIBRARY", ROOT / "target/release/libhypatia.so")
    torch.ops.load_library(str(library))
    cuda = args.device == "cuda"
    modes = args.modes.split(",") if args.modes else (list(models.MODES) if cuda else ["fp32", "bf16"])
    print(describe(args))
    if not cuda:
        print(f"fp32 FMA peak, measured: {peak_rate() * 1e-9:.0f} GFLOP/s on {torch.get_num_threads()} threads")
    rows = []
    parts = args.parts.split(",")
    wanted = (args.models or "").split(",")
    mlps = [m for m in (*models.MLPS, *models.OTHERS) if m.name in wanted]
    if wanted == [""] or wanted == ["others"]:
        mlps = models.MLPS if wanted == [""] else models.OTHERS
    if args.batch:
        mlps = [dataclasses.replace(m, name=m.name.rsplit("-")[0] + f"-{args.batch}", batch=args.batch) for m in mlps]
    if args.quick and not cuda:
        mlps = mlps[:5]
    for mode in modes:
        rate = matrix_rate(mode, args)
        print(f"{mode}: torch.mm reaches {rate * 1e-12:.1f} TFLOP/s")
        for part in [part for part in PARTS if part in parts]:
            for mlp in mlps:
                rows.append(whole(part, mlp, mode, rate, args))
                show(rows[-1])
                keep(rows, args)
    if "single" in parts:
        print("\none operator, wall, us (median): batch x N x K")
        print(f"{'shape':18}{'mode':6}{'eager':>9}{'ours':>9}{'eager/ours':>12}")
        for mode in modes:
            for batch, k, n in single_shapes():
                row = single(batch, k, n, mode, args)
                rows.append(row)
                keep(rows, args)
                us = row["us"]
                print(
                    f"{row['shape']:18}{mode:6}{us['eager']:9.2f}{us['hypatia']:9.2f}"
                    f"{row['eager_over_ours']:12.3f}",
                    flush=True,
                )
    if args.json:
        print(f"wrote {args.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
