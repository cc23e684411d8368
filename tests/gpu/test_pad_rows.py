"""Products on copies of operands whose rows are not aligned (kernels/pad_rows.cu)."""

import concurrent.futures
import itertools
import os
import pathlib
import subprocess
import sys
import unittest

import torch

from support import LIBRARY, bound_options, eager, fused, mlp_operands, operands, oracle, split
from test_numbers import check_all

mlp = torch.ops.hypatia.fused_mlp
mlp_forward = torch.ops.hypatia.fused_mlp_forward
mlp_backward = torch.ops.hypatia.fused_mlp_backward
WIDTHS = (479, 1024, 1023, 512)


class PadRows(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def test_is_used_where_it_pays(self):
        program = (
            "import torch\n"
            "from support import fused, operands\n"
            "for rows, k, n in [(2048, 479, 1024), (2048, 480, 1024), (64, 37, 129)]:\n"
            "    fused(*operands((rows,), k, n, torch.bfloat16))\n"
        )
        # It is our kernel, of sm_90, that is faster on copies.
        ours = torch.cuda.get_device_capability() == (9, 0)
        for policy, wanted in [("", int(ours)), ("1", 2), ("0", 0)]:
            env = {**os.environ, "HYPATIA_LOG": "plan", "HYPATIA_PAD_ROWS": policy}
            env |= {"HYPATIA_LIBRARY": str(LIBRARY), "HYPATIA_ONE_LAUNCH": "0"}
            done = subprocess.run(
                [sys.executable, "-c", program],
                cwd=pathlib.Path(__file__).parent, env=env, text=True, capture_output=True,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            lines = [line for line in done.stderr.splitlines() if "on copies in rows of 16" in line]
            self.assertEqual(len(set(lines)), wanted, f"{policy!r}: {done.stderr}")

    def test_layers_against_fp64(self):
        for dtype, (rows, k, n) in itertools.product(
            (torch.bfloat16, torch.float16), [(2048, 479, 1024), (1000, 2047, 1001), (512, 1024, 2047)]
        ):
            with self.subTest(f"{dtype} {rows} {k} {n}"):
                x, w, b = operands((rows,), k, n, dtype)
                check_all(x, w, b, **bound_options(dtype))
                # From the middle of a storage, with a gap behind each row.
                wide = torch.randn(rows, k + 2, device="cuda").to(dtype)[:, 1 : 1 + k]
                check_all(wide, w, b, **bound_options(dtype))
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            check_all(*operands((2048,), 479, 1024, torch.float32), tf32=True)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    def test_special_values_pass(self):
        x, w, b = operands((2048,), 479, 1024, torch.bfloat16)
        x[5, 478], x[6, 0], x[7, 3] = float("inf"), float("nan"), float("-inf")
        got, want = fused(x, w, b), eager(x, w, b)
        for row in (5, 6, 7):
            self.assertTrue(torch.equal(got[row].isnan(), want[row].isnan()))
            self.assertTrue(torch.equal(got[row].isinf(), want[row].isinf()))
        self.assertTrue(got[8:].isfinite().all(), "a row reads behind its own columns")

    def calls(self):
        """A chain forward and back: its results."""
        x, weights, biases = mlp_operands((2048,), WIDTHS, torch.bfloat16)
        dy = torch.randn(2048, WIDTHS[-1], device="cuda").bfloat16()

        def run():
            y, activations = mlp_forward(x, weights, biases, False)
            return y, *mlp_backward(dy, x, weights, activations, None, [True] * 7)

        return x, weights, biases, run

    def test_chains(self):
        x, weights, biases, run = self.calls()
        want = run()
        y, activations = mlp_forward(x, weights, biases, False)
        h = x
        for part, w, b in zip(split(activations, x, weights), weights, biases):
            oracle.assert_forward(part, h, w, b, "a layer", tensor_cores=True)
            h = part
        self.assertTrue(torch.equal(mlp(x, weights, biases), y))
        # Again, replayed, and in a capture on other numbers.
        for _ in range(4):
            self.assertTrue(all(torch.equal(a, b) for a, b in zip(run(), want)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        for _ in range(2):
            x.normal_()
            weights[0].normal_(std=0.05)
            graph.replay()
            for a, b in zip(captured, run()):
                self.assertTrue(torch.equal(a, b))

    def test_threads_share_a_stream_and_have_their_own(self):
        _, _, _, run = self.calls()
        want = run()

        def same(own):
            stream = torch.cuda.Stream() if own else torch.cuda.current_stream()
            with torch.cuda.stream(stream):
                got = [run() for _ in range(10)]
            stream.synchronize()
            return all(torch.equal(a, b) for results in got for a, b in zip(results, want))

        torch.cuda.synchronize()
        with concurrent.futures.ThreadPoolExecutor(6) as threads:
            self.assertTrue(all(threads.map(same, [False, True] * 3)))
