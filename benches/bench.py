"""Benchmarks with their baselines in the same run.

    python benches/bench.py [--quick] [--modes bf16,fp32] [--json FILE]

Parts: `chain` (the nine MLPs as a chain of single operators and as one call of
fused_mlp, captured in a CUDA graph, against eager and torch._addmm_activation;
the one call in wall time too, against eager's and the chain's) and `single` (one
operator call, wall time, against eager's linear + relu). Without a GPU both
are wall times on the CPU.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

import models
import timing

ROOT = Path(__file__).resolve().parent.parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shapes")
    parser.add_argument("--modes", default=None, help="of " + ",".join(models.MODES))
    parser.add_argument("--parts", default="chain,single")
    parser.add_argument("--json", type=Path, default=None, help="write every figure there")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def chain(mlp, mode, args):
    """One MLP: medians per contender and ratios to ours."""
    dtype = models.set_mode(mode)
    x, parameters = models.make(mlp, dtype, args.device)
    forwards = {name: models.hidden_then_linear(layer) for name, layer in models.LAYERS.items()}
    forwards["mlp"] = models.whole_mlp
    calls = {name: lambda f=f: f(x, parameters) for name, f in forwards.items()}
    cuda = args.device == "cuda"
    rounds = (7 if args.quick else 21) if cuda else 5
    target = 1500 if cuda else 20_000
    with torch.no_grad():
        kind = timing.Captured if cuda else timing.Wall
        contenders = {name: kind(call) for name, call in calls.items()}
        times = timing.alternate(contenders, rounds, target)
        wall = times
        if cuda:
            contenders = {name: timing.Wall(call) for name, call in calls.items()}
            wall = timing.alternate(contenders, rounds, target)
    return {
        "part": "chain",
        "model": mlp.name,
        "mode": mode,
        "us": {name: timing.median(values) for name, values in times.items()},
        "spread": {name: timing.spread(values) for name, values in times.items()},
        "eager_over_ours": timing.ratio(times, "eager", "hypatia"),
        "act_over_ours": timing.ratio(times, "act", "hypatia"),
        "eager_over_mlp": timing.ratio(times, "eager", "mlp"),
        "wall_us": {name: timing.median(values) for name, values in wall.items()},
        "wall_eager_over_mlp": timing.ratio(wall, "eager", "mlp"),
        "wall_ours_over_mlp": timing.ratio(wall, "hypatia", "mlp"),
        "tflops": mlp.flops() / timing.median(times["hypatia"]) * 1e-6,
    }


def single(batch, k, n, mode, args):
    """One layer: wall time of a call."""
    dtype = models.set_mode(mode)
    layer = models.Mlp("layer", k, n, 1, 1, batch)
    x, parameters = models.make(layer, dtype, args.device)
    w, b = parameters[0]
    with torch.no_grad():
        contenders = {
            name: timing.Wall(lambda layer=layer: layer(x, w, b))
            for name, layer in models.LAYERS.items()
            if name != "act"
        }
        times = timing.alternate(contenders, 7 if args.quick else 15, 4000)
    return {
        "part": "single",
        "shape": f"{batch}x{n}x{k}",
        "mode": mode,
        "us": {name: timing.median(values) for name, values in times.items()},
        "spread": {name: timing.spread(values) for name, values in times.items()},
        "eager_over_ours": timing.ratio(times, "eager", "hypatia"),
    }


def single_shapes():
    """Every hidden layer of the nine MLPs, once."""
    shapes = {(m.batch, k, n) for m in models.MLPS for k, n in m.layers()[:-1]}
    return sorted(shapes, key=lambda s: s[0] * s[1] * s[2])


def describe(args):
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    info = json.loads(torch.ops.hypatia.build_info())
    return f"{name}, torch {torch.__version__}, hypatia {info['version']} ({info['git_revision']})"


def main():
    args = arguments()
    library = os.environ.get("HYPATIA_LIBRARY", ROOT / "target/release/libhypatia.so")
    torch.ops.load_library(str(library))
    cuda = args.device == "cuda"
    modes = args.modes.split(",") if args.modes else (list(models.MODES) if cuda else ["fp32", "bf16"])
    print(describe(args))
    rows = []
    parts = args.parts.split(",")
    if "chain" in parts:
        print(f"\nchain of single operators, {'captured' if cuda else 'wall'}, us (median)")
        print(
            f"{'model':13}{'mode':6}{'eager':>9}{'act':>9}{'ours':>9}{'mlp':>9}{'eager/ours':>12}"
            f"{'act/ours':>10}{'eager/mlp':>11}{'TFLOP/s':>9}{'wall: mlp':>11}{'eager/mlp':>11}{'ours/mlp':>10}"
        )
        mlps = models.MLPS[:5] if args.quick and not cuda else models.MLPS
        for mode in modes:
            for mlp in mlps:
                row = chain(mlp, mode, args)
                rows.append(row)
                us = row["us"]
                print(
                    f"{mlp.name:13}{mode:6}{us['eager']:9.2f}{us['act']:9.2f}{us['hypatia']:9.2f}"
                    f"{us['mlp']:9.2f}{row['eager_over_ours']:12.3f}{row['act_over_ours']:10.3f}"
                    f"{row['eager_over_mlp']:11.3f}{row['tflops']:9.1f}{row['wall_us']['mlp']:11.2f}"
                    f"{row['wall_eager_over_mlp']:11.3f}{row['wall_ours_over_mlp']:10.3f}",
                    flush=True,
                )
    if "single" in parts:
        print("\none operator, wall, us (median): batch x N x K")
        print(f"{'shape':18}{'mode':6}{'eager':>9}{'ours':>9}{'eager/ours':>12}")
        for mode in modes:
            for batch, k, n in single_shapes():
                row = single(batch, k, n, mode, args)
                rows.append(row)
                us = row["us"]
                print(
                    f"{row['shape']:18}{mode:6}{us['eager']:9.2f}{us['hypatia']:9.2f}"
                    f"{row['eager_over_ours']:12.3f}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps({"device": describe(args), "rows": rows}, indent=1))
        print(f"wrote {args.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
