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
# By our kernel; by cuBLASLt, results copied back as well.
CHAINS = {2048: (479, 1024, 1023, 512), 4096: (1001, 2047, 1001)}
LAYERS = [(2048, 479, 1024), (1000, 2047, 1001), (512, 1024, 2047), (4096, 1001, 2047)]


class PadRows(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def test_is_used_where_it_pays(self):
        program = (
            "import torch\n"
            "from support import fused, operands\n"
            "for rows, k, n in [\n"
            "    (2048, 479, 1024), (2048, 480, 1024), (64, 37, 129), (4096, 1024, 1001)\n"
            "]:\n"
            "    fused(*operands((rows,), k, n, torch.bfloat16))\n"
        )
        for policy, wanted, results in [("", 2, 1), ("1", 3, 2), ("0", 0, 0)]:
            env = {**os.environ, "HYPATIA_LOG": "plan", "HYPATIA_PAD_ROWS": policy}
            env |= {"HYPATIA_LIBRARY": str(LIBRARY), "HYPATIA_ONE_LAUNCH": "0"}
            done = subprocess.run(
                [sys.executable, "-c", program],
                cwd=pathlib.Path(__file__).parent, env=env, text=True, capture_output=True,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            lines = [line for line in done.stderr.splitlines() if "on copies in rows of 16" in line]
            self.assertEqual(len(set(lines)), wanted, f"{policy!r}: {done.stderr}")
            back = {line for line in lines if "its result too" in line}
            self.assertEqual(len(back), results, f"{policy!r}: {done.stderr}")

    def test_layers_against_fp64(self):
        for dtype, (rows, k, n) in itertools.product(
            (torch.bfloat16, torch.float16), LAYERS
        ):
            with self.subTest(f"{dtype} {rows} {k} {n}"):
                x, w, b = operands((rows,), k, n, dtype)
                check_all(x, w, b, **bound_options(dtype))
                # From the middle of a storage, with a gap behind each row.
                wide = torch.randn(rows, k + 2, device="cuda").to(dtype)[:, 1 : 1 + k]
                check_all(wide, w, b, **bound_options(dtype))
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            for rows, k, n in [LAYERS[0], LAYERS[-1]]:
                check_all(*operands((rows,), k, n, torch.float32), tf32=True)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    def test_more_scratch_memory_than_a_stream_keeps(self):
        check_all(*operands((2048,), 1024, 50257, torch.bfloat16), **bound_options(torch.bfloat16))

    def test_special_values_pass(self):
        for rows, k, n in [LAYERS[0], LAYERS[-1]]:
            x, w, b = operands((rows,), k, n, torch.bfloat16)
            x[5, k - 1], x[6, 0], x[7, 3] = float("inf"), float("nan"), float("-inf")
            b[n - 1], w[n - 2, k - 1] = float("inf"), float("nan")
            got, want = fused(x, w, b), eager(x, w, b)
            for row in (5, 6, 7):
                self.assertTrue(torch.equal(got[row].isnan(), want[row].isnan()))
                self.assertTrue(torch.equal(got[row].isinf(), want[row].isinf()))
            rest = got[8:]
            self.assertTrue(rest[:, : n - 2].isfinite().all(), "a row reads behind its columns")
            self.assertTrue(rest[:, n - 2].isnan().all() and rest[:, n - 1].isinf().all())

    def calls(self, rows):
        """A chain forward and back: its results."""
        widths = CHAINS[rows]
        x, weights, biases = mlp_operands((rows,), widths, torch.bfloat16)
        dy = torch.randn(rows, widths[-1], device="cuda").bfloat16()
        wanted = [True] * (2 * len(weights) + 1)

        def run():
            y, activations = mlp_forward(x, weights, biases, False)
            return y, *mlp_backward(dy, x, weights, activations, None, wanted)

        return x, weights, biases, run

    def test_chains(self):
        for rows in CHAINS:
            with self.subTest(rows):
                self.check_chain(rows)

    def check_chain(self, rows):
        x, weights, biases, run = self.calls(rows)
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
        calls = [self.calls(rows)[-1] for rows in CHAINS]
        wanted = [run() for run in calls]

        def same(own):
            stream = torch.cuda.Stream() if own else torch.cuda.current_stream()
            with torch.cuda.stream(stream):
                got = [[run() for run in calls] for _ in range(5)]
            stream.synchronize()
            return all(
                torch.equal(a, b)
                for round in got
                for results, want in zip(round, wanted)
                for a, b in zip(results, want)
            )

        torch.cuda.synchronize()
        with concurrent.futures.ThreadPoolExecutor(6) as threads:
            self.assertTrue(all(threads.map(same, [False, True] * 3)))
