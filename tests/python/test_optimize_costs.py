"""Do the predicted times rank models as measured times do?"""

import json
import statistics
import time

import torch

from support import optimize
from zoo import mlp

# Calls a second that one machine manages differ from another's; the order of
# models from half a millisecond to tens of them does not.
MODELS = {
    "one layer": (mlp(64, 64), 8),
    "narrow": (mlp(16, 32, 32, 4), 8),
    "ten small layers": (mlp(*[32] * 11), 16),
    "thirty small layers": (mlp(*[32] * 31), 16),
    "tiny-64": (mlp(784, 256, 256, 10), 64),
    "tiny-256": (mlp(784, 256, 256, 10), 256),
    "small-128": (mlp(512, 512, 512, 512, 128), 128),
    "medium4-256": (mlp(1024, 512, 512, 512, 512, 256), 256),
    "wide": (mlp(256, 4096, 256), 64),
    "large": (mlp(784, 2048, 2048, 1000), 256),
}


def measured(modules):
    """µs of one call each, the fastest of rounds in turn: what else runs on the
    machine only ever adds."""
    best = [float("inf")] * len(modules)
    with torch.no_grad():
        for module, x in modules:
            for _ in range(3):
                module(x)
        for _ in range(15):
            for n, (module, x) in enumerate(modules):
                calls = 10 if best[n] < 1000 else 1
                start = time.perf_counter()
                for _ in range(calls):
                    module(x)
                best[n] = min(best[n], (time.perf_counter() - start) / calls * 1e6)
    return best


def ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order.index(n) for n in range(len(values))]


def test_predictions_rank_as_measurements():
    modules, predicted, names = [], [], []
    for name, (module, rows) in MODELS.items():
        script = torch.jit.script(module.eval())
        x = torch.randn(rows, module[0].in_features)
        report = json.loads(torch.ops.hypatia.explain_for(script, [x]))
        for form, key in [(script, "cost_before"), (optimize(script), "cost_after")]:
            modules.append((form, x))
            predicted.append(report[key])
            names.append(f"{name}, {key}")
    times = measured(modules)
    for name, a, b in zip(names, predicted, times):
        print(f"{name}: predicted {a:.1f} µs, measured {b:.1f} µs")
    correlation = statistics.correlation(ranks(predicted), ranks(times))
    print(f"rank correlation {correlation:.3f} over {len(times)} plans")
    assert correlation > 0.9
