"""op x dtype x shape x stride against fp64, forward and gradients."""

import itertools
import unittest

import torch

from support import bound_options, eager, fused, fused_backward, operands, oracle

SHAPES = [  # leading, K, N
    ((), 7, 5),
    ((1,), 1, 1),
    ((3,), 784, 10),
    ((64,), 784, 256),
    ((65,), 129, 1000),
    ((2, 3, 5), 33, 17),
    ((256,), 256, 256),
    ((512,), 1000, 2048),
    ((1024,), 2048, 2048),
    ((5000,), 16, 8),
    ((33,), 4096, 3),
]


def check_all(x, w, b, dy=None, what="", **how):
    """Forward and the gradients of one call against the oracle."""
    y = fused(x, w, b)
    oracle.assert_forward(y, x, w, b, what, **how)
    assert y.is_contiguous()
    dy = torch.randn(y.shape, device=y.device).to(y.dtype) if dy is None else dy
    grads = fused_backward(dy, x, w, y, [True, True, b is not None])
    if b is None:
        assert grads[2] is None
    oracle.assert_gradients(grads, dy, x, w, y, what, **how)


class Shapes(unittest.TestCase):
    def test_every_shape_and_dtype(self):
        for dtype, (leading, k, n), bias in itertools.product(
            oracle.DTYPES, SHAPES, (True, False)
        ):
            what = f"{dtype} {leading} K={k} N={n} bias={bias}"
            with self.subTest(what):
                x, w, b = operands(leading, k, n, dtype, bias)
                check_all(x, w, b, what=what, **bound_options(dtype))

    def test_zero_sizes(self):
        for dtype in oracle.DTYPES:
            for leading, k, n in [((0,), 3, 4), ((2, 0), 3, 4), ((5,), 0, 4), ((5,), 3, 0)]:
                with self.subTest(f"{dtype} {leading} {k} {n}"):
                    x, w, b = operands(leading, k, n, dtype)
                    check_all(x, w, b)

    def test_long_sums_of_few_tiles_are_no_trap(self):
        # cuBLASLt's first guess for these does not split k and takes 270 times as long
        # as its best: slower than this test allows, whatever else the GPU does.
        for dtype, k in itertools.product((torch.bfloat16, torch.float16), (63, 256)):
            x, w, _ = operands((65536,), k, 256, dtype)
            dy = torch.randn(65536, 256, device="cuda").to(dtype)
            y = torch.ones_like(dy)

            def ours():
                return fused_backward(dy, x, w, y, [False, True, False])[1]

            def product():
                return dy.t() @ x

            bound = oracle.sum_bound(
                65536, dy.double().abs().t() @ x.double().abs(), dy.double().t() @ x.double(),
                dtype, tensor_cores=True,
            )
            self.assertTrue(((ours() - dy.double().t() @ x.double()).abs() <= bound).all())
            times = {}
            for call in (ours, product):
                call()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(10):
                    call()
                end.record()
                end.synchronize()
                times[call] = start.elapsed_time(end)
            self.assertLess(times[ours], 10 * times[product] + 1, f"{dtype} {k}")

    def test_tf32_only_when_allowed(self):
        x, w, b = operands((512,), 2048, 512, torch.float32)
        strict = fused(x, w, b)
        oracle.assert_forward(strict, x, w, b)
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            check_all(x, w, b, tf32=True)
            allowed = fused(x, w, b)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
        self.assertFalse(torch.equal(strict, allowed), "TF32 was allowed and not used")
        self.assertTrue(torch.equal(strict, fused(x, w, b)))

    def test_more_than_32_bit_offsets(self):
        # 2^31 elements of output, so byte offsets beyond 2^32 in every kernel.
        rows = (1 << 24) + 64
        x = torch.randn(rows, 16, device="cuda").bfloat16()
        w = torch.randn(128, 16, device="cuda").bfloat16()
        y = fused(x, w)
        dy = torch.ones(1, 1, device="cuda", dtype=y.dtype).expand_as(y)
        dx, dw, db = fused_backward(dy, x, w, y, [True, True, True])
        tail = slice(rows - 100, rows)
        oracle.assert_forward(y[tail], x[tail], w, tensor_cores=True)
        want = oracle.relu_mask(y[tail]) @ w.double()
        self.assertLess((dx[tail].double() - want).norm() / want.norm(), 2.0**-8)
        # In parts: a sum of all would copy them as 64-bit integers, 16 GiB.
        positive = sum((part > 0).sum(0) for part in y.split(1 << 22)).double()
        self.assertLess(((db.double() - positive).abs() / positive).max(), 2.0**-8)
        del dx, dw


class Strides(unittest.TestCase):
    def layouts(self, rows, cols, dtype):
        """Matrices [rows, cols] with every kind of stride."""
        base = torch.randn(2 * rows + 1, 2 * cols + 3, device="cuda").to(dtype)
        yield "dense", base[:rows, :cols].contiguous()
        yield "transposed", base[:cols, :rows].t() if rows <= base.shape[1] else base[:rows, :cols]
        yield "padded", base[:rows, :cols]
        yield "misaligned", base.flatten()[1 : 1 + rows * cols].view(rows, cols)
        yield "stepped", base[: 2 * rows : 2, : 2 * cols : 2]
        yield "one row expanded", base[:1, :cols].expand(rows, cols)
        yield "one column expanded", base[:rows, :1].expand(rows, cols)

    def test_every_pair_of_layouts(self):
        m, k, n = 40, 48, 32
        for dtype in oracle.DTYPES:
            for (xs, x), (ws, w) in itertools.product(
                self.layouts(m, k, dtype), self.layouts(n, k, dtype)
            ):
                what = f"{dtype} input {xs}, weight {ws}"
                with self.subTest(what):
                    b = torch.randn(2 * n, device="cuda").to(dtype)[::2]
                    check_all(x, w, b, what=what, **bound_options(dtype))

    def test_gradient_strides(self):
        m, k, n = 200, 24, 40
        for dtype in oracle.DTYPES:
            x, w, b = operands((m,), k, n, dtype)
            one = torch.ones((), device="cuda", dtype=dtype)
            extra = [("no stride at all", one.expand(m, n))]
            for name, dy in itertools.chain(self.layouts(m, n, dtype), extra):
                with self.subTest(f"{dtype} grad_output {name}"):
                    check_all(x, w, b, dy, what=name, **bound_options(dtype))

    def test_sum_backward(self):
        for dtype in oracle.DTYPES:
            x, w, b = operands((17, 3), 24, 40, dtype, requires_grad=True)
            y = fused(x, w, b)
            y.sum().backward()
            grads = [t.grad for t in (x, w, b)]
            arguments = [t.detach() for t in (torch.ones_like(y), x, w, y)]
            oracle.assert_gradients(grads, *arguments, **bound_options(dtype))


class Values(unittest.TestCase):
    SPECIAL = (float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1e-40, 3e38)

    def test_special_values_as_eager(self):
        for dtype in oracle.DTYPES:
            for value in self.SPECIAL:
                with self.subTest(f"{dtype} {value}"):
                    x, w, b = operands((64,), 64, 64, dtype)
                    x[3, 5] = value
                    got, want = fused(x, w, b), eager(x, w, b)
                    self.assertTrue(torch.equal(got.isnan(), want.isnan()))
                    self.assertTrue(torch.equal(got.isinf(), want.isinf()))

    def test_nan_output_lets_the_gradient_pass(self):
        for dtype in oracle.DTYPES:
            for n in (64, 63):  # the vectorized and the plain kernel
                x, w, b = operands((64,), 64, n, dtype)
                y = fused(x, w, b)
                y[2, 3] = float("nan")
                y[4, 5] = -0.0
                dy = torch.randn_like(y)
                _, _, db = fused_backward(dy, x, w, y, [False, False, True])
                oracle.assert_gradients((None, None, db), dy, x, w, y)

    def test_every_mask(self):
        x, w, b = operands((130,), 72, 40, torch.bfloat16)
        y = fused(x, w, b)
        dy = torch.randn_like(y)
        whole = fused_backward(dy, x, w, y, [True] * 3)
        for mask in itertools.product((True, False), repeat=3):
            for wanted, got, want in zip(mask, fused_backward(dy, x, w, y, list(mask)), whole):
                if wanted:
                    self.assertTrue(torch.equal(got, want), mask)
                else:
                    self.assertIsNone(got)

    def test_same_bits_every_time(self):
        for dtype in oracle.DTYPES:
            x, w, b = operands((3000,), 130, 72, dtype)
            y = fused(x, w, b)
            dy = torch.randn_like(y)
            first = (y, *fused_backward(dy, x, w, y, [True] * 3))
            for _ in range(5):
                again = (fused(x, w, b), *fused_backward(dy, x, w, y, [True] * 3))
                for a, c in zip(first, again):
                    self.assertTrue(torch.equal(a, c), dtype)


if __name__ == "__main__":
    unittest.main()
