"""Timed plans that outlive the process (HYPATIA_PLAN_CACHE): the next process takes
them and times nothing; what is wrong with the file costs a warning and no result."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from support import LIBRARY

# Forward and gradients of one layer in every mode, held to fp64; prints what
# build_info says and a digest of all results.
WORK = """
import hashlib, json, sys, torch
from support import bound_options, fused, fused_backward, operands, oracle
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype, tf32 in [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float32, False)]:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    how = {"tf32": True} if tf32 else bound_options(dtype)
    for rows in (128, 72):
        x, w, b = operands((rows,), 512, 256, dtype)
        dy = torch.randn(rows, 256, device="cuda").to(dtype)
        y = fused(x, w, b)
        grads = fused_backward(dy, x, w, y, [True, True, True])
        for t in (y, *grads):
            digest.update(t.float().cpu().numpy().tobytes())
        torch.backends.cuda.matmul.allow_tf32 = False
        oracle.assert_forward(y, x, w, b, **how)
        oracle.assert_gradients(grads, dy, x, w, y, **how)
        torch.backends.cuda.matmul.allow_tf32 = tf32
print(json.dumps({"digest": digest.hexdigest(), **json.loads(torch.ops.hypatia.build_info())}))
"""
# Forward, gradient of the input and of the weight, in four modes at two sizes.
PRODUCTS = 3 * 4 * 2

DETERMINISTIC = "import torch\ntorch.use_deterministic_algorithms(True)\n" + WORK

# A product's first call is captured; the device was opened by another.
CAPTURED = """
import json, torch
from support import fused, operands, oracle
fused(*operands((8,), 16, 16, torch.float32))
torch.cuda.synchronize()
x, w, b = operands((128,), 512, 256, torch.float32)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = fused(x, w, b)
graph.replay()
oracle.assert_forward(y, x, w, b)
fused(x, w, b)
print(torch.ops.hypatia.build_info())
"""


@dataclasses.dataclass
class Run:
    """What one process said."""

    info: dict
    why: list  # for each plan made, why it was chosen
    warnings: list  # lines

    @property
    def timed(self):
        return [why for why in self.why if "from /" not in why and not why.startswith("not timed")]

    @property
    def from_file(self):
        return [why for why in self.why if "from /" in why]


class PlanFile(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.home = pathlib.Path(temporary.name).resolve()
        self.folder = self.home / "plans"

    def run_(self, program=WORK, **env):
        usual = {
            "HYPATIA_LIBRARY": str(LIBRARY),
            "HYPATIA_PLAN_CACHE": str(self.folder),
            "HYPATIA_LOG": "plan",
            "HYPATIA_TUNE": "1",
            "HYPATIA_FP32": "ieee",  # so that all products are cuBLASLt's to time
            "HYPATIA_TENSOR_GEMM": "",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what deterministic mode asks for
            "XDG_CACHE_HOME": str(self.home / "cache"),
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=pathlib.Path(__file__).parent,
            env={**os.environ, **usual, **env},
            text=True,
            capture_output=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stderr.splitlines()
        made = [re.match(r"hypatia: gemm_.* algorithm \d+ \((.*)\), workspace \d+ B$", line) for line in lines]
        return Run(
            json.loads(done.stdout.splitlines()[-1]),
            [m[1] for m in made if m],
            [line for line in lines if "hypatia::" in line],
        )

    def file(self):
        files = list(self.folder.iterdir())
        self.assertEqual(len(files), 1, files)
        return files[0]

    def test_the_next_process_times_nothing(self):
        first = self.run_()
        self.assertEqual((len(first.timed), len(first.from_file)), (PRODUCTS, 0), first.why)
        self.assertEqual(first.info["plans_from_cache"], 0)
        self.assertEqual(first.info["plan_cache"], str(self.folder))
        path = self.file()
        self.assertEqual((path.stat().st_mode & 0o777, self.folder.stat().st_mode & 0o777), (0o600, 0o700))
        header, *lines = path.read_text().splitlines()
        self.assertRegex(header, r"^hypatia-plans 1 device=\S+ sm=\d+ multiprocessors=\d+ driver=\d+:\S* cublaslt=\d+ ")
        self.assertEqual(len(lines), PRODUCTS)
        before = path.read_bytes()
        for _ in range(2):
            second = self.run_()
            self.assertEqual((len(second.timed), len(second.from_file)), (0, PRODUCTS), second.why)
            self.assertTrue(all(f"from {path}" in why for why in second.from_file), second.why)
            self.assertEqual(second.info["plans_from_cache"], PRODUCTS)
            self.assertEqual(second.info["digest"], first.info["digest"], "the same algorithms, the same bits")
            self.assertEqual(path.read_bytes(), before)
            self.assertEqual(second.warnings, [])
        self.assertEqual(first.warnings, [])

    def test_a_damaged_file_costs_the_damaged_plan_and_one_warning(self):
        first = self.run_()
        path = self.file()
        lines = path.read_text().splitlines(keepends=True)
        lines[5] = lines[5].replace("k=", "k=1", 1)
        path.write_text("".join(lines) + "half a li")
        second = self.run_()
        self.assertEqual(len(second.warnings), 1, second.warnings)
        said = f"hypatia::fused_linear_relu: expected {PRODUCTS} whole lines of timed plans in {path}, got 1 that are"
        self.assertIn(said, second.warnings[0])
        self.assertEqual((len(second.timed), len(second.from_file)), (1, PRODUCTS - 1), second.why)
        third = self.run_()
        self.assertEqual((third.warnings, third.timed), ([], []), "it was mended")
        self.assertEqual(first.info["gemm_plans"], third.info["gemm_plans"])

    def test_a_foreign_file_is_left_alone_with_one_warning(self):
        self.run_()
        path = self.file()
        header, rest = path.read_text().split("\n", 1)
        for text in (re.sub(r"cublaslt=\d+", "cublaslt=120000", header) + "\n" + rest, "\0\n" * 99):
            path.write_text(text)
            run = self.run_()
            self.assertEqual(len(run.warnings), 1, run.warnings)
            self.assertIn(f"hypatia::fused_linear_relu: expected {path} to begin with", run.warnings[0])
            self.assertIn("; the file is ignored", run.warnings[0])
            self.assertEqual((len(run.timed), len(run.from_file)), (PRODUCTS, 0), run.why)
            self.assertEqual((self.file(), path.read_text()), (path, text))

    def test_without_timing_it_is_neither_read_nor_written(self):
        cases = [(WORK, {"HYPATIA_TUNE": "0"}, "HYPATIA_TUNE=0"), (DETERMINISTIC, {}, "deterministic mode")]
        for program, env, why in cases:
            run = self.run_(program, **env)
            self.assertEqual(run.why, [f"not timed: {why}"] * PRODUCTS)
            self.assertFalse(self.folder.exists())
        self.run_()
        before = self.file().read_bytes()
        for program, env, why in cases:
            run = self.run_(program, **env)
            self.assertEqual(run.why, [f"not timed: {why}"] * PRODUCTS)
            self.assertEqual((run.info["plans_from_cache"], run.warnings), (0, []))
            self.assertEqual(self.file().read_bytes(), before)

    def test_a_first_call_that_is_captured_takes_it(self):
        run = self.run_(CAPTURED)
        # First guess in the graph, timed by the call behind it.
        self.assertEqual(len(run.why), 3, run.why)
        self.assertEqual(run.why[1], "not timed: its stream is being captured")
        self.assertEqual(len(run.timed), 2)
        run = self.run_(CAPTURED)
        self.assertEqual((len(run.why), len(run.from_file)), (2, 2), run.why)
        self.assertEqual(run.info["plans_from_cache"], 2)

    def test_exhaustive_timing_takes_nothing_and_leaves_everything(self):
        usual = self.run_()
        counts = [why.count(",") for why in usual.timed]
        every = self.run_(HYPATIA_TUNE="all")
        self.assertEqual((len(every.timed), every.info["plans_from_cache"]), (PRODUCTS, 0), every.why)
        self.assertGreaterEqual(sum(why.count(",") for why in every.timed), sum(counts), "no fewer were timed")
        self.assertEqual(len(self.file().read_text().splitlines()), 1 + 2 * PRODUCTS)
        after = self.run_()
        self.assertEqual((len(after.from_file), after.timed), (PRODUCTS, []), after.why)
        self.assertEqual(after.info["digest"], every.info["digest"], "what exhaustive timing chose")

    def test_processes_at_once(self):
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            runs = list(pool.map(lambda _: self.run_(), range(3)))
        self.assertEqual([run.warnings for run in runs], [[]] * 3)
        after = self.run_()
        self.assertEqual((len(after.from_file), after.warnings), (PRODUCTS, []), after.why)
        self.file()

    def test_where_it_cannot_be_there_is_one_warning(self):
        (self.home / "plans").write_text("a file where the folder should be")
        run = self.run_()
        self.assertEqual(len(run.warnings), 1, run.warnings)
        self.assertIn("hypatia::fused_linear_relu: expected to keep timed plans in ", run.warnings[0])
        self.assertEqual(len(run.timed), PRODUCTS)

    def test_the_usual_place_and_none(self):
        run = self.run_(HYPATIA_PLAN_CACHE="0")
        self.assertIsNone(run.info["plan_cache"])
        self.assertEqual((len(run.timed), list(self.home.iterdir())), (PRODUCTS, []))
        self.run_(HYPATIA_PLAN_CACHE="1")
        self.folder = self.home / "cache/hypatia"
        self.assertEqual(len(self.file().read_text().splitlines()), 1 + PRODUCTS)
        # Nobody asked for the usual place, so nobody hears that it cannot be used.
        self.file().unlink()
        self.folder.rmdir()
        self.folder.write_text("")
        run = self.run_(HYPATIA_PLAN_CACHE="1")
        self.assertEqual((run.warnings, len(run.timed)), ([], PRODUCTS))

    def test_a_value_that_is_none_is_named(self):
        run = self.run_(HYPATIA_TUNE="ALL")
        self.assertEqual(len(run.warnings), 1, run.warnings)
        said = 'hypatia::fused_linear_relu: expected HYPATIA_TUNE to be 0, 1 or all, got "ALL"; it counts as 1'
        self.assertIn(said, run.warnings[0])
        self.assertEqual(len(run.timed), PRODUCTS)


if __name__ == "__main__":
    unittest.main()
