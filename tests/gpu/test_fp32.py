"""Strict fp32 on the tensor cores (kernels/fp32_*.cu): its error beside eager's,
special values, gradients, scratch memory, capture, streams."""

import concurrent.futures
import itertools
import os
import pathlib
import subprocess
import sys
import unittest

import torch
import torch.nn.functional as F

from support import LIBRARY, mlp_operands, oracle, split  # first: it adds the path of the next
import fp32_data
from test_chains import eager as eager_chain

mlp = torch.ops.hypatia.fused_mlp
mlp_forward = torch.ops.hypatia.fused_mlp_forward
mlp_backward = torch.ops.hypatia.fused_mlp_backward
LARGE = [(1024, 2048, 2048), (512, 4096, 4096), (1024, 2048, 784), (4096, 4096, 4096)]
WIDTHS = (784, 2048, 2048, 1000)


def gradients(x, weights, biases, dy):
    """All gradients of ours."""
    _, activations = mlp_forward(x, weights, biases, False)
    mask = [True] * (1 + 2 * len(weights))
    return mlp_backward(dy, x, weights, activations, None, mask)


def autograd(forward, x, weights, biases, dy):
    leaves = [t.detach().requires_grad_() for t in (x, *weights, *biases)]
    count = len(weights)
    y = forward(leaves[0], leaves[1 : 1 + count], leaves[1 + count :])
    return torch.autograd.grad(y, leaves, dy)


def eager_hidden(x, weights, biases):
    """What eager's hidden layers return."""
    hidden = []
    for w, b in list(zip(weights, biases))[:-1]:
        x = F.relu(F.linear(x, w, b))
        hidden.append(x)
    return hidden


def exact_gradients(dy, x, weights, hidden):
    """Of input, weights and biases, in fp64, with these activations and their masks."""
    values = [x.double(), *(h.double() for h in hidden)]
    grad, of_weights, of_biases = dy.double(), [], []
    for i in reversed(range(len(weights))):
        if i + 1 < len(weights):
            grad = grad * (hidden[i] > 0)
        of_weights.insert(0, grad.t() @ values[i])
        of_biases.insert(0, grad.sum(0))
        grad = grad @ weights[i].double()
    return [grad, *of_weights, *of_biases]


def relative(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


@unittest.skipIf(torch.cuda.get_device_capability() != (9, 0), "sm_90 only")
class Fp32(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def test_is_used_where_it_should_be(self):
        program = (
            "import torch, support\n"
            "from support import mlp_operands\n"
            "for rows, widths in [(1024, (2048, 2048)), (64, (784, 256, 256, 12)), (512, (37, 4096))]:\n"
            "    torch.ops.hypatia.fused_mlp(*mlp_operands((rows,), widths, torch.float32))\n"
        )
        for policy, wanted in [("", [1, 0, 0]), ("tensor", [1, 1, 1]), ("ieee", [0, 0, 0])]:
            env = {**os.environ, "HYPATIA_LOG": "plan", "HYPATIA_FP32": policy}
            env |= {"HYPATIA_LIBRARY": str(LIBRARY), "HYPATIA_ONE_LAUNCH": "0"}
            folder = pathlib.Path(__file__).parent
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=folder, env=env, text=True, capture_output=True
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            said = [line for line in done.stderr.splitlines() if "fp32 on the tensor cores: " in line]
            self.assertEqual(len(said), sum(wanted), f"{policy!r}: {done.stderr}")

    def test_no_more_error_than_eager(self):
        for (m, n, k), (name, make) in itertools.product(LARGE, fp32_data.CLASSES.items()):
            with self.subTest(f"{m} x {n} x {k}, {name}"):
                ours, theirs = fp32_data.compare(fp32_data.linear, F.linear, *make(m, n, k))
                self.assertLessEqual(ours[0], theirs[0])
                self.assertLessEqual(ours[1], theirs[1])

    def test_chains_against_fp64(self):
        for rows, bias in [(1024, True), (1000, "some"), (513, False)]:
            x, weights, biases = mlp_operands((rows,), WIDTHS, torch.float32, bias)
            what = f"{rows} rows, bias {bias}"
            oracle.assert_mlp(mlp(x, weights, biases), x, weights, biases, what=what)
            y, activations = mlp_forward(x, weights, biases, False)
            self.assertTrue(torch.equal(y, mlp(x, weights, biases)), what)
            h = x
            for part, w, b in zip(split(activations, x, weights), weights, biases):
                oracle.assert_forward(part, h, w, b, what)
                h = part

    def test_gradients_have_no_more_error_than_eager(self):
        # Each against fp64 on its own activations: one mask that a rounding turned
        # the other way is as large an error as all roundings together.
        for rows, widths in [(1024, WIDTHS), (512, (1024, 4096, 4096, 1000))]:
            x, weights, biases = mlp_operands((rows,), widths, torch.float32)
            dy = torch.randn(rows, widths[-1], device="cuda")
            _, activations = mlp_forward(x, weights, biases, False)
            mine = list(split(activations, x, weights))
            ours = mlp_backward(dy, x, weights, activations, None, [True] * (1 + 2 * len(weights)))
            theirs = autograd(eager_chain, x, weights, biases, dy)
            want = exact_gradients(dy, x, weights, mine)
            eager_want = exact_gradients(dy, x, weights, eager_hidden(x, weights, biases))
            for i, (got, exact, reference, its) in enumerate(zip(ours, want, theirs, eager_want)):
                # The last layer's bias: sums of the same columns, in another order.
                slack = 1.5 if i + 1 == len(ours) else 1.0
                self.assertLessEqual(relative(got, exact), slack * relative(reference, its), i)

    def test_rows_that_are_copied_first(self):
        # Rows that do not start at multiples of 16 bytes: odd widths, then an input and
        # a weight from the middle of others.
        widths = (479, 1024, 1023, 512, 1)
        x, weights, biases = mlp_operands((2048,), widths, torch.float32)
        dy = torch.randn(2048, 1, device="cuda")
        wide = torch.randn(2048, 481, device="cuda")[:, 1:480]
        inner = [torch.cat([w.new_zeros(1), w.flatten()])[1:].view_as(w) for w in weights]
        self.assertTrue(inner[0].data_ptr() % 16 and wide.stride() == (481, 1))
        for x, weights in [(x, weights), (wide, inner)]:
            y, activations = mlp_forward(x, weights, biases, False)
            self.assertTrue(torch.equal(mlp(x, weights, biases), y))
            oracle.assert_mlp(y[-300:], x[-300:], weights, biases)
            hidden = list(split(activations, x, weights))
            got = mlp_backward(dy, x, weights, activations, None, [True] * 9)
            want = exact_gradients(dy, x, weights, hidden)
            theirs = autograd(eager_chain, x, weights, biases, dy)
            eager_want = exact_gradients(dy, x, weights, eager_hidden(x, weights, biases))
            for i, (g, exact, its, its_exact) in enumerate(zip(got, want, theirs, eager_want)):
                if i + 1 == len(got):  # One number: the sum of dy.
                    bound = oracle.sum_bound(2048, dy.double().abs().sum(0), exact, g.dtype)
                    self.assertTrue(((g - exact).abs() <= bound).all())
                    continue
                # The bias in front of it: sums of columns, in another order, that one
                # product has rounded.
                slack = 2.0 if i + 2 == len(got) else 1.0
                self.assertLessEqual(relative(g, exact), slack * relative(its, its_exact), i)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = mlp(x, weights, biases)
        x.normal_()
        graph.replay()
        self.assertTrue(torch.equal(y, mlp(x, weights, biases)))

    def test_partial_masks(self):
        x, weights, biases = mlp_operands((512,), (2048, 2048, 2048), torch.float32)
        _, activations = mlp_forward(x, weights, biases, False)
        dy = torch.randn(512, 2048, device="cuda")
        whole = mlp_backward(dy, x, weights, activations, None, [True] * 5)
        for bits in itertools.product((False, True), repeat=5):
            some = mlp_backward(dy, x, weights, activations, None, list(bits))
            want = [g for g, bit in zip(whole, bits) if bit]
            self.assertEqual(len(some), len(want))
            for got, g in zip(some, want):
                # Fewer products may be SGEMM's, sums of columns in another order.
                self.assertLess(relative(got, g), 3e-6, bits)

    def test_special_values_are_where_eager_has_them(self):
        inf, nan, large = float("inf"), float("nan"), 3.4e38
        x, weights, biases = mlp_operands((512,), (2048, 2048, 512), torch.float32)
        w = weights[0]
        x[3, 5], x[7, 9], x[20, 3], x[40, 1] = inf, nan, large, -inf
        w[11, 2], w[5, 3], w[1], w[17, 8] = -inf, 3e30, w[1].round(), 0.0
        biases[0][9] = inf
        for layers in (1, 2):
            arguments = x, weights[:layers], biases[:layers]
            got, want = mlp(*arguments), eager_chain(*arguments)
            self.assertTrue(torch.equal(got.isnan(), want.isnan()), layers)
            infinite = want.isinf()
            self.assertTrue(torch.equal(got.isinf(), infinite))
            self.assertTrue(torch.equal(got[infinite], want[infinite]))
            self.assertTrue(want.isnan().any() and infinite.any())
        # Small ones: nothing is flushed above bf16's smallest parts.
        tiny = torch.randn(512, 2048, device="cuda") * 1e-30
        got, want = fp32_data.linear(tiny, w[100:]), tiny.double() @ w[100:].double().t()
        self.assertLess(relative(got, want), 1e-6)

    def test_the_same_bits_every_time_and_everywhere(self):
        arguments = mlp_operands((1024,), WIDTHS, torch.float32)
        dy = torch.randn(1024, WIDTHS[-1], device="cuda")
        want = mlp(*arguments), *gradients(*arguments, dy)

        def same(_):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    got = mlp(*arguments), *gradients(*arguments, dy)
            stream.synchronize()
            return all(torch.equal(a, b) for a, b in zip(got, want))

        torch.cuda.synchronize()
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            self.assertTrue(all(threads.map(same, range(8))))

    def test_threads_share_a_stream(self):
        # What passes through scratch memory is one call's at a time.
        problems = [mlp_operands((512,), (2048, 2048, n), torch.float32) for n in (512, 1024, 2048)]
        wants = [mlp(*p) for p in problems]

        def same(i):
            return all(torch.equal(mlp(*problems[i % 3]), wants[i % 3]) for _ in range(20))

        torch.cuda.synchronize()
        with concurrent.futures.ThreadPoolExecutor(6) as threads:
            self.assertTrue(all(threads.map(same, range(6))))

    def test_capture(self):
        x, weights, biases = mlp_operands((1024,), WIDTHS, torch.float32)
        dy = torch.randn(1024, WIDTHS[-1], device="cuda")
        mlp(x, weights, biases)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = mlp(x, weights, biases)
            grads = gradients(x, weights, biases, dy)
        for _ in range(2):
            x.normal_()
            weights[1].normal_(std=0.03)
            graph.replay()
            want = mlp(x, weights, biases), *gradients(x, weights, biases, dy)
            self.assertTrue(all(torch.equal(a, b) for a, b in zip((y, *grads), want)))

    def test_compiled_with_cuda_graphs(self):
        # Alone in its process: the first call brings the stream's scratch memory
        # while PyTorch warms up its graph, whose memory may keep nothing.
        program = (
            "import torch, support\n"
            "from support import mlp_operands\n"
            "x, weights, biases = mlp_operands((512,), (1024, 2048, 64), torch.float32)\n"
            "mlp = torch.ops.hypatia.fused_mlp\n"
            "compiled = torch.compile(lambda x: mlp(x, weights, biases), mode='reduce-overhead')\n"
            "for _ in range(4):\n"
            "    assert torch.equal(compiled(x).clone(), mlp(x, weights, biases))\n"
        )
        folder = pathlib.Path(__file__).parent
        env = {**os.environ, "HYPATIA_LIBRARY": str(LIBRARY)}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=env, text=True, capture_output=True
        )
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])

    def test_large_scratch_memory_is_given_back(self):
        x, weights, biases = mlp_operands((4096,), (4096, 4096), torch.float32)
        mlp(x, weights, biases)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        y = mlp(x, weights, biases)
        torch.cuda.synchronize()
        self.assertEqual(torch.cuda.memory_allocated() - before, y.numel() * 4)
        oracle.assert_mlp(y[:64], x[:64], weights, biases)

    def test_many_rows(self):
        x, weights, biases = mlp_operands((70_000,), (256, 256, 256, 4), torch.float32)
        y = mlp(x, weights, biases)
        for rows in (slice(0, 200), slice(69_900, 70_000)):
            oracle.assert_mlp(y[rows], x[rows], weights, biases)
