"""fused_mlp on CUDA: numbers against fp64, gradients, streams, capture, memory,
fallback."""

import concurrent.futures
import itertools
import os
import subprocess
import sys
import unittest

import torch

from support import LIBRARY, bound_options, mlp_operands, oracle, split
from test_framework import _stub_expecttest

mlp = torch.ops.hypatia.fused_mlp
mlp_forward = torch.ops.hypatia.fused_mlp_forward
mlp_backward = torch.ops.hypatia.fused_mlp_backward

CHAINS = [  # leading, widths
    ((), (7, 5)),
    ((1,), (1, 1, 1)),
    ((3,), (784, 256, 10)),
    ((65,), (129, 1000, 33, 17)),
    ((2, 3, 5), (33, 17, 20)),
    ((256,), (784, 512, 512, 512, 128)),
    ((1024,), (784, 2048, 2048, 1000)),
    ((64,), (256,) * 9),
    ((5000,), (16, 8, 24, 3)),
]


def eager(input, weights, biases, relu_last=False):
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        input = torch.nn.functional.linear(input, weight, bias)
        if relu_last or i + 1 < len(weights):
            input = input.relu()
    return input


def step(input, weights, biases, grad_output, relu_last=False):
    """Everything that training computes, through the operators."""
    output, activations = mlp_forward(input, weights, biases, relu_last)
    last = output if relu_last else None
    mask = [True] * (1 + len(weights)) + [b is not None for b in biases]
    grads = mlp_backward(grad_output, input, weights, activations, last, mask)
    return [output, activations, *grads]


def check_all(input, weights, biases, relu_last=False, grad_output=None, what="", **how):
    """Forward, activations and gradients of one chain against the oracle."""
    oracle.assert_mlp(mlp(input, weights, biases, relu_last), input, weights, biases, relu_last, what, **how)
    if grad_output is None:
        grad_output = torch.randn(*input.shape[:-1], weights[-1].shape[0], device=input.device)
        grad_output = grad_output.to(input.dtype)
    output, activations, *grads = step(input, weights, biases, grad_output, relu_last)
    oracle.assert_mlp(output, input, weights, biases, relu_last, what, **how)
    assert output.is_contiguous() and activations.is_contiguous()
    hidden = split(activations, input, weights)
    layers = oracle.mlp_layers(input, weights, biases, relu_last, **how)
    for part, (want, bound) in zip(hidden, layers):
        oracle.assert_close(part, want, bound, what)
    got = iter(grads)
    asked = [True] * (1 + len(weights)) + [b is not None for b in biases]
    oracle.assert_mlp_gradients(
        [next(got) if a else None for a in asked],
        grad_output, input, weights, hidden, output if relu_last else None, what=what, **how,
    )


class Numbers(unittest.TestCase):
    def test_every_chain_and_dtype(self):
        for dtype, (leading, widths), bias, relu_last in itertools.product(
            oracle.DTYPES, CHAINS, (True, False, "some"), (False, True)
        ):
            what = f"{dtype} {leading} {widths} bias={bias} relu_last={relu_last}"
            with self.subTest(what):
                arguments = mlp_operands(leading, widths, dtype, bias)
                check_all(*arguments, relu_last, what=what, **bound_options(dtype))

    def test_zero_sizes(self):
        for dtype in oracle.DTYPES:
            for leading, widths in [((0,), (3, 4, 5)), ((5,), (0, 4, 5)), ((5,), (3, 0, 5)), ((5,), (3, 4, 0))]:
                with self.subTest(f"{dtype} {leading} {widths}"):
                    check_all(*mlp_operands(leading, widths, dtype))

    def test_tf32_only_when_allowed(self):
        arguments = mlp_operands((512,), (1024, 512, 512), torch.float32)
        strict = mlp(*arguments)
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            check_all(*arguments, tf32=True)
            allowed = mlp(*arguments)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
        self.assertFalse(torch.equal(strict, allowed), "TF32 was allowed and not used")
        self.assertTrue(torch.equal(strict, mlp(*arguments)))

    def test_strides(self):
        for dtype in oracle.DTYPES:
            input, weights, biases = mlp_operands((40,), (48, 32, 24), dtype)
            wide = lambda t: t.repeat_interleave(2, 0)[::2]
            changes = {
                "transposed": lambda t: t.t().contiguous().t(),
                "rows apart": wide,
                "columns apart": lambda t: t.repeat_interleave(2, 1)[:, ::2],
                "misaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
                "expanded": lambda t: t[:1].expand_as(t),
            }
            for name, change in changes.items():
                with self.subTest(f"{dtype} {name}"):
                    how = bound_options(dtype)
                    check_all(change(input), [*map(change, weights)], [*map(wide, biases)], what=name, **how)
                    for relu_last in (False, True):
                        dy = change(torch.randn(40, 24, device="cuda").to(dtype))
                        check_all(input, weights, biases, relu_last, dy, what=name, **how)

    def test_lazy_negation(self):
        input, weights, biases = mlp_operands((9,), (7, 6, 5), torch.float32)
        negative = lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag
        check_all(negative(input), [*map(negative, weights)], [*map(negative, biases)])

    def test_every_mask(self):
        arguments = mlp_operands((130,), (72, 40, 24), torch.bfloat16)
        for relu_last in (False, True):
            output, activations = mlp_forward(*arguments, relu_last)
            last = output if relu_last else None
            given = (torch.randn_like(output), *arguments[:2], activations, last)
            whole = mlp_backward(*given, [True] * 5)
            for mask in itertools.product((True, False), repeat=5):
                got = mlp_backward(*given, mask)
                want = [g for g, m in zip(whole, mask) if m]
                self.assertEqual(len(got), len(want))
                self.assertTrue(all(map(torch.equal, got, want)), mask)

    def test_same_bits_every_time(self):
        # The first call times algorithms; equal layers must share its choice.
        for dtype in oracle.DTYPES:
            arguments = mlp_operands((311,), (136,) * 5, dtype)
            dy = torch.randn(311, 136, device="cuda").to(dtype)
            first = step(*arguments, dy)
            for _ in range(5):
                self.assertTrue(all(map(torch.equal, step(*arguments, dy), first)), dtype)
            # Without gradients one launch may do it all, with other bits.
            alone = mlp(*arguments)
            self.assertTrue(all(torch.equal(mlp(*arguments), alone) for _ in range(5)))

    def test_special_values_as_eager(self):
        for dtype, value in itertools.product(oracle.DTYPES, (float("nan"), float("inf"), -0.0, 1e-40)):
            input, weights, biases = mlp_operands((64,), (64, 64, 64), dtype)
            input[3, 5] = value
            got, want = mlp(input, weights, biases), eager(input, weights, biases)
            self.assertTrue(torch.equal(got.isnan(), want.isnan()))
            self.assertTrue(torch.equal(got.isinf(), want.isinf()))


class Framework(unittest.TestCase):
    def leaves(self, dtype, leading=(4,), widths=(6, 5, 3)):
        input, weights, biases = mlp_operands(leading, widths, dtype)
        return [t.requires_grad_() for t in (input, *weights, *biases)]

    def test_gradcheck(self):
        x, w, v, b, c = self.leaves(torch.float64)
        for relu_last in (False, True):
            f = lambda x, w, v, b, c: mlp(x, [w, v], [b, c], relu_last)
            how = {"check_forward_ad": True, "check_batched_grad": True}
            self.assertTrue(torch.autograd.gradcheck(f, (x, w, v, b, c), **how))
            self.assertTrue(torch.autograd.gradgradcheck(f, (x, w, v, b, c)))

    def test_autograd_is_the_operators(self):
        for dtype, relu_last in itertools.product(oracle.DTYPES, (False, True)):
            x, w, v, b, c = self.leaves(dtype, (130,), (72, 40, 24))
            y = mlp(x, [w, v], [b, c], relu_last)
            dy = torch.randn_like(y)
            got = torch.autograd.grad(y, (x, w, v, b, c), dy)
            with torch.no_grad():
                want = step(x, [w, v], [b, c], dy, relu_last)[2:]
            self.assertTrue(all(map(torch.equal, got, want)))
            x, w, v, b, c = self.leaves(dtype, (130,), (72, 40, 24))
            mlp(x, [w, v], [b, c], relu_last).sum().backward()  # strides of zero
            self.assertTrue(all(t.grad is not None for t in (x, w, v, b, c)))

    def test_opcheck(self):
        _stub_expecttest()
        for dtype, relu_last in itertools.product((torch.float32, torch.bfloat16), (False, True)):
            x, w, v, b, c = self.leaves(dtype, (5, 3), (6, 7, 4))
            arguments = (x, [w, v], [b, c], relu_last)
            torch.library.opcheck(mlp.default, arguments)
            torch.library.opcheck(mlp_forward.default, arguments)
            with torch.no_grad():
                y, activations = mlp_forward(*arguments)
            dy = torch.randn_like(y).requires_grad_()
            last = y if relu_last else None
            given = (dy, x.detach(), [w.detach(), v.detach()], activations, last)
            torch.library.opcheck(mlp_backward.default, (*given, [True] * 5))

    def test_autocast(self):
        for dtype in (torch.float16, torch.bfloat16):
            x, w, v, b, c = self.leaves(torch.float32, (32,), (64, 48, 16))
            with torch.autocast("cuda", dtype=dtype):
                y = mlp(x, [w, v], [b, c])
            self.assertEqual(y.dtype, dtype)
            x_, w_, v_, b_, c_ = (t.detach().to(dtype) for t in (x, w, v, b, c))
            oracle.assert_mlp(y.detach(), x_, [w_, v_], [b_, c_], tensor_cores=True)
            y.float().sum().backward()
            self.assertEqual({t.grad.dtype for t in (x, w, v, b, c)}, {torch.float32})

    def test_deterministic_mode(self):
        arguments = mlp_operands((300,), (784, 256, 256), torch.float32)
        dy = torch.randn(300, 256, device="cuda")
        torch.use_deterministic_algorithms(True)
        try:
            first = step(*arguments, dy)
            self.assertTrue(all(map(torch.equal, step(*arguments, dy), first)))
        finally:
            torch.use_deterministic_algorithms(False)

    def test_compile(self):
        for mode in ("default", "reduce-overhead"):
            torch._dynamo.reset()
            x, w, v, b, c = self.leaves(torch.float32, (32,), (64, 48, 16))
            compiled = torch.compile(lambda x: mlp(x, [w, v], [b, c]).sin(), fullgraph=True, mode=mode)
            for _ in range(4):
                x = torch.randn(32, 64, device="cuda", requires_grad=True)
                y = compiled(x)
                self.assertTrue(torch.allclose(y, eager(x, [w, v], [b, c]).sin(), atol=1e-4))
                (got,) = torch.autograd.grad(y.sum(), x)
                (want,) = torch.autograd.grad(eager(x, [w, v], [b, c]).sin().sum(), x)
                self.assertTrue(torch.allclose(got, want, atol=1e-4))

    def test_vmap_and_func(self):
        x, w, v, b, c = (t.detach() for t in self.leaves(torch.float64, (7, 4)))
        f = lambda function: lambda x, w: function(x, [w, v], [b, c])
        got, want = (torch.func.vmap(f(g), (0, None))(x, w) for g in (mlp, eager))
        self.assertTrue(torch.allclose(got, want))
        loss = lambda g: lambda x, w: f(g)(x, w).square().sum()
        got, want = (torch.func.vmap(torch.func.grad(loss(g), 1), (0, None))(x, w) for g in (mlp, eager))
        self.assertTrue(torch.allclose(got, want))


class Streams(unittest.TestCase):
    def cases(self):
        for dtype, (leading, widths) in itertools.product(
            (torch.float32, torch.bfloat16),
            [((64,), (784, 256, 256, 10)), ((3000,), (96, 40, 40, 24))],
        ):
            arguments = mlp_operands(leading, widths, dtype)
            yield *arguments, torch.randn(*leading, widths[-1], device="cuda").to(dtype)

    def assert_same(self, got, want):
        self.assertTrue(all(map(torch.equal, got, want)))

    def test_side_stream_sees_work_before_it(self):
        for x, *rest in self.cases():
            want = [mlp(x, *rest[:2]), *step(x, *rest)]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                late = torch.zeros_like(x)
                torch.cuda._sleep(20_000_000)  # about 10 ms
                late.copy_(x)
                got = [mlp(late, *rest[:2]), *step(late, *rest)]
            torch.cuda.current_stream().wait_stream(stream)
            self.assert_same(got, want)

    def test_capture_then_replay_with_new_inputs(self):
        for x, *rest in self.cases():
            x = x.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                mlp(x, *rest[:2]), step(x, *rest)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = [mlp(x, *rest[:2]), *step(x, *rest)]
            for _ in range(3):
                fresh = torch.randn_like(x)
                x.copy_(fresh)
                graph.replay()
                self.assert_same(outputs, [mlp(fresh, *rest[:2]), *step(fresh, *rest)])

    def test_capture_of_a_problem_never_seen(self):
        input, weights, biases = mlp_operands((77,), (88, 104, 56, 104), torch.float32)
        dy = torch.randn(77, 104, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            alone = mlp(input, weights, biases)
            output, activations, *grads = step(input, weights, biases, dy)
        graph.replay()
        for y in (alone, output):
            oracle.assert_mlp(y, input, weights, biases)
        hidden = split(activations, input, weights)
        oracle.assert_mlp_gradients(grads, dy, input, weights, hidden)

    def test_threads_with_a_stream_each(self):
        cases = list(self.cases())
        wants = [step(*case) for case in cases]
        torch.cuda.synchronize()

        def work(i):
            with torch.cuda.stream(torch.cuda.Stream()):
                good = all(
                    all(map(torch.equal, step(*cases[i]), wants[i])) for _ in range(50)
                )
                torch.cuda.current_stream().synchronize()
            return good

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertTrue(all(pool.map(work, [i % len(cases) for i in range(16)])))

    def test_threads_on_one_stream_with_new_problems(self):
        def work(i):
            check_all(*mlp_operands((100 + i,), (64 + i, 48, 40 + i, 8), torch.float32))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(32)))

    def test_one_allocation_for_all_hidden_results(self):
        # Every row of 128 fp32 numbers is aligned: nothing to zero.
        # Too many for one launch, which keeps no hidden results.
        input, weights, biases = mlp_operands((640,), (128, 256, 384, 128, 64), torch.float32)
        dy = torch.randn(640, 64, device="cuda")
        count = lambda: torch.cuda.memory_stats()["allocation.all.allocated"]
        mlp(input, weights, biases), step(input, weights, biases, dy, True)
        before = count()
        mlp(input, weights, biases)
        # Hidden results in turn, output; on the tensor cores, which strict fp32
        # of this size uses where it is told to, no hidden results.
        hidden = 0 if os.environ.get("HYPATIA_FP32") == "tensor" else 1
        self.assertEqual(count() - before, hidden + 1)
        before = count()
        output, activations = mlp_forward(input, weights, biases, True)
        self.assertEqual(count() - before, 2)
        before = count()
        mlp_backward(dy, input, weights, activations, output, [True] * 9)
        self.assertEqual(count() - before, 1 + 9)  # scratch, gradients

    def test_nothing_synchronises(self):
        from torch.profiler import ProfilerActivity, profile

        case = next(self.cases())
        step(*case)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            for _ in range(5):
                step(*case)
        names = [event.name for event in recorded.events()]
        self.assertTrue(any("relu_backward" in name for name in names), "no kernel of ours ran")
        syncs = [n for n in names if "Synchronize" in n and "Device" not in n]
        mallocs = [n for n in names if "Malloc" in n or "MemAlloc" in n]
        self.assertEqual((syncs, mallocs), ([], []))


class Fallback(unittest.TestCase):
    def test_without_own_cuda_it_warns_once_and_answers(self):
        code = (
            "import sys, torch; torch.ops.load_library(sys.argv[1])\n"
            "x = torch.randn(8, 16, device='cuda', requires_grad=True)\n"
            "w, v = torch.randn(6, 16, device='cuda'), torch.randn(4, 6, device='cuda')\n"
            "for _ in range(3):\n"
            "    y = torch.ops.hypatia.fused_mlp(x, [w, v], [None, None]); y.sum().backward()\n"
            "    with torch.no_grad(): z = torch.ops.hypatia.fused_mlp(x, [w, v], [None, None])\n"
            "want = torch.nn.functional.linear(torch.relu(torch.nn.functional.linear(x, w)), v)\n"
            "assert torch.equal(y, want) and torch.equal(z, want)\n"
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

    def test_second_device(self):
        if torch.cuda.device_count() < 2:
            self.skipTest("one device")
        for dtype in oracle.DTYPES:
            arguments = mlp_operands((300,), (96, 40, 24), dtype, device="cuda:1")
            check_all(*arguments, **bound_options(dtype))
        self.assertEqual(torch.cuda.current_device(), 0)


if __name__ == "__main__":
    unittest.main()
