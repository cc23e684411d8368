"""Calls that come again with the same addresses are replayed from a recording:
that must not show in any result."""

import concurrent.futures
import json
import os
import subprocess
import sys
import unittest

import torch

from support import LIBRARY, eager, fused, fused_backward, mlp_operands

mlp = torch.ops.hypatia.fused_mlp
MODEL = ((64,), [96, 128, 80, 10])


def recordings():
    return json.loads(torch.ops.hypatia.build_info())["recordings"]


def layers(x, weights, biases):
    """The same layer by layer, in new memory each time."""
    kept = []
    for i, (w, b) in enumerate(zip(weights, biases)):
        x = eager(x, w, b) if i + 1 < len(weights) else torch.nn.functional.linear(x, w, b)
        kept.append(x)
    return x


def again(f, times=8):
    """Calls as a loop makes them: each result is freed before the next but one."""
    result = None
    for _ in range(times):
        result = f()
    return result


class Replay(unittest.TestCase):
    DTYPES = (torch.float32, torch.bfloat16, torch.float16)

    def close(self, got, want, dtype):
        tolerance = 1e-4 if dtype == torch.float32 else 4e-2
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)

    def test_a_loop_is_recorded_and_gives_the_same_bits(self):
        for dtype in self.DTYPES:
            x, weights, biases = mlp_operands(*MODEL, dtype)
            before = recordings()
            first = mlp(x, weights, biases, False).clone()
            self.assertEqual(recordings(), before, "one call is no loop")
            last = again(lambda: mlp(x, weights, biases, False), 20)
            self.assertGreater(recordings(), before)
            self.assertTrue(torch.equal(first, last))

    def test_new_numbers_at_old_addresses(self):
        for dtype in self.DTYPES:
            x, weights, biases = mlp_operands(*MODEL, dtype)
            again(lambda: mlp(x, weights, biases, False))
            for t in (x, weights[1], biases[0]):
                t.mul_(0.5)
                got = again(lambda: mlp(x, weights, biases, False), 3)
                self.close(got, layers(x, weights, biases), dtype)

    def test_other_shapes_and_strides_at_old_addresses(self):
        memory = torch.randn(96 * 96, device="cuda")
        w, b = torch.randn(64, 48, device="cuda"), torch.randn(64, device="cuda")
        views = [
            memory[: 32 * 48].view(32, 48),
            memory[: 96 * 48].view(96, 48),
            memory.view(96, 96)[:32, :48],
            memory.view(96, 96)[:48, :32].t(),
        ]
        for _ in range(6):
            for x in views:
                self.close(fused(x, w, b), eager(x, w, b), torch.float32)
                self.close(fused(x, w, None), eager(x, w, None), torch.float32)

    def test_other_tensors_in_freed_memory(self):
        seen = set()
        for n in range(12):
            x, weights, biases = mlp_operands(*MODEL, torch.float32)
            seen.add(weights[0].data_ptr())
            got = again(lambda: mlp(x, weights, biases, False), 4)
            self.close(got, layers(x, weights, biases), torch.float32)
            del x, weights, biases, got
        self.assertLess(len(seen), 12, "no address came again: the test shows nothing")

    def test_settings_are_part_of_the_call(self):
        x, weights, biases = mlp_operands((64,), [512, 512, 64], torch.float32)
        call = lambda: again(lambda: mlp(x, weights, biases, False)).clone()  # noqa: E731
        strict = call()
        try:
            torch.backends.cuda.matmul.allow_tf32 = True
            tf32 = call()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
        self.assertFalse(torch.equal(strict, tf32))
        self.assertTrue(torch.equal(strict, call()))

    def test_training_follows_the_same_curve(self):
        def train(forward):
            torch.manual_seed(0)
            x, weights, biases = mlp_operands((128,), [64, 96, 96, 8], torch.float32)
            target = torch.randn(128, 8, device="cuda")
            parameters = [t.requires_grad_() for t in weights + biases]
            optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
            # A tensor kept of each step would move the next one's addresses.
            losses = torch.empty(40, device="cuda")
            for step in range(40):
                optimizer.zero_grad(set_to_none=True)
                loss = torch.nn.functional.mse_loss(forward(x, weights, biases), target)
                loss.backward()
                optimizer.step()
                losses[step] = loss.detach()
            return losses

        before = recordings()
        ours = train(lambda x, w, b: mlp(x, w, b, False))
        self.assertGreater(recordings(), before + 1, "forward and backward")
        want = train(layers)
        self.assertLess(want[-1], 0.8 * want[0])
        torch.testing.assert_close(ours, want, rtol=1e-3, atol=1e-4)

    def test_gradients_are_the_same_bits(self):
        x, w, b = (t[0] if isinstance(t, list) else t for t in mlp_operands((200,), [72, 40], torch.bfloat16))
        dy, y = torch.randn(200, 40, device="cuda").bfloat16(), fused(x, w, b)
        call = lambda: fused_backward(dy, x, w, y, [True] * 3)  # noqa: E731
        first = [t.clone() for t in call()]
        self.assertTrue(all(torch.equal(a, b) for a, b in zip(again(call, 10), first)))

    def test_two_streams(self):
        x, weights, biases = mlp_operands(*MODEL, torch.float32)
        want = mlp(x, weights, biases, False)
        streams = [torch.cuda.Stream() for _ in range(2)]
        torch.cuda.synchronize()
        for _ in range(20):
            results = []
            for stream in streams:
                with torch.cuda.stream(stream):
                    results.append(mlp(x, weights, biases, False))
            torch.cuda.synchronize()
            self.assertTrue(all(torch.equal(r, want) for r in results))

    def test_eight_threads(self):
        cases = [mlp_operands((16 * (1 + n),), [64, 80, 24], torch.float32) for n in range(8)]
        wants = [mlp(*case, False) for case in cases]
        torch.cuda.synchronize()

        def work(n):
            x, weights, biases = cases[n]
            stream = torch.cuda.Stream() if n % 2 else torch.cuda.default_stream()
            with torch.cuda.stream(stream):
                for _ in range(200):
                    got = mlp(x, weights, biases, False)
                stream.synchronize()
            return torch.equal(got, wants[n])

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertTrue(all(pool.map(work, range(8))))

    def test_inside_the_users_own_capture(self):
        x, weights, biases = mlp_operands(*MODEL, torch.float32)
        again(lambda: mlp(x, weights, biases, False))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = [mlp(x, weights, biases, False) for _ in range(4)]
        for _ in range(3):
            x.normal_()
            graph.replay()
            want = layers(x, weights, biases)
            for output in outputs:
                self.close(output, want, torch.float32)

    def test_while_another_thread_captures(self):
        """Recording must neither fail nor spoil the capture. (Under the mode
        "global" LibTorch itself cannot allocate in other threads.)"""
        x, weights, biases = mlp_operands(*MODEL, torch.float32)
        mlp(x, weights, biases, False)
        y = torch.randn(64, 64, device="cuda")
        torch.cuda.synchronize()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        capture = torch.cuda.graph(graph, capture_error_mode="thread_local")
        with concurrent.futures.ThreadPoolExecutor(1) as pool, capture:
            z = y + 1

            def others():
                with torch.cuda.stream(stream):
                    return [mlp(x, weights, biases, False) for _ in range(12)]

            results = pool.submit(others).result()
            z = z * 2
        graph.replay()
        torch.cuda.synchronize()
        self.assertTrue(torch.equal(z, (y + 1) * 2))
        want = layers(x, weights, biases)
        for result in results:
            self.close(result, want, torch.float32)

    def test_addresses_that_never_come_again_are_not_recorded(self):
        w, b = torch.randn(16, 16, device="cuda"), torch.randn(16, device="cuda")
        before, held = recordings(), []
        for _ in range(600):
            x = torch.randn(8, 16, device="cuda")
            held += [x, fused(x, w, b)]
        self.assertEqual(recordings(), before)

    def test_it_can_be_turned_off(self):
        code = (
            "import json, torch; torch.ops.load_library(%r)\n"
            "x, w = torch.randn(8, 16, device='cuda'), torch.randn(4, 16, device='cuda')\n"
            "for _ in range(9): y = torch.ops.hypatia.fused_linear_relu(x, w, None)\n"
            "print(json.loads(torch.ops.hypatia.build_info())['recordings'])" % str(LIBRARY)
        )
        for value, want in (("0", "0"), ("1", "2")):
            env = {**os.environ, "HYPATIA_REPLAY": value}
            run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertEqual(run.stdout.strip(), want)


if __name__ == "__main__":
    unittest.main()
