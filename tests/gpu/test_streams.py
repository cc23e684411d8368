"""Streams, capture, devices, threads; no allocation or synchronisation."""

import concurrent.futures
import os
import subprocess
import sys
import unittest

import torch

from support import fused, fused_backward, LIBRARY, mlp_operands, operands, oracle


def step(x, w, b, dy):
    """Forward and backward through the operators."""
    y = fused(x, w, b)
    return (y, *fused_backward(dy, x, w, y, [True, True, True]))


def same(got, want):
    return all(torch.equal(a, b) for a, b in zip(got, want))


class Streams(unittest.TestCase):
    SHAPES = [((64,), 784, 256), ((256,), 512, 512), ((3000,), 96, 40)]
    DTYPES = (torch.float32, torch.bfloat16)

    def cases(self):
        for dtype in self.DTYPES:
            for leading, k, n in self.SHAPES:
                x, w, b = operands(leading, k, n, dtype)
                yield x, w, b, torch.randn(*leading, n, device="cuda").to(dtype)

    def test_side_stream_sees_work_before_it(self):
        for case in self.cases():
            x = case[0]
            want = step(*case)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                late = torch.zeros_like(x)
                torch.cuda._sleep(20_000_000)  # about 10 ms
                late.copy_(x)
                got = step(late, *case[1:])
            torch.cuda.current_stream().wait_stream(stream)
            self.assertTrue(same(got, want))

    def test_capture_then_replay_with_new_inputs(self):
        for case in self.cases():
            static = [t.clone() for t in case]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step(*static)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = step(*static)
            for _ in range(3):
                fresh = [torch.randn_like(t) for t in static]
                for t, f in zip(static, fresh):
                    t.copy_(f)
                graph.replay()
                self.assertTrue(same(outputs, step(*fresh)))

    def test_capture_of_a_problem_never_seen(self):
        # No plan, no workspace, no timing: the first guess must do.
        x, w, b = operands((77,), 88, 104, torch.float32)
        dy = torch.randn(77, 104, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, *grads = step(x, w, b, dy)
        graph.replay()
        oracle.assert_forward(y, x, w, b)
        oracle.assert_gradients(grads, dy, x, w, y)

    def test_two_graphs_on_two_streams_at_once(self):
        # Tall enough that the bias gradient is split, so scratch memory counts.
        graphs = []
        for seed in range(2):
            torch.manual_seed(seed)
            x, w, b = operands((20_000,), 64, 64, torch.float32)
            dy = torch.randn(20_000, 64, device="cuda")
            want = step(x, w, b, dy)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                got = step(x, w, b, dy)
            # With its inputs: the graph reads them at every replay.
            graphs.append((graph, torch.cuda.Stream(), got, want, (x, w, b, dy)))
        for _ in range(30):
            for graph, stream, *_ in graphs:
                with torch.cuda.stream(stream):
                    graph.replay()
        torch.cuda.synchronize()
        for _, _, got, want, _ in graphs:
            self.assertTrue(same(got, want))

    def test_threads_with_a_stream_each(self):
        cases = list(self.cases())
        wants = [step(*case) for case in cases]
        torch.cuda.synchronize()

        def work(i):
            with torch.cuda.stream(torch.cuda.Stream()):
                good = all(same(step(*cases[i]), wants[i]) for _ in range(50))
                torch.cuda.current_stream().synchronize()
            return good

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertTrue(all(pool.map(work, [i % len(cases) for i in range(16)])))

    def split_cases(self):
        # Long sums of few results: split-K, two kernels with scratch memory
        # between them, and a bias gradient in splits.
        shapes = [((16,), 8192, 64), ((8,), 16384, 48), ((24,), 12288, 32), ((20_000,), 64, 16)]
        for rows, k, n in shapes:
            x, w, b = operands(rows, k, n, torch.float32)
            yield x, w, b, torch.randn(*rows, n, device="cuda")

    def test_threads_on_one_stream_share_its_scratch_memory(self):
        cases = list(self.split_cases())
        wants = [step(*case) for case in cases]
        torch.cuda.synchronize()

        def work(i):
            return all(same(step(*cases[i]), wants[i]) for _ in range(200))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertTrue(all(pool.map(work, [i % len(cases) for i in range(16)])))

    def test_chains_in_one_launch_beside_split_products(self):
        # The launch keeps its hidden results where the products keep their sums. All
        # results stay, so that no call has the addresses of another: none is replayed.
        chains = [mlp_operands((64,), (784, 256, 256, 10), dtype) for dtype in self.DTYPES]
        mlp = torch.ops.hypatia.fused_mlp
        calls = [lambda c=c: step(*c) for c in self.split_cases()]
        calls += [lambda c=c: [mlp(*c)] for c in chains] * 2
        wants = [call() for call in calls]
        torch.cuda.synchronize()

        def work(i):
            results = [calls[i]() for _ in range(100)]
            return all(same(got, wants[i]) for got in results)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertTrue(all(pool.map(work, [i % len(calls) for i in range(24)])))

    def test_threads_on_one_stream_with_new_problems(self):
        def work(i):
            x, w, b = operands((100 + i,), 64 + i, 48, torch.float32)
            dy = torch.randn(100 + i, 48, device="cuda")
            y, *grads = step(x, w, b, dy)
            oracle.assert_forward(y, x, w, b)
            oracle.assert_gradients(grads, dy, x, w, y)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(32)))


class Quiet(unittest.TestCase):
    def test_only_the_results_are_allocated(self):
        x, w, b = operands((3000,), 96, 40, torch.float32)
        dy = torch.randn(3000, 40, device="cuda")
        step(x, w, b, dy)
        count = lambda: torch.cuda.memory_stats()["allocation.all.allocated"]
        before = count()
        for _ in range(10):
            fused(x, w, b)
        self.assertEqual(count() - before, 10)
        y = fused(x, w, b)
        before = count()
        fused_backward(dy, x, w, y, [True, True, True])
        # Three gradients and the masked gradient between the kernels.
        self.assertEqual(count() - before, 4)
        before = count()
        fused_backward(dy, x, w, y, [False, False, True])
        self.assertEqual(count() - before, 1)

    def test_nothing_synchronises(self):
        from torch.profiler import ProfilerActivity, profile

        x, w, b = operands((3000,), 96, 40, torch.float32)
        dy = torch.randn(3000, 40, device="cuda")
        step(x, w, b, dy)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            for _ in range(5):
                step(x, w, b, dy)
        names = [event.name for event in recorded.events()]
        self.assertTrue(any("relu_backward_f32" in name for name in names), "no kernel of ours ran")
        # The profiler's own stop synchronises once, outside the steps.
        syncs = [n for n in names if "Synchronize" in n and "Device" not in n]
        mallocs = [n for n in names if "Malloc" in n or "MemAlloc" in n]
        self.assertEqual((syncs, mallocs), ([], []))


class Devices(unittest.TestCase):
    def test_second_device(self):
        if torch.cuda.device_count() < 2:
            self.skipTest("one device")
        for dtype in oracle.DTYPES:
            x, w, b = operands((300,), 96, 40, dtype, device="cuda:1")
            dy = torch.randn(300, 40, device="cuda:1").to(dtype)
            y, *grads = step(x, w, b, dy)
            self.assertEqual(y.device, x.device)
            how = {"tensor_cores": dtype in (torch.float16, torch.bfloat16)}
            oracle.assert_forward(y, x, w, b, **how)
            oracle.assert_gradients(grads, dy, x, w, y, **how)
        self.assertEqual(torch.cuda.current_device(), 0)

    def test_mixed_devices_are_refused(self):
        x, w, _ = operands((3,), 4, 5, torch.float32)
        message = "expected weight on input's device cuda:0, got cpu"
        with self.assertRaisesRegex(RuntimeError, message):
            fused(x, w.cpu())

    def test_first_call_on_a_new_thread(self):
        # A thread that never touched CUDA has no current context.
        code = (
            "import threading, torch, sys; torch.ops.load_library(sys.argv[1])\n"
            "x = torch.randn(8, 16, device='cuda'); w = torch.randn(4, 16, device='cuda')\n"
            "out = []\n"
            "def work(): out.append(torch.ops.hypatia.fused_linear_relu(x, w))\n"
            "t = threading.Thread(target=work); t.start(); t.join()\n"
            "assert torch.allclose(out[0], torch.relu(x @ w.t()), atol=1e-5)\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(LIBRARY)], capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_without_own_cuda_it_warns_once_and_answers(self):
        code = (
            "import sys, torch; torch.ops.load_library(sys.argv[1])\n"
            "x = torch.randn(8, 16, device='cuda', requires_grad=True)\n"
            "w = torch.randn(4, 16, device='cuda')\n"
            "for _ in range(3):\n"
            "    y = torch.ops.hypatia.fused_linear_relu(x, w); y.sum().backward()\n"
            "assert torch.equal(y, torch.relu(x @ w.t()))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(LIBRARY)],
            capture_output=True,
            text=True,
            env={**os.environ, "HYPATIA_CUDA": "0"},
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        told = [line for line in done.stderr.splitlines() if "hypatia::" in line]
        self.assertEqual(len(told), 1, done.stderr)
        self.assertIn("got: HYPATIA_CUDA=0 turns it off; ATen computes it instead", told[0])



class Memory(unittest.TestCase):
    def test_without_memory_for_scratch_aten_answers(self):
        code = (
            "import sys, torch; torch.ops.load_library(sys.argv[1])\n"
            "x = torch.randn(512, 4096, device='cuda'); w = torch.randn(1000, 4096, device='cuda')\n"
            "want = torch.relu(x @ w.t())\n"
            "total = torch.cuda.get_device_properties(0).total_memory\n"
            "left = torch.cuda.memory_reserved() + (4 << 20)\n"
            "torch.cuda.set_per_process_memory_fraction(left / total)\n"
            "for _ in range(3):\n"
            "    y = torch.ops.hypatia.fused_linear_relu(x, w)\n"
            "    assert torch.allclose(y, want, rtol=1e-3, atol=1e-2)\n"
            "torch.cuda.set_per_process_memory_fraction(1.0)\n"
            "y = torch.ops.hypatia.fused_linear_relu(x, w)\n"
            "assert torch.allclose(y, want, rtol=1e-3, atol=1e-2)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(LIBRARY)], capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        told = [line for line in done.stderr.splitlines() if "hypatia::" in line]
        self.assertEqual(len(told), 1, done.stderr)
        self.assertIn("no memory for 32 MiB of scratch on the device", told[0])


if __name__ == "__main__":
    unittest.main()
