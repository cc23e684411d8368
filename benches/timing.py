"""Alternated timing: each round times every contender once, so that a drift of
the machine reaches all of them, and ratios are taken within a round."""

import statistics
import sys
import time

import torch

PLACEMENTS = 6


class Captured:
    """CUDA graphs of calls, timed by events: GPU time without launches.

    Captured several times over, each with activations elsewhere in memory, and
    replayed in turn: one placement alone shifts small models by up to 3 %, the
    same way in every round.
    """

    granularity = PLACEMENTS  # replays of a round, so that each takes part

    def __init__(self, calls, warmups=3):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls * warmups:
                call()
        torch.cuda.current_stream().wait_stream(side)
        self.graphs, self.outputs, self.gaps = [], [], []
        for placement in range(max(PLACEMENTS, len(calls))):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.outputs.append(calls[placement % len(calls)]())
            self.graphs.append(graph)
            self.gaps.append(torch.empty((placement + 1) << 17, device="cuda"))

    def microseconds(self, repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for i in range(repeats):
            self.graphs[i % len(self.graphs)].replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / repeats


class Wall:
    """Host wall time per call in a Python loop, synchronised at the end."""

    granularity = 1

    def __init__(self, calls, warmups=5, settles=6):
        self.calls, self.settles = calls, settles
        for call in calls * warmups:
            self.result = call()
        self.synchronize()

    def synchronize(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        # A training step returns a tree of arrays.
        jax = sys.modules.get("jax")
        if jax is not None:
            jax.block_until_ready(self.result)

    def microseconds(self, repeats):
        calls = self.calls
        # A loop after the other contenders' memory traffic: addresses settle.
        for call in calls * self.settles:
            self.result = call()
        self.synchronize()
        start = time.perf_counter()
        for i in range(repeats):
            self.result = calls[i % len(calls)]()
        self.synchronize()
        return (time.perf_counter() - start) * 1e6 / repeats


def alternate(contenders, rounds, target_us, seconds=None):
    """{name: [microseconds per round]}; each timing lasts about `target_us`. With
    `seconds` as many rounds as fit into them, but not fewer than `rounds`."""
    end = time.monotonic() + (seconds or 0)
    first = {name: c.microseconds(2) for name, c in contenders.items()}
    repeats = {}
    for name, contender in contenders.items():
        step = contender.granularity
        repeats[name] = step * max(1, round(target_us / first[name] / step))
    times = {name: [] for name in contenders}
    while len(next(iter(times.values()))) < rounds or time.monotonic() < end:
        for name, contender in contenders.items():
            times[name].append(contender.microseconds(repeats[name]))
    return times


def median(values):
    return statistics.median(values)


def tenth(values):
    """Of ten values one is below it: what others on the machine disturbed least."""
    return statistics.quantiles(values, n=10, method="inclusive")[0]


def ratio(times, baseline, name):
    """Median over rounds of baseline / name: above 1 means `name` is faster."""
    return median([b / t for b, t in zip(times[baseline], times[name])])


def spread(values):
    """Half the interquartile range over the median."""
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / median(values)


def summary(times, ours, fastest=False):
    """{name: microseconds}, their spreads, and all others over `ours`: medians, of ratios
    those of the rounds; with `fastest` the fastest tenths and their quotients."""
    us = {name: (tenth if fastest else median)(values) for name, values in times.items()}
    over = {
        name: us[name] / us[ours] if fastest else ratio(times, name, ours) for name in times if name != ours
    }
    return us, {name: spread(values) for name, values in times.items()}, over
