"""Whole small MLPs in one launch (kernels/fused_mlp.cu): numbers against fp64,
special values, replays, capture, streams, and that it is used where it should."""

import concurrent.futures
import itertools
import os
import pathlib
import re
import subprocess
import sys
import unittest

import torch

from support import LIBRARY, MODES, mlp_operands, oracle, tf32
from test_chains import eager
from test_replay import again, recordings

mlp = torch.ops.hypatia.fused_mlp

CASES = [  # rows, widths, modes that take one launch on an H200
    (1, (37, 129, 63), ""),
    (16, (37, 129, 63), ""),
    (64, (37, 129, 63), "bf16 fp16 tf32"),
    (50, (40, 72, 33), "bf16 fp16 tf32 fp32"),
    (35, (300, 64, 10), "tf32 fp32"),
    (1, (784, 256, 256, 10), "bf16 fp16"),
    *((rows, (784, 256, 256, 10), "bf16 fp16 tf32 fp32") for rows in (64, 100, 200, 240, 256)),
    (128, (512, 512, 512, 512, 128), ""),
    (17, (512, 512, 512, 512, 128), "bf16 fp16 tf32 fp32"),
    (33, (64,) * 17, "bf16 fp16 tf32 fp32"),
    (19, (1000, 24, 512, 1), "bf16 fp16 tf32 fp32"),
    (2048, (13, 512, 256, 64), ""),
]


def every_problem():
    for mode, (rows, widths, _) in itertools.product(MODES, CASES):
        dtype, allow, how = MODES[mode]
        with tf32(allow):
            yield mode, rows, widths, dtype, how


def poisoned(f, shape, dtype):
    """f(), its result in memory that holds NaN if the allocator plays along."""
    poison = torch.full(shape, float("nan"), device="cuda", dtype=dtype)
    del poison
    return f()


@unittest.skipIf(torch.cuda.get_device_capability() != (9, 0), "sm_90 only")
class SmallMlp(unittest.TestCase):
    def test_every_case_and_mode(self):
        for mode, rows, widths, dtype, how in every_problem():
            for bias, relu_last in ((True, False), ("some", True), (False, False)):
                what = f"{mode} {rows} {widths} bias={bias} relu_last={relu_last}"
                with self.subTest(what):
                    arguments = mlp_operands((rows,), widths, dtype, bias)
                    call = lambda: mlp(*arguments, relu_last)  # noqa: E731, B023
                    first = poisoned(call, (rows, widths[-1]), dtype)
                    oracle.assert_mlp(first, *arguments, relu_last, what, **how)
                    for _ in range(3):
                        again_ = poisoned(call, (rows, widths[-1]), dtype)
                        self.assertTrue(torch.equal(first, again_), "not the same bits")

    def test_strides_and_alignment(self):
        wider = lambda t: torch.nn.functional.pad(t, (3, 16))[:, 3:-16]  # noqa: E731
        changes = {
            "rows apart": lambda t: torch.nn.functional.pad(t, (0, 16))[:, :-16],
            "rows apart and misaligned": wider,
            "every second row": lambda t: t.repeat_interleave(2, 0)[::2],
            "misaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
            "transposed": lambda t: t.t().contiguous().t(),
            "expanded": lambda t: t[:1].expand_as(t),
        }
        for mode, (name, change) in itertools.product(MODES, changes.items()):
            dtype, allow, how = MODES[mode]
            x, weights, biases = mlp_operands((70,), (200, 240, 72, 50), dtype)
            with tf32(allow), self.subTest(f"{mode} {name}"):
                for arguments in (
                    (change(x), weights, biases),
                    (x, [change(weights[0]), *weights[1:]], biases),
                    (change(x), [*map(change, weights)], [b.repeat(2)[::2] for b in biases]),
                ):
                    oracle.assert_mlp(mlp(*arguments), *arguments, False, name, **how)

    def test_three_dimensions_and_one(self):
        for leading in ((3, 5, 2), ()):
            arguments = mlp_operands(leading, (72, 40, 24), torch.bfloat16)
            got = mlp(*arguments)
            self.assertEqual(got.shape, (*leading, 24))
            oracle.assert_mlp(got, *arguments, False, "leading", tensor_cores=True)

    def test_special_values_as_eager(self):
        inf, nan = float("inf"), float("nan")
        largest = {torch.bfloat16: 3e38, torch.float16: 6e4, torch.float32: 3.4e38}
        kind = lambda t: torch.where(t.isnan(), 2, torch.where(t.isinf(), t.sign(), 0)).int()  # noqa: E731
        for mode, (dtype, allow, _) in MODES.items():
            # The second has columns that pad K of the next layer.
            for rows, widths in ((64, (256, 256, 256, 40)), (24, (48, 100, 36, 20))):
                x, weights, biases = mlp_operands((rows,), widths, dtype)
                x[1, 3], x[2, 5], x[3, 7], x[5, 5] = inf, nan, -inf, largest[dtype]
                if widths[0] == 256:
                    weights[1][9, 9], weights[2][4, 4], biases[0][3] = inf, nan, -inf
                with tf32(allow), self.subTest(f"{mode} {widths}"):
                    got, want = mlp(x, weights, biases), eager(x, weights, biases)
                    self.assertTrue(torch.equal(kind(got), kind(want)))
                    self.assertGreater(kind(want).unique().numel(), 1)

    def test_fp16_accumulation_is_left_to_cublaslt(self):
        if not hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"):
            self.skipTest("no such switch")
        arguments = mlp_operands((64,), (256, 256, 64), torch.float16)
        torch.backends.cuda.matmul.allow_fp16_accumulation = True
        try:
            torch.testing.assert_close(mlp(*arguments), eager(*arguments), rtol=2e-2, atol=2e-2)
        finally:
            torch.backends.cuda.matmul.allow_fp16_accumulation = False

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

    def test_capture_then_new_inputs(self):
        for mode, rows, widths, dtype, _ in every_problem():
            x, weights, biases = mlp_operands((rows,), widths, dtype)
            graph = torch.cuda.CUDAGraph()
            mlp(x, weights, biases)
            with torch.cuda.graph(graph):
                outputs = [mlp(x, weights, biases) for _ in range(2)]
            for _ in range(2):
                x.normal_()
                graph.replay()
                want = mlp(x.clone(), weights, biases)
                for output in outputs:
                    self.assertTrue(torch.equal(output, want), f"{mode} {rows} {widths}")

    def test_two_streams(self):
        arguments = mlp_operands((100,), (784, 256, 256, 10), torch.bfloat16)
        want = mlp(*arguments)
        streams = [torch.cuda.Stream() for _ in range(2)]
        torch.cuda.synchronize()
        for _ in range(50):
            results = []
            for stream in streams:
                with torch.cuda.stream(stream):
                    results += [mlp(*arguments) for _ in range(3)]
            torch.cuda.synchronize()
            self.assertTrue(all(torch.equal(r, want) for r in results))

    def test_eight_threads(self):
        cases = [mlp_operands((16 * (1 + n),), (64, 80, 200, 24), torch.bfloat16) for n in range(8)]
        wants = [mlp(*case) for case in cases]
        torch.cuda.synchronize()

        def work(n):
            stream = torch.cuda.Stream() if n % 2 else torch.cuda.default_stream()
            good = True
            with torch.cuda.stream(stream):
                for _ in range(200):
                    got = mlp(*cases[n])
                    stream.synchronize()
                    good = good and torch.equal(got, wants[n])
            return good

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertTrue(all(pool.map(work, range(8))))

    def test_no_memory_but_the_result(self):
        arguments = mlp_operands((64,), (128, 256, 256, 64), torch.float32)
        count = lambda: torch.cuda.memory_stats()["allocation.all.allocated"]  # noqa: E731
        mlp(*arguments)
        before = count()
        mlp(*arguments)
        self.assertEqual(count() - before, 1)


class Choice(unittest.TestCase):
    """What HYPATIA_LOG=plan says of every case, in a process of its own."""

    def said(self, **env):
        code = "import test_small_mlp as t; t.run_every_problem()"
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HYPATIA_LIBRARY": str(LIBRARY), "HYPATIA_LOG": "plan", "HYPATIA_TUNE": "0", "HYPATIA_CLUSTER_MLP": "0", **env},
            capture_output=True,
            text=True,
            cwd=pathlib.Path(__file__).resolve().parent,
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        lines = re.findall(r"hypatia: mlp (\d+)x(\d+) \[([\d, ]+)\] (\w+) (\w+) cuda:\d+: (.*)", run.stderr)
        modes = {("Bf16", "Strict"): "bf16", ("F16", "Strict"): "fp16", ("F32", "Tf32"): "tf32", ("F32", "Strict"): "fp32"}
        return {
            (modes[dtype, math], int(rows), (int(k), *map(int, n.split(", ")))): why
            for rows, k, n, dtype, math, why in lines
        }

    @unittest.skipIf(torch.cuda.get_device_capability() != (9, 0), "sm_90 only")
    def test_one_launch_where_it_should_be(self):
        said = self.said()
        for mode, (rows, widths, modes) in itertools.product(MODES, CASES):
            want = "one launch, fused_mlp_" if mode in modes.split() else "layer by layer"
            got = said[mode, rows, widths]
            self.assertTrue(got.startswith(want), f"{mode} {rows} {widths}: {got}")

    def test_it_can_be_turned_off(self):
        said = self.said(HYPATIA_ONE_LAUNCH="0")
        self.assertTrue(said)
        for problem, why in said.items():
            self.assertIn("layer by layer", why, problem)


def run_every_problem():
    for _, rows, widths, dtype, _ in every_problem():
        mlp(*mlp_operands((rows,), widths, dtype))
    torch.cuda.synchronize()


if __name__ == "__main__":
    unittest.main()
