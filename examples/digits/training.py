"""The data, the model with and without the fused operator, and the training."""

import dataclasses
import sys

import torch
import torch.nn.functional as F

STEPS, BATCH, HIDDEN = 300, 128, 256


@dataclasses.dataclass
class Digits:
    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


@dataclasses.dataclass
class Trained:
    model: torch.nn.Module
    losses: list
    accuracy: float
    predictions: torch.Tensor


def load_digits():
    """A fixed split: 1437 digits to learn from, 360 to test with."""
    from sklearn import datasets

    digits = datasets.load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16  # pixels are 0..16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return Digits(x[train], y[train], x[test], y[test])


class Mlp(torch.nn.Module):
    """64 -> 256 -> 256 -> 10; `fused` chooses how the hidden layers are computed."""

    def __init__(self, fused: bool):
        super().__init__()
        self.first = torch.nn.Linear(64, HIDDEN)
        self.second = torch.nn.Linear(HIDDEN, HIDDEN)
        self.last = torch.nn.Linear(HIDDEN, 10)
        self.fused = fused

    def hidden(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if self.fused:
            return torch.ops.hypatia.fused_linear_relu(x, weight, bias)
        return F.relu(F.linear(x, weight, bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.hidden(x, self.first.weight, self.first.bias)
        x = self.hidden(x, self.second.weight, self.second.bias)
        return self.last(x)


def train(title, model, data, device):
    """SGD with momentum; every run sees the same weights and batches."""
    seed = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1]
            parameter.copy_((torch.rand(parameter.shape, generator=seed) * 2 - 1) / fan_in**0.5)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = data.train_x.to(device), data.train_y.to(device)
    losses = []
    for step in range(STEPS):
        batch = torch.randint(len(x), (BATCH,), generator=seed).to(device)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        progress(title, step, loss.item())
    with torch.no_grad():
        predictions = model(data.test_x.to(device)).argmax(-1).cpu()
    accuracy = (predictions == data.test_y).double().mean().item()
    return Trained(model, losses, accuracy, predictions)


def progress(title, step, loss):
    """A line that rewrites itself on a terminal, a few lines elsewhere."""
    done = step + 1 == STEPS
    if sys.stdout.isatty():
        print(f"\r  {title:18} step {step + 1:4d}/{STEPS}  loss {loss:.4f}", end="", flush=True)
        if done:
            print()
    elif done or step % 100 == 0:
        print(f"  {title:18} step {step + 1:4d}/{STEPS}  loss {loss:.4f}", flush=True)


def worst_disagreement(plain, fused):
    """The largest difference over what rounding explains; above 1 is a fault.

    A step rounds sums of at most HIDDEN products (relative error HIDDEN * u,
    u = 2^-24), and the errors of all steps so far may add up, momentum counting
    each ten times.
    """
    per_step = 10 * HIDDEN * 2.0**-24 * max(plain)
    return max(abs(a - b) / (per_step * (i + 1)) for i, (a, b) in enumerate(zip(plain, fused)))
