"""The MLPs of the benchmark and how each contender computes them.

Every hidden layer is linear + ReLU, the last layer is linear.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Mlp:
    """Layers of these widths for `batch` rows."""

    name: str
    widths: tuple
    batch: int
    bias: bool = True

    def layers(self):
        """(K, N) of every layer, the last one without ReLU."""
        return list(zip(self.widths, self.widths[1:]))

    def flops(self, training=False):
        """Of a forward pass, or of it and of all gradients; a multiply-add
        counts as two."""
        once = sum(2 * self.batch * k * n for k, n in self.layers())
        return 3 * once if training else once


MLPS = [
    Mlp("tiny-64", (784, 256, 256, 10), 64),
    Mlp("tiny-256", (784, 256, 256, 10), 256),
    Mlp("small-128", (512, 512, 512, 512, 128), 128),
    Mlp("medium3-256", (784, 512, 512, 512, 128), 256),
    Mlp("medium4-256", (1024, 512, 512, 512, 512, 256), 256),
    Mlp("large-512", (784, *[2048] * 4, 1000), 512),
    Mlp("large-1024", (784, *[2048] * 4, 1000), 1024),
    Mlp("xlarge-1024", (2048, *[2048] * 4, 1000), 1024),
    Mlp("xlarge6-512", (1024, *[4096] * 6, 1000), 512),
]
# Of networks that people train and serve, and sizes that suit no kernel.
OTHERS = [
    Mlp("dlrm-bottom", (13, 512, 256, 64), 2048),
    Mlp("dlrm-top", (479, 1024, 1024, 512, 256, 1), 2048),
    Mlp("opt-125m", (768, 3072, 768), 2048),
    Mlp("opt-1.3b", (2048, 8192, 2048), 2048),
    Mlp("t5-base", (768, 3072, 768), 2048, bias=False),
    Mlp("nerf", (63, *[256] * 8, 4), 65536),
    Mlp("odd", (37, 129, 63), 64),
    Mlp("tiny-1", (784, 256, 256, 10), 1),
    Mlp("large-1", (784, *[2048] * 4, 1000), 1),
    Mlp("large-4096", (784, *[2048] * 4, 1000), 4096),
]

# Mode -> (dtype, TF32 allowed).
MODES = {
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
}


def set_mode(mode):
    """Applies the framework's precision switch; returns the dtype."""
    dtype, tf32 = MODES[mode]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return dtype


def make(mlp, dtype, device, seed=0):
    """Input, [(weight, bias)] scaled so that activations stay near 1, and the
    gradient of the result."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    x = randn(mlp.batch, mlp.widths[0]).to(dtype)
    parameters = [
        ((randn(n, k) * (2.0 / k) ** 0.5).to(dtype), (randn(n) * 0.1).to(dtype) if mlp.bias else None)
        for k, n in mlp.layers()
    ]
    return x, parameters, randn(mlp.batch, mlp.widths[-1]).to(dtype)


def leaves(x, parameters, _grad_output=None):
    """The tensors whose gradients a training step computes."""
    return [x, *(t for pair in parameters for t in pair if t is not None)]


def copies(mlp, dtype, device):
    """As many of `make` as a cache must not hold: a model that has its weights
    in the caches from the last call is a special case for large ones."""
    bytes_of = sum(n * k for k, n in mlp.layers()) * dtype.itemsize
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 32 << 20
    count = 1 if bytes_of < cache // 8 else -(-2 * cache // bytes_of)
    return [make(mlp, dtype, device, seed) for seed in range(count)]


def hidden_then_linear(hidden):
    """A forward pass whose hidden layers are `hidden(x, w, b)`."""

    def forward(x, parameters):
        for w, b in parameters[:-1]:
            x = hidden(x, w, b)
        return F.linear(x, *parameters[-1])

    return forward


def eager_layer(x, w, b):
    return F.relu(F.linear(x, w, b))


def act_layer(x, w, b):
    """What PyTorch has fused: no derivative, 2-D only, with a bias."""
    if b is None:
        return eager_layer(x, w, b)
    return torch._addmm_activation(b, x, w.t())


def fused_layer(x, w, b):
    return torch.ops.hypatia.fused_linear_relu(x, w, b)


def whole_mlp(x, parameters):
    """All layers in one call."""
    weights, biases = zip(*parameters)
    return torch.ops.hypatia.fused_mlp(x, weights, biases)


LAYERS = {"eager": eager_layer, "act": act_layer, "hypatia": fused_layer}
