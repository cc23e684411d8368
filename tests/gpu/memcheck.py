"""Whole operator calls for compute-sanitizer memcheck; see run.py."""

import itertools

import torch

from support import fused, fused_backward, mlp_operands, operands, oracle, split

for dtype, (rows, cols) in itertools.product(
    (torch.float32, torch.float16, torch.bfloat16),
    [(1, 1), (3, 8), (65, 10), (129, 64), (700, 72), (2050, 33)],
):
    x, w, b = operands((rows,), 16, cols, dtype)
    y = fused(x, w, b)
    for dy in (torch.randn_like(y), torch.ones((), device="cuda", dtype=dtype).expand_as(y)):
        for mask in ([True] * 3, [False, False, True], [True, False, False]):
            grads = fused_backward(dy, x, w, y, mask)
            oracle.assert_gradients(grads, dy, x, w, y, tensor_cores=True)
# Whole chains in one launch: aligned and unaligned rows, one team and two.
for dtype, tf32, (rows, widths) in itertools.product(
    (torch.float32, torch.float16, torch.bfloat16),
    (False, True),
    [(50, (40, 72, 33)), (17, (37, 129, 63)), (40, (300, 64, 10)), (250, (64, 200, 56, 24))],
):
    torch.backends.cuda.matmul.allow_tf32 = tf32
    arguments = mlp_operands((rows,), widths, dtype, "some")
    how = {"tf32": tf32} if dtype == torch.float32 else {"tensor_cores": True}
    oracle.assert_mlp(torch.ops.hypatia.fused_mlp(*arguments), *arguments, **how)
# Strict fp32 on the tensor cores, for which the environment asks.
torch.backends.cuda.matmul.allow_tf32 = False
for rows, widths in [(200, (128, 260, 65)), (300, (64, 132, 200, 256))]:
    x, weights, biases = mlp_operands((rows,), widths, torch.float32, "some")
    y, activations = torch.ops.hypatia.fused_mlp_forward(x, weights, biases, True)
    oracle.assert_mlp(y, x, weights, biases, relu_last=True)
    dy, mask = torch.randn_like(y), [True] * (1 + 2 * len(weights))
    backward = torch.ops.hypatia.fused_mlp_backward
    grads = backward(dy, x, weights, activations, y, mask)
    hidden = split(activations, x, weights)
    oracle.assert_mlp_gradients(grads, dy, x, weights, hidden, y)
torch.cuda.synchronize()
print("sanitized run complete")
