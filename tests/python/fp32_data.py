"""Operands that try an fp32 product, and its error beside SGEMM's.

    python tests/python/fp32_data.py [cpu]

prints the tables of docs/fp32.md and docs/cpu.md: relative Frobenius error and worst
element, |got - exact| over the sum of |products|, of ours and of eager in the same run.
"""

import sys

import torch

DEVICE = "cuda" if torch.cuda.is_available() and "cpu" not in sys.argv else "cpu"


def normal(*shape):
    return torch.randn(*shape, device=DEVICE)


def wide(*shape):
    """Exponents over 40 binary orders."""
    return normal(*shape) * torch.exp2(torch.randint(-20, 20, shape, device=DEVICE).float())


def cancelling(m, n, k):
    """Neighbouring products cancel to a ten thousandth of each."""
    x, w = normal(m, k), normal(n, k)
    pairs = k // 2 * 2
    x[:, 1:pairs:2] = x[:, 0:pairs:2]
    w[:, 1:pairs:2] = -w[:, 0:pairs:2] * (1 + 1e-4 * normal(n, pairs // 2))
    return x, w


def shuffled(m, n, k):
    """The same, the pairs anywhere in k."""
    x, w = cancelling(m, n, k)
    order = torch.randperm(k, device=DEVICE)
    return x[:, order].contiguous(), w[:, order].contiguous()


def one_large(m, n, k):
    """One product of 1e8 in front of small ones."""
    x, w = normal(m, k), normal(n, k)
    x[:, 0] *= 1e4
    w[:, 0] *= 1e4
    return x, w


def full_mantissa(m, n, k):
    """All 24 bits set but for the last few: the worst for values in parts."""
    ones = lambda *s: 2.0 - torch.randint(1, 64, s, device=DEVICE).float() * 2.0**-23
    sign = lambda *s: torch.randint(0, 2, s, device=DEVICE).float() * 2 - 1
    return ones(m, k) * sign(m, k), ones(n, k) * sign(n, k)


CLASSES = {
    "normal": lambda m, n, k: (normal(m, k), normal(n, k)),
    "uniform positive": lambda m, n, k: (
        torch.rand(m, k, device=DEVICE),
        torch.rand(n, k, device=DEVICE),
    ),
    "wide exponents": lambda m, n, k: (wide(m, k), wide(n, k)),
    "cancelling pairs": cancelling,
    "cancelling anywhere": shuffled,
    "one large product": one_large,
    "full mantissas": full_mantissa,
}


def errors(got, exact, condition):
    """Relative Frobenius error, and the worst element over its condition."""
    difference = got.double() - exact
    worst = (difference.abs() / condition.clamp_min(torch.finfo(torch.float64).tiny)).max()
    return (difference.norm() / exact.norm()).item(), worst.item()


def compare(ours, eager, x, w):
    """Errors of both at x wT, without the ReLU's zeros (which are exact)."""
    exact = x.double() @ w.double().t()
    condition = x.double().abs() @ w.double().abs().t()
    return errors(ours(x, w), exact, condition), errors(eager(x, w), exact, condition)


SIZES = [
    (1024, 2048, 2048),
    (512, 4096, 4096),
    (4096, 4096, 4096),
    (1024, 2048, 784),
    (256, 512, 1),
    (256, 512, 16),
    (256, 512, 64),
    (256, 512, 512),
    (256, 512, 16384),
    (256, 512, 65536),
]


CPU_SIZES = [(256, 512, 2048), (256, 512, 784), (96, 256, 256), (96, 256, 64), (96, 256, 4096)]


def linear(x, w):
    """Ours without a ReLU."""
    return torch.ops.hypatia.fused_mlp(x, [w], [None])


def main():
    import support  # noqa: F401, loads the library

    torch.manual_seed(0)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}")
    print("| M x N x K | operands | Frobenius, ours / eager | ratio | worst element, ours / eager | ratio |")
    print("|---|---|---|---|---|---|")
    for m, n, k in SIZES if DEVICE == "cuda" else CPU_SIZES:
        for name, make in CLASSES.items():
            (a, b), (c, d) = compare(linear, torch.nn.functional.linear, *make(m, n, k))
            ratios = [f"{p / q:.2f}" if q else "-" for p, q in ((a, c), (b, d))]
            print(
                f"| {m} x {n} x {k} | {name} | {a:.2e} / {c:.2e} | {ratios[0]} "
                f"| {b:.2e} / {d:.2e} | {ratios[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
