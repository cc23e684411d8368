"""Whole forward passes of few rows in one launch (kernels/cluster_mlp.cu, in strict
fp32 cluster_fp32.cu): numbers against fp64, hidden results, gradients, special values,
capture, streams, and that it is used where it should.

`HYPATIA_CLUSTER_MLP=1` sends every chain this way that fits, so the other tests are
worth a run with it."""

import concurrent.futures
import itertools
import os
import pathlib
import subprocess
import sys
import unittest

import torch

from support import LIBRARY, MODES, mlp_operands, oracle, split, tf32
from test_chains import eager
from test_replay import again, recordings

mlp = torch.ops.hypatia.fused_mlp
forward = torch.ops.hypatia.fused_mlp_forward

TINY, SMALL = (784, 256, 256, 10), (512, 512, 512, 512, 128)
CASES = [  # rows, widths
    *((rows, TINY) for rows in (1, 8, 9, 64, 100, 256, 257)),
    *((rows, SMALL) for rows in (7, 128, 250)),
    (256, (1024, 512, 512, 512, 512, 256)),
    (50, (40, 72, 136, 24)),
    (33, (64,) * 13),
    (19, (1000, 24, 512, 1)),
    (200, (64, 8, 8, 63)),
    (61, (200, 512, 320, 8)),
]
# Several tiles of every layer a block: in strict fp32 the first two go this way,
# with HYPATIA_CLUSTER_MLP=1 all.
OTHERS = [
    (16, (784, 1024, 1024, 16)),
    (100, (2048, 512, 72)),
    (200, (264, 520, 1024, 63)),
    (17, (1048, 1000, 1304, 72)),
    (100, (72, 2048, 40)),
]
ALWAYS = os.environ.get("HYPATIA_CLUSTER_MLP") == "1"


@unittest.skipIf(torch.cuda.get_device_capability() != (9, 0), "sm_90 only")
class ClusterMlp(unittest.TestCase):
    def test_results_and_hidden_results(self):
        for mode, (rows, widths) in itertools.product(MODES, CASES + OTHERS):
            dtype, allow, how = MODES[mode]
            for bias, relu_last in ((True, False), ("some", True), (False, False)):
                what = f"{mode} {rows} {widths} bias={bias} relu_last={relu_last}"
                with self.subTest(what), tf32(allow):
                    x, weights, biases = mlp_operands((rows,), widths, dtype, bias)
                    poison = torch.full((rows, widths[-1]), float("nan"), device="cuda", dtype=dtype)
                    del poison
                    y = mlp(x, weights, biases, relu_last)
                    oracle.assert_mlp(y, x, weights, biases, relu_last, what, **how)
                    kept, activations = forward(x, weights, biases, relu_last)
                    if (rows, widths) in CASES and (mode, rows) != ("fp32", 1):
                        self.assertTrue(torch.equal(y, kept), what)
                    hidden = split(activations, x, weights)
                    for i, h in enumerate(hidden):
                        front = hidden[i - 1] if i else x
                        layer = weights[i : i + 1], biases[i : i + 1], True
                        oracle.assert_mlp(h, front, *layer, f"{what} layer {i}", **how)
                        if mode == "tf32" and h.numel() > 1000:
                            # Rounded where it is read, not where it is kept.
                            low = h.contiguous().view(torch.int32) & 0x1FFF
                            self.assertTrue(low.any(), what)

    def test_the_same_bits_every_time_and_for_every_neighbour(self):
        for mode, (rows, widths) in itertools.product(MODES, CASES):
            dtype, allow, _ = MODES[mode]
            with tf32(allow):
                x, weights, biases = mlp_operands((rows,), widths, dtype)
                first = mlp(x, weights, biases)
                for _ in range(20):
                    self.assertTrue(torch.equal(first, mlp(x, weights, biases)))
                # The order of sums depends on nothing but k.
                part = x[: (rows + 1) // 2]
                self.assertTrue(torch.equal(first[: (rows + 1) // 2], mlp(part, weights, biases)))

    def test_strides_and_leading_dimensions(self):
        for mode, (dtype, allow, how) in MODES.items():
            with self.subTest(mode), tf32(allow):
                x, weights, biases = mlp_operands((120,), (200, 256, 72, 50), dtype)
                want = mlp(x, weights, biases)
                wide = torch.zeros(120, 216, device="cuda", dtype=dtype)
                wide[:, :200] = x
                self.assertTrue(torch.equal(mlp(wide[:, :200], weights, biases), want))
                leading = mlp(x.view(4, 30, 200), weights, biases)
                self.assertTrue(torch.equal(leading.view(120, 50), want))
                apart = [torch.nn.functional.pad(w, (0, 8))[:, :-8] for w in weights]
                self.assertTrue(torch.equal(mlp(x, apart, biases), want))
                for other in (wide[:, 1:201], x.t().contiguous().t()):  # not this way
                    oracle.assert_mlp(mlp(other, weights, biases), other, weights, biases, False, mode, **how)

    def test_special_values_as_eager(self):
        inf, nan = float("inf"), float("nan")
        largest = {torch.bfloat16: 3e38, torch.float16: 6e4, torch.float32: 3.4e38}
        kind = lambda t: torch.where(t.isnan(), 2, torch.where(t.isinf(), t.sign(), 0)).int()  # noqa: E731
        for mode, (dtype, allow, _) in MODES.items():
            # The second has columns that pad k of the next layer.
            for rows, widths in ((64, (256, 256, 256, 40)), (24, (48, 104, 40, 20))):
                x, weights, biases = mlp_operands((rows,), widths, dtype)
                x[1, 3], x[2, 5], x[3, 7], x[5, 5] = inf, nan, -inf, largest[dtype]
                if widths[0] == 256:
                    weights[1][9, 9], weights[2][4, 4], biases[0][3] = inf, nan, -inf
                for relu_last in (False, True):
                    with tf32(allow), self.subTest(f"{mode} {widths} {relu_last}"):
                        got, want = mlp(x, weights, biases, relu_last), eager(x, weights, biases)
                        want = torch.relu(want) if relu_last else want
                        self.assertTrue(torch.equal(kind(got), kind(want)))
                        self.assertGreater(kind(want).unique().numel(), 1)

    def test_gradients(self):
        for mode, (dtype, allow, _) in MODES.items():
            with tf32(allow):
                x, weights, biases = mlp_operands((128,), SMALL, dtype)
                leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
                grad = torch.randn(128, 128, device="cuda").to(dtype)
                got = torch.autograd.grad(mlp(x, weights, biases), leaves, grad)
                want = torch.autograd.grad(eager(x, weights, biases), leaves, grad)
            for a, b in zip(got, want):
                # Masks may differ where a hidden result is next to zero.
                self.assertLess(((a - b).float().norm() / b.float().norm()).item(), 0.03, mode)

    def test_a_loop_is_recorded_and_sees_new_numbers(self):
        for mode, (dtype, allow, how) in MODES.items():
            with tf32(allow), self.subTest(mode):
                x, weights, biases = arguments = mlp_operands((64,), (96, 128, 80, 10), dtype)
                before = recordings()
                first = mlp(*arguments).clone()
                self.assertEqual(recordings(), before, "one call is no loop")
                self.assertTrue(torch.equal(again(lambda: mlp(*arguments), 20), first))  # noqa: B023
                self.assertGreater(recordings(), before)
                for t in (x, weights[1], biases[0]):
                    t.mul_(0.5)
                    got = again(lambda: mlp(*arguments), 3)  # noqa: B023
                    oracle.assert_mlp(got, *arguments, False, "new numbers", **how)

    def test_capture_replays_at_once_and_from_two_streams(self):
        graphs = []
        for seed, dtype in enumerate((torch.bfloat16, torch.float32) * 2):
            torch.manual_seed(seed)
            arguments = mlp_operands((256,), CASES[10][1], dtype)
            want = mlp(*arguments)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = mlp(*arguments)
            graphs.append((graph, y, want, arguments))
        streams = [torch.cuda.Stream() for _ in graphs]
        for _ in range(50):
            for stream, (graph, *_) in zip(streams, graphs):
                with torch.cuda.stream(stream):
                    graph.replay()
        torch.cuda.synchronize()
        for _, y, want, _ in graphs:
            self.assertTrue(torch.equal(y, want))

    def test_eight_threads_on_one_stream_and_on_their_own(self):
        problems = []
        for i, (rows, widths) in enumerate(CASES[3:11]):
            arguments = mlp_operands((rows,), widths, (torch.float16, torch.float32)[i % 2])
            problems.append((arguments, mlp(*arguments, True)))
        torch.cuda.synchronize()

        def work(own, arguments, want):
            stream = torch.cuda.Stream() if own else torch.cuda.current_stream()
            with torch.cuda.stream(stream):
                results = [mlp(*arguments, True) for _ in range(50)]
            stream.synchronize()
            return all(torch.equal(y, want) for y in results)

        for own in (False, True):
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                done = [pool.submit(work, own, *problem) for problem in problems]
                self.assertTrue(all(f.result() for f in done), f"own streams: {own}")

    @unittest.skipIf(ALWAYS, "it is used everywhere")
    def test_it_is_used_where_it_should(self):
        off, always = {"HYPATIA_CLUSTER_MLP": "0"}, {"HYPATIA_CLUSTER_MLP": "1"}
        wide = (784, 2048, 2048, 1000)
        for mode, rows, widths, env, wanted in (
            ("bf16", 64, TINY, {}, True),
            ("bf16", 64, TINY, off, False),
            ("fp16", 128, SMALL, {}, True),
            ("tf32", 128, SMALL, {}, True),
            ("fp32", 64, TINY, {}, True),
            ("fp32", 256, SMALL, {}, True),
            ("fp32", 64, TINY, {**always, "HYPATIA_FP32": "ieee"}, False),
            ("fp32", 64, TINY, off, False),
            ("fp32", 16, (784, 1024, 1024, 16), {}, True),
            ("fp32", 15, (784, 1024, 1024, 16), {}, False),
            ("fp32", 1, TINY, {}, False),
            ("fp32", 640, TINY, {}, False),
            ("bf16", 1024, SMALL, {}, False),
            ("bf16", 64, (783, 256, 10), {}, False),
            ("bf16", 64, wide, {}, False),
            ("bf16", 16, (784, 1024, 1000), always, True),
        ):
            dtype, allow, _ = MODES[mode]
            program = f"""
import torch
torch.ops.load_library({str(LIBRARY)!r})
from support import mlp_operands
torch.backends.cuda.matmul.allow_tf32 = {allow}
torch.ops.hypatia.fused_mlp(*mlp_operands(({rows},), {widths}, {dtype}), False)
torch.cuda.synchronize()
"""
            done = subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "HYPATIA_LOG": "plan", **env},
                cwd=pathlib.Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            )
            said = f"{mode} in one launch: cluster_".replace("fp16", "f16") in done.stderr
            self.assertEqual(said, wanted, f"{mode} {rows} {widths} {env}\n{done.stderr}")


if __name__ == "__main__":
    unittest.main()
