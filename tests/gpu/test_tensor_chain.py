"""Whole forward passes in one launch (kernels/tensor_chain.cu): numbers
against fp64, hidden results, gradients, special values, capture, streams, and that
it is used where it should.

The sizes are those that fill the device; `HYPATIA_TENSOR_CHAIN=1` sends every chain
in bf16, fp16 and TF32 this way, so the other tests are worth a run with it."""

import concurrent.futures
import itertools
import os
import pathlib
import subprocess
import sys
import unittest

import torch

from support import LIBRARY, MODES as ALL_MODES, mlp_operands, oracle, split, tf32

mlp = torch.ops.hypatia.fused_mlp
forward = torch.ops.hypatia.fused_mlp_forward

MODES = {name: mode for name, mode in ALL_MODES.items() if name != "fp32"}
CASES = [  # TF32: the second and the third alone; rows, widths that take it on 132 multiprocessors
    (512, (784, 2048, 2048, 1000)),
    (1024, (784, 2048, 2048, 2048, 2048, 1000)),
    (1000, (72, 2048, 2040, 10)),
    (640, (1024, 3072, 1304, 200)),
]
# With HYPATIA_TENSOR_CHAIN=1 only: several tiles a block, hardly any, odd ends.
OTHERS = [
    (5000, (784, 2048, 1024, 1000)),
    (300, (64, 72, 8, 136, 24)),
    (129, (200, 64, 63)),
    (1, (8, 16, 24)),
    (33, (64,) * 13),
]
ALWAYS = os.environ.get("HYPATIA_TENSOR_CHAIN") == "1"


@unittest.skipIf(torch.cuda.get_device_capability() != (9, 0), "sm_90 only")
class TensorChain(unittest.TestCase):
    def test_results_and_hidden_results(self):
        for mode, (rows, widths) in itertools.product(MODES, CASES + OTHERS):
            dtype, allow, how = MODES[mode]
            for bias, relu_last in ((True, False), ("some", True), (False, False)):
                what = f"{mode} {rows} {widths} bias={bias} relu_last={relu_last}"
                with self.subTest(what), tf32(allow):
                    x, weights, biases = mlp_operands((rows,), widths, dtype, bias)
                    y = mlp(x, weights, biases, relu_last)
                    oracle.assert_mlp(y, x, weights, biases, relu_last, what, **how)
                    kept, activations = forward(x, weights, biases, relu_last)
                    # A small one's inference has another kernel still.
                    if (rows, widths) in CASES:
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

    def test_the_same_bits_every_time(self):
        for mode, (rows, widths) in itertools.product(MODES, CASES):
            dtype, allow, _ = MODES[mode]
            with tf32(allow):
                arguments = mlp_operands((rows,), widths, dtype)
                first = mlp(*arguments, False)
                for _ in range(20):
                    self.assertTrue(torch.equal(first, mlp(*arguments, False)))

    def test_operands_with_strides_and_leading_dimensions(self):
        x, weights, biases = mlp_operands((1024,), (784, 2048, 2048, 1000), torch.float16)
        want = mlp(x, weights, biases, False)
        wide = torch.zeros(1024, 800, device="cuda", dtype=x.dtype)
        wide[:, :784] = x
        self.assertTrue(torch.equal(mlp(wide[:, :784], weights, biases, False), want))
        leading = mlp(x.view(4, 256, 784), weights, biases, False)
        self.assertTrue(torch.equal(leading.view(1024, 1000), want))
        columns = [weights[0].t().contiguous().t(), *weights[1:]]  # left to cuBLASLt
        oracle.assert_mlp(
            mlp(x, columns, biases, False), x, columns, biases, False, tensor_cores=True
        )

    def test_special_values_stay_in_their_rows(self):
        for mode, (dtype, allow, _) in MODES.items():
            with self.subTest(mode), tf32(allow):
                x, weights, biases = mlp_operands((1024,), (784, 2048, 2048, 1000), dtype)
                clean = mlp(x, weights, biases, False)
                dirty = x.clone()
                dirty[5, 3], dirty[700, 0] = float("nan"), float("inf")
                dirty[701, 1] = -float("inf")
                got = mlp(dirty, weights, biases, False)
                self.assertTrue(got[5].isnan().all())
                for row in (700, 701):
                    self.assertFalse(got[row].isfinite().all())
                others = [r for r in range(1024) if r not in (5, 700, 701)]
                self.assertTrue(torch.equal(got[others], clean[others]))

    def test_gradients(self):
        rows, widths = 512, (784, 2048, 2048, 1000)
        x, weights, biases = mlp_operands((rows,), widths, torch.bfloat16)
        leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
        grad = torch.randn(rows, 1000, device="cuda", dtype=x.dtype)
        got = torch.autograd.grad(mlp(x, weights, biases, False), leaves, grad)
        h = x
        for i, (w, b) in enumerate(zip(weights, biases)):
            h = torch.nn.functional.linear(h, w, b)
            h = torch.relu(h) if i < 2 else h
        want = torch.autograd.grad(h, leaves, grad)
        for a, b in zip(got, want):
            # Masks may differ where a hidden result is next to zero.
            self.assertLess(((a - b).float().norm() / b.float().norm()).item(), 0.02)

    def test_capture_replays_at_once_and_from_two_streams(self):
        graphs = []
        for seed in range(2):
            torch.manual_seed(seed)
            x, weights, biases = mlp_operands((1024,), CASES[1][1], torch.bfloat16)
            want = mlp(x, weights, biases, False)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = mlp(x, weights, biases, False)
            graphs.append((graph, y, want, (x, weights, biases)))
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
        for rows, widths in CASES[:2] * 4:
            arguments = mlp_operands((rows,), widths, torch.float16)
            problems.append((arguments, mlp(*arguments, True)))
        torch.cuda.synchronize()

        def work(own, arguments, want):
            stream = torch.cuda.Stream() if own else torch.cuda.current_stream()
            with torch.cuda.stream(stream):
                results = [mlp(*arguments, True) for _ in range(20)]
            stream.synchronize()
            return all(torch.equal(y, want) for y in results)

        for own in (False, True):
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                done = [pool.submit(work, own, *problem) for problem in problems]
                self.assertTrue(all(f.result() for f in done), f"own streams: {own}")

    @unittest.skipIf(ALWAYS, "it is used everywhere")
    def test_it_is_used_where_it_should(self):
        off, always = {"HYPATIA_TENSOR_CHAIN": "0"}, {"HYPATIA_TENSOR_CHAIN": "1"}
        large, medium = (784, 2048, 2048, 1000), (1024, 512, 512, 256)
        for mode, rows, widths, env, wanted in (
            ("bf16", 1024, large, {}, True),
            ("bf16", 512, large, {}, True),
            ("bf16", 1024, large, off, False),
            ("bf16", 256, medium, {}, False),
            ("bf16", 256, medium, always, True),
            ("tf32", 1024, large, {}, True),
            ("tf32", 512, large, {}, False),
            ("tf32", 512, large, always, True),
            ("fp32", 1024, large, always, False),
        ):
            dtype, allow, _ = ALL_MODES[mode]
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
                env={**os.environ, "HYPATIA_LOG": "plan", "HYPATIA_ONE_LAUNCH": "0", **env},
                cwd=pathlib.Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            )
            said = f"{mode} in one launch: tensor_chain" in done.stderr
            self.assertEqual(said, wanted, f"{mode} {rows} {widths} {env}\n{done.stderr}")


if __name__ == "__main__":
    unittest.main()
