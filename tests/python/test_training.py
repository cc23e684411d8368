"""Twenty steps of SGD, beside nn.Linear and ReLU."""

import copy

import pytest
import torch

from oracle import DTYPES
from support import Layer, eager, fused, rand

STEPS = 20


def network(function):
    torch.manual_seed(1)
    return torch.nn.Sequential(
        Layer(13, 40, function),
        Layer(40, 31, function, bias=False),
        torch.nn.Linear(31, 3),
    )


def data(dtype=torch.float32):
    torch.manual_seed(2)
    input = rand(65, 13)
    return input.to(dtype), torch.sin(input[:, :3] + input[:, 3:6]).to(dtype)


def train(model, input, target):
    """Losses of every step and the parameters after the last one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(input) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach().double() for p in model.parameters()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_accurate_as_eager(dtype):
    """Both stray from the fp64 run; ours by no more than twice eager's way.

    Rounding grows from step to step by a factor that depends on the data, so
    eager's own error is the yardstick, and a few roundings where it has none
    (as in fp64, where eager itself is the oracle).
    """
    input, target = data(dtype)
    ours = train(network(fused).to(dtype), input, target)
    theirs = train(network(eager).to(dtype), input, target)
    # All start from the same rounded parameters.
    exact_model = network(eager).to(dtype).double()
    exact = train(exact_model, input.double(), target.double())
    assert exact[0][-1] < exact[0][0] / 2, "the network must learn"
    least = STEPS * torch.finfo(dtype).eps
    for got, want, best in zip(ours[1], theirs[1], exact[1]):
        error, yardstick = ((t - best).abs().max() for t in (got, want))
        assert error <= 2 * yardstick + least * best.abs().max()
    for got, want, best in zip(ours[0], theirs[0], exact[0]):
        assert abs(got - best) <= 2 * abs(want - best) + least * best


def test_with_adam_and_clipping():
    """Parameters are updated from the gradients that the operator wrote."""
    input, target = data()
    results = []
    for function in (fused, eager):
        model = network(function)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True)
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=False)
            (model(input) - target).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        results.append((model(input) - target).square().mean().item())
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_copies_and_state_are_plain():
    """The operators keep no state: a copied model goes its own way."""
    model = network(fused)
    twin = copy.deepcopy(model)
    input, target = data()
    before = twin(input)
    losses, _ = train(model, input, target)
    assert torch.equal(twin(input), before)
    assert train(twin, input, target)[0] == losses
    fresh = network(fused)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(input), model(input))
