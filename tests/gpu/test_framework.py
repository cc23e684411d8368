"""What LibTorch does with the operators on CUDA: autograd, autocast, compile,
opcheck, deterministic mode, PyTorch's own samples."""

import sys
import types
import unittest

import torch
import torch.nn.functional as F

from support import eager, fused, fused_backward, operands, oracle


class Autograd(unittest.TestCase):
    def test_gradcheck(self):
        x, w, b = (t.requires_grad_() for t in operands((4,), 6, 5, torch.float64))
        how = {"check_forward_ad": True, "check_batched_grad": True}
        self.assertTrue(torch.autograd.gradcheck(fused, (x, w, b), **how))
        self.assertTrue(torch.autograd.gradgradcheck(fused, (x, w, b)))

    def test_training_follows_eager(self):
        curves = []
        for layer in (fused, eager):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Linear(256, 10)).cuda()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            x = torch.randn(128, 64, device="cuda")
            target = torch.randint(10, (128,), device="cuda")
            curve = []
            for _ in range(50):
                hidden = layer(x, model[0].weight, model[0].bias)
                loss = F.cross_entropy(model[1](hidden), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                curve.append(loss.item())
            curves.append(torch.tensor(curve))
        difference = (curves[0] - curves[1]).abs().max() / curves[1].abs().max()
        # 50 steps of fp32 rounding, each at most some K·u relative.
        self.assertLess(difference, 50 * 256 * 2.0**-24)

    def test_opcheck(self):
        _stub_expecttest()
        for dtype in (torch.float32, torch.bfloat16):
            x, w, b = operands((5, 3), 6, 4, dtype, requires_grad=True)
            torch.library.opcheck(fused, (x, w, b))
            torch.library.opcheck(fused, (x.detach(), w.detach()))
            y = fused(x, w, b).detach()
            dy = torch.randn_like(y).requires_grad_()
            torch.library.opcheck(fused_backward, (dy, x, w, y, [True, True, True]))

    def test_vmap_and_func(self):
        x, w, b = operands((7, 5), 6, 4, torch.float32)
        self.assertTrue(
            torch.allclose(torch.func.vmap(lambda r: fused(r, w, b))(x), eager(x, w, b), atol=1e-5)
        )
        loss = lambda layer: lambda w: layer(x, w, b).square().sum()
        ours, theirs = (torch.func.grad(loss(layer))(w) for layer in (fused, eager))
        self.assertTrue(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4))


class Modes(unittest.TestCase):
    def test_autocast(self):
        for dtype in (torch.float16, torch.bfloat16):
            x, w, b = operands((32,), 64, 48, torch.float32, requires_grad=True)
            with torch.autocast("cuda", dtype=dtype):
                y = fused(x, w, b)
                want = eager(x, w, b)
            self.assertEqual((y.dtype, want.dtype), (dtype, dtype))
            low = [t.detach().to(dtype) for t in (x, w, b)]
            oracle.assert_forward(y.detach(), *low, tensor_cores=True)
            y.float().sum().backward()
            self.assertEqual([t.grad.dtype for t in (x, w, b)], [torch.float32] * 3)

    def test_deterministic_mode(self):
        x, w, b = operands((300,), 784, 256, torch.float32, requires_grad=True)
        torch.use_deterministic_algorithms(True)
        try:
            first = None
            for _ in range(3):
                y = fused(x, w, b)
                bits = (y, *torch.autograd.grad(y.square().sum(), (x, w, b)))
                first = first or bits
                self.assertTrue(all(torch.equal(a, c) for a, c in zip(first, bits)))
        finally:
            torch.use_deterministic_algorithms(False)

    def test_compile(self):
        x, w, b = operands((32,), 64, 48, torch.float32, requires_grad=True)
        compiled = torch.compile(lambda x: fused(x, w, b).sin(), fullgraph=True, dynamic=True)
        for batch in (32, 48):
            x = torch.randn(batch, 64, device="cuda", requires_grad=True)
            y = compiled(x)
            self.assertTrue(torch.allclose(y, eager(x, w, b).sin(), atol=1e-4))
            y.sum().backward()
            self.assertEqual(x.grad.shape, x.shape)

    def test_inference_mode_and_torchscript(self):
        x, w, b = operands((32,), 64, 48, torch.float32)
        with torch.inference_mode():
            oracle.assert_forward(fused(x, w, b), x, w, b)
        scripted = torch.jit.script(_scriptable)
        for _ in range(3):
            oracle.assert_forward(scripted(x, w, b), x, w, b)


def _scriptable(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.ops.hypatia.fused_linear_relu(x, w, b)


def _stub_expecttest():
    """PyTorch's test helpers import it; nothing we use does anything with it."""
    try:
        import expecttest  # noqa: F401
    except ImportError:
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase
        stub.assert_expected_inline = lambda *a, **k: None
        sys.modules["expecttest"] = stub


class Samples(unittest.TestCase):
    def test_op_db_of_linear(self):
        _stub_expecttest()
        from torch.testing._internal.common_methods_invocations import op_db

        (info,) = (op for op in op_db if op.name == "nn.functional.linear")
        tried = skipped = 0
        for dtype in oracle.DTYPES:
            for sample in info.sample_inputs("cuda", dtype, requires_grad=True):
                x, (w, *rest) = sample.input, sample.args
                if w.dim() != 2:
                    skipped += 1  # the contract is [N, K]
                    continue
                bias = rest[0] if rest else None
                y = fused(x, w, bias)
                tensor_cores = dtype in (torch.float16, torch.bfloat16)
                oracle.assert_forward(
                    y.detach(), x.detach(), w.detach(),
                    None if bias is None else bias.detach(),
                    tensor_cores=tensor_cores,
                )
                tried += 1
        self.assertGreater(tried, 40)
        self.assertLess(skipped, tried / 5)


if __name__ == "__main__":
    unittest.main()
