"""optimize() of modules on CUDA: the zoo of tests/python, trained and frozen."""

import json
import pathlib
import sys
import unittest

import torch

import support  # noqa: F401  (loads the library)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
from zoo import CASES  # noqa: E402


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in sorted(value) for t in tensors(value[key])]
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def moved(inputs):
    def move(t):
        if not isinstance(t, torch.Tensor):
            return t
        return t.cuda().double() if t.is_floating_point() else t.cuda()

    return tuple(move(t) for t in inputs)


class Zoo(unittest.TestCase):
    def test_models(self):
        fused = 0
        for case in CASES:
            for frozen in (False, True):
                with self.subTest(model=case.name, frozen=frozen), torch.no_grad():
                    torch.manual_seed(1)
                    module = torch.jit.script(case.build().double().cuda().eval())
                    if frozen:
                        module = torch.jit.freeze(module, optimize_numerics=False)
                    inputs = moved(case.inputs())
                    optimized = torch.jit._recursive.wrap_cpp_module(
                        torch.ops.hypatia.optimize(module)
                    )
                    report = json.loads(torch.ops.hypatia.explain(module))
                    self.assertIn(report["profile"], ("h100", "gpu"))
                    self.assertLessEqual(report["cost_after"], report["cost_before"])
                    fused += sum(report["fused_ops"].values())
                    for _ in range(3):
                        want, got = module(*inputs), optimized(*inputs)
                        for t, u in zip(tensors(got), tensors(want)):
                            torch.testing.assert_close(t, u, rtol=1e-9, atol=1e-9)
        self.assertGreater(fused, 40)

    def test_half_precision(self):
        module = torch.jit.script(
            torch.nn.Sequential(
                torch.nn.Linear(784, 512),
                torch.nn.ReLU(),
                torch.nn.Linear(512, 512),
                torch.nn.ReLU(),
                torch.nn.Linear(512, 10),
            )
            .cuda()
            .bfloat16()
        )
        optimized = torch.jit._recursive.wrap_cpp_module(torch.ops.hypatia.optimize(module))
        self.assertIn("fused_mlp", str(optimized.graph))
        x = torch.randn(256, 784, device="cuda", dtype=torch.bfloat16)
        want, got = module(x), optimized(x)
        torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)
        want.float().square().sum().backward()
        expected = [p.grad.clone() for p in module.parameters()]
        module.zero_grad()
        got.float().square().sum().backward()
        for p, g in zip(module.parameters(), expected):
            scale = g.abs().max().item()
            torch.testing.assert_close(p.grad, g, rtol=0.05, atol=0.02 * scale)


if __name__ == "__main__":
    unittest.main()
