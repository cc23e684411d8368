"""Small models with the structures that real ones have: what `optimize` must
fuse in each, and what it must leave alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSED, MLP = "hypatia::fused_linear_relu", "hypatia::fused_mlp"


@dataclasses.dataclass
class Case:
    """A model, an input, and the fused operators expected in its graph."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple]
    # As the module came: parameters train. None: no expectation.
    fused: dict | None
    # After freezing, which also runs in evaluation mode.
    frozen: dict | None = None
    # Evaluation mode changes what the graph is.
    evaluate: bool = True
    traceable: bool = True


def x(*shape):
    return lambda: (torch.randn(*shape),)


class VGGHead(nn.Module):
    """Linear, in-place ReLU, dropout."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Linear(48, 32),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(32, 32),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(32, 10),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(x, 1))


class DLRM(nn.Module):
    """Bottom and top MLPs around an interaction of dot products."""

    def __init__(self):
        super().__init__()
        self.bottom = nn.Sequential(
            nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()
        )
        self.embeddings = nn.ModuleList(nn.EmbeddingBag(20, 8, mode="sum") for _ in range(3))
        self.top = nn.Sequential(
            nn.Linear(14, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid()
        )

    def forward(self, dense, indices):
        rows = [self.bottom(dense)]
        for i, embedding in enumerate(self.embeddings):
            rows.append(embedding(indices[:, i : i + 1]))
        stacked = torch.stack(rows, 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        pairs = torch.cat([products[:, i, :i] for i in range(1, 4)], dim=1)
        return self.top(torch.cat([rows[0], pairs], dim=1))


class T5FeedForward(nn.Module):
    """T5 1.0: no biases, dropout after ReLU."""

    def __init__(self):
        super().__init__()
        self.wi = nn.Linear(16, 32, bias=False)
        self.wo = nn.Linear(32, 16, bias=False)
        self.dropout = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        h = self.wo(self.dropout(F.relu(self.wi(self.norm(x)))))
        return x + self.dropout(h)


class OPTBlock(nn.Module):
    """Reshapes around the feed-forward layers, residual, layer norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, 64)
        self.fc2 = nn.Linear(64, 16)

    def forward(self, x):
        shape = x.shape
        h = x.reshape(-1, x.size(-1))
        residual = h
        h = F.relu(self.fc1(self.norm(h)))
        h = F.dropout(self.fc2(h), p=0.1, training=self.training)
        return (residual + h).view(shape)


class DuelingDQN(nn.Module):
    def __init__(self):
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.value = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        self.advantage = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x):
        h = self.feature(x)
        value, advantage = self.value(h), self.advantage(h)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


class MMoE(nn.Module):
    """Experts and a gate on one input."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
            for _ in range(4)
        )
        self.gate = nn.Linear(16, 4)
        self.tower = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x):
        outputs = [expert(x) for expert in self.experts]
        stacked = torch.stack(outputs, dim=1)
        weights = torch.softmax(self.gate(x), dim=1)
        return self.tower((stacked * weights.unsqueeze(2)).sum(1))


class PointNetHead(nn.Module):
    """Max over points, then layers with batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 32, 1)
        self.bn0 = nn.BatchNorm1d(32)
        self.fc1, self.bn1 = nn.Linear(32, 24), nn.BatchNorm1d(24)
        self.fc2, self.bn2 = nn.Linear(24, 16), nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.4)
        self.fc3 = nn.Linear(16, 5)

    def forward(self, points):
        h = F.relu(self.bn0(self.conv(points)))
        h = torch.max(h, 2, keepdim=True)[0].view(-1, 32)
        h = F.relu(self.bn1(self.fc1(h)))
        h = F.relu(self.bn2(self.dropout(self.fc2(h))))
        return F.log_softmax(self.fc3(h), dim=1)


class NeRF(nn.Module):
    """Skip concatenation, density and colour heads."""

    def __init__(self, width=32):
        super().__init__()
        layers = [nn.Linear(6, width)]
        for i in range(7):
            layers.append(nn.Linear(width + 6 if i == 4 else width, width))
        self.points = nn.ModuleList(layers)
        self.views = nn.Linear(width + 3, width // 2)
        self.feature = nn.Linear(width, width)
        self.alpha = nn.Linear(width, 1)
        self.rgb = nn.Linear(width // 2, 3)

    def forward(self, x):
        points, views = torch.split(x, [6, 3], dim=-1)
        h = points
        for i, layer in enumerate(self.points):
            h = F.relu(layer(h))
            if i == 4:
                h = torch.cat([points, h], -1)
        alpha = self.alpha(h)
        h = torch.cat([self.feature(h), views], -1)
        h = F.relu(self.views(h))
        return torch.cat([self.rgb(h), alpha], -1)


class NoNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(n) + 0.5), nn.Parameter(torch.randn(n))

    def forward(self, x):
        return x * self.weight + self.bias


class MobileBERTFeedForward(nn.Module):
    """Four feed-forward blocks whose norms are one scale and shift a column."""

    def __init__(self):
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(16, 32) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(32, 16) for _ in range(4))
        self.norms = nn.ModuleList(NoNorm(16) for _ in range(4))

    def forward(self, x):
        for up, down, norm in zip(self.up, self.down, self.norms):
            x = norm(down(F.relu(up(x))) + x)
        return x


class LowRank(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(a, b) for a, b in zip(widths, widths[1:])])

    def forward(self, x):
        return F.relu(self.layers(x))


class GELU(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class NegativeScale(nn.Module):
    """relu(-h) is not -relu(h); the scale may fold only into a constant."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 8)

    def forward(self, x):
        return F.relu(self.fc(x)) * -2.0 + F.relu(-self.fc(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x):
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return x


class TwoReaders(nn.Module):
    """The pre-activation is read again."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 8)

    def forward(self, x):
        h = self.fc(x)
        return F.relu(h) + h


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return F.relu(self.fc(F.relu(self.fc(x))))


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's transpose."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 8)
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x):
        return F.relu(F.linear(F.relu(self.fc(x)), self.fc.weight.t(), self.bias))


class Spelled(nn.Module):
    """matmul with the transpose, addmm, in-place add, threshold."""

    def __init__(self):
        super().__init__()
        self.w = nn.ParameterList(nn.Parameter(torch.randn(16, 16) / 4) for _ in range(4))
        self.b = nn.ParameterList(nn.Parameter(torch.randn(16)) for _ in range(4))

    def forward(self, x):
        h = torch.relu(torch.matmul(x, self.w[0].t()) + self.b[0])
        h = torch.addmm(self.b[1], h, self.w[1].t()).relu()
        h = h.matmul(self.w[2].t()).add_(self.b[2]).relu_()
        return F.threshold(F.linear(h, self.w[3], self.b[3]), 0.0, 0.0)


class CatThenReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(4, 6)

    def forward(self, x, z):
        return F.relu(torch.cat([self.a(x), self.b(z)], dim=-1))


class Branches(nn.Module):
    """If and Loop blocks, each with layers of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, n: int):
        if n > 2:
            x = F.relu(self.a(x))
        else:
            x = F.relu(self.b(x)) * 2
        for _ in range(n):
            x = F.relu(self.c(x))
        return x


class TwinCritics(nn.Module):
    """SAC: two networks on one input, two results."""

    def __init__(self):
        super().__init__()
        self.q = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
            for _ in range(2)
        )

    def forward(self, state, action):
        x = torch.cat([state, action], 1)
        return self.q[0](x), self.q[1](x)


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        tower = lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())  # noqa: E731
        self.user, self.item = tower(), tower()

    def forward(self, user, item):
        u, v = F.normalize(self.user(user), dim=1), F.normalize(self.item(item), dim=1)
        return (u * v).sum(1)


class Dictionary(nn.Module):
    """Results in a dictionary and a tuple, one of them a pre-activation."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.fc1(x)
        a = F.relu(h)
        b = F.relu(self.fc2(a))
        return {"h": h, "b": b}, (a, b)


class Mixer(nn.Module):
    """Layers on transposed data: strides that are not dense."""

    def __init__(self):
        super().__init__()
        self.tokens, self.channels = nn.Linear(6, 6), nn.Linear(16, 16)

    def forward(self, x):
        h = F.relu(self.tokens(x.transpose(1, 2))).transpose(1, 2)
        return F.relu(self.channels(h)) + x


def mlp(*widths):
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def indices():
    return torch.randn(5, 13), torch.randint(0, 20, (5, 3))


CASES = [
    Case("mlp", lambda: mlp(16, 32, 32, 4), x(5, 16), {MLP: 1}, {MLP: 1}),
    Case("mlp_3d", lambda: mlp(16, 32, 4), x(2, 3, 16), {MLP: 1}, {MLP: 1}),
    Case("mlp_1d", lambda: mlp(16, 32, 4), x(16), {MLP: 1}, {MLP: 1}),
    Case("one_layer", lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU()), x(5, 16), {FUSED: 1}, {FUSED: 1}),
    Case("vgg_head", VGGHead, x(5, 3, 4, 4), {FUSED: 2}, {MLP: 1}),
    Case("dlrm", DLRM, indices, {MLP: 2}, {MLP: 2}),
    Case("t5", T5FeedForward, x(2, 3, 16), {FUSED: 1}, {MLP: 1}),
    Case("opt", OPTBlock, x(2, 3, 16), {MLP: 1}, {MLP: 1}),
    Case("dueling_dqn", DuelingDQN, x(5, 8), {FUSED: 1, MLP: 2}, None),
    Case("mmoe", MMoE, x(5, 16), {MLP: 5}, None),
    Case("pointnet", PointNetHead, x(4, 3, 9), {}, {MLP: 1}),
    Case("nerf", NeRF, x(5, 9), {MLP: 3}, {MLP: 3}),
    Case("mobilebert", MobileBERTFeedForward, x(2, 3, 16), {MLP: 4}, {MLP: 4}),
    Case("low_rank", lambda: LowRank(256, 16, 256), x(5, 256), {FUSED: 1}, {FUSED: 1}),
    Case("foldable", lambda: LowRank(256, 256, 128), x(5, 256), {FUSED: 1}, {FUSED: 1}),
    Case("gelu", GELU, x(5, 16), {}, {}),
    Case("negative_scale", NegativeScale, x(5, 16), None, None),
    Case("residual", Residual, x(5, 16), {FUSED: 6}, {FUSED: 6}),
    Case("two_readers", TwoReaders, x(5, 16), {}, {}),
    Case("called_twice", CalledTwice, x(5, 16), {MLP: 1}, {MLP: 1}),
    Case("tied", Tied, x(5, 16), {MLP: 1}, {MLP: 1}),
    Case("spelled", Spelled, x(5, 16), {MLP: 1}, {MLP: 1}),
    Case("cat_then_relu", CatThenReLU, lambda: (torch.randn(5, 16), torch.randn(5, 4)), {FUSED: 2}, {FUSED: 2}),
    Case("branches", Branches, lambda: (torch.randn(5, 16), 3), {FUSED: 3}, {FUSED: 3}, traceable=False),
    Case("twin_critics", TwinCritics, lambda: (torch.randn(5, 8), torch.randn(5, 4)), {MLP: 2}, None),
    Case("two_towers", TwoTowers, lambda: (torch.randn(5, 16), torch.randn(5, 16)), {MLP: 2}, {MLP: 2}),
    Case("dictionary", Dictionary, x(5, 16), {FUSED: 1}, {FUSED: 1}, traceable=False),
    Case("mixer", Mixer, x(2, 6, 16), {FUSED: 2}, {FUSED: 2}),
]
