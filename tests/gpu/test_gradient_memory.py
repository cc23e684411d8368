"""The memory of fused_mlp's gradients, and the one that no mask kernel sums."""

import unittest

import torch

from support import HALVES, mlp_operands

mlp = torch.ops.hypatia.fused_mlp


class Gradients(unittest.TestCase):
    """Memory of the gradients: small ones may lie in one storage when autograd
    asks, never as results of the operator itself."""

    def gradients(self, leading, widths):
        x, weights, biases = mlp_operands(leading, widths, torch.float32)
        leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
        y = mlp(x, weights, biases, False)
        return torch.autograd.grad(y, leaves, torch.ones_like(y)), (x, weights, biases)

    def storages(self, tensors):
        return {t.untyped_storage().data_ptr() for t in tensors}

    def test_small_ones_share_a_storage_and_nothing_else(self):
        got, _ = self.gradients((16,), [24, 40, 8])
        self.assertEqual(len(self.storages(got)), 1)
        self.assertFalse(any(t._is_view() for t in got))
        kept, versions = [t.clone() for t in got], [t._version for t in got]
        got[1].zero_()
        self.assertTrue(all(torch.equal(a, b) for n, (a, b) in enumerate(zip(got, kept)) if n != 1))
        self.assertEqual([t._version for n, t in enumerate(got) if n != 1], versions[:1] + versions[2:])
        self.assertTrue(all(t.data_ptr() % 256 == 0 for t in got))

    def test_large_ones_do_not(self):
        got, _ = self.gradients((64,), [2048, 2048, 8])
        self.assertEqual(len(self.storages(got)), len(got))

    def test_results_of_the_operator_do_not(self):
        _, (x, weights, biases) = self.gradients((16,), [24, 40, 8])
        with torch.no_grad():
            y, activations = torch.ops.hypatia.fused_mlp_forward(x, weights, biases, False)
            got = torch.ops.hypatia.fused_mlp_backward(
                torch.ones_like(y), x, weights, activations, None, [True] * 5
            )
        self.assertEqual(len(self.storages(got)), len(got))

    def test_the_last_bias_without_a_relu(self):
        """Its gradient is the column sums of any grad_output."""
        for dtype in (torch.float32, *HALVES):
            x, weights, biases = mlp_operands((300,), [24, 40, 37], dtype)
            y, activations = torch.ops.hypatia.fused_mlp_forward(x, weights, biases, False)
            dense = torch.randn(300, 37, device="cuda").to(dtype)
            wide = torch.randn(300, 64, device="cuda").to(dtype)
            for dy in (dense, dense.t().contiguous().t(), wide[:, :37], dense[:1].expand(300, 37)):
                for mask in ([True] * 5, [False] * 4 + [True]):
                    got = torch.ops.hypatia.fused_mlp_backward(dy, x, weights, activations, None, mask)
                    # One rounding of the result, one per step of an fp32 sum.
                    unit = torch.finfo(dtype).eps / 2 + 300 * 2**-24
                    want, size = dy.double().sum(0), dy.double().abs().sum(0)
                    self.assertTrue(((got[-1].double() - want).abs() <= unit * size).all())


if __name__ == "__main__":
    unittest.main()
