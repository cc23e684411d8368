"""What optimize must not change: writes, views, shared memory, random numbers,
control flow. Each module is compared in outputs, inputs after the call, state,
gradients and in what shares memory with what (graphs.check)."""

from typing import List, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphs import check, kinds, text
from support import FORWARD, optimize, rand

FUNCTIONAL = {}  # name -> module class; relu_ and the like can become functional
KEPT = {}  # ... must not


def case(group):
    def add(cls):
        group[cls.__name__] = cls
        return cls

    return add


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)


@case(FUNCTIONAL)
class InPlaceRelu(Two):
    def forward(self, x):
        return F.relu_(self.a(x)) + self.b(x)


@case(FUNCTIONAL)
class ChainOfWrites(Two):
    def forward(self, x):
        y = self.a(x)
        F.relu_(y)
        y.add_(1.5)
        return torch.relu(self.b(y))


@case(FUNCTIONAL)
class ReadBeforeWrite(Two):
    """The pre-activation is read before, the activation after."""

    def forward(self, x):
        y = self.a(x)
        z = y.sigmoid()
        F.relu_(y)
        return y + z + torch.relu(self.b(y))


@case(FUNCTIONAL)
class DropoutInPlace(Two):
    def forward(self, x):
        return self.b(F.dropout(F.relu(self.a(x)), 0.5, self.training, True))


@case(FUNCTIONAL)
class ReluOfDropout(Two):
    """The dropout's argument is used by nothing else."""

    def forward(self, x):
        return F.relu_(F.dropout(self.a(x), 0.5, self.training)) + F.relu(self.b(x))


@case(FUNCTIONAL)
class BiasInPlace(Two):
    def forward(self, x):
        y = x.matmul(self.a.weight.t())
        y.add_(self.a.bias)
        return F.relu(y) + F.relu(self.b(x))


@case(FUNCTIONAL)
class UsedInALaterBranch(Two):
    def forward(self, x):
        y = self.a(x)
        F.relu_(y)
        if x.sum() > 0:
            return F.relu(self.b(y))
        return y


@case(KEPT)
class DropoutOfASharedValue(Two):
    """Outside training dropout returns its argument, so relu_ writes to y."""

    def forward(self, x):
        y = self.a(x)
        d = F.dropout(y, 0.5, self.training)
        F.relu_(d)
        return d, y, F.relu(self.b(x))


@case(KEPT)
class LaterReadThroughDropout(Two):
    """y is read after the write that reached it through dropout."""

    def forward(self, x):
        y = self.a(x)
        d = F.dropout(y, 0.5, self.training)
        d.add_(1.0)
        return F.relu(self.b(y)) + y.sigmoid() + d + F.relu(self.b(x))


@case(KEPT)
class WriteBetween(Two):
    """Outside training d is y: the product must stay before the write."""

    def forward(self, x):
        y = self.a(x)
        d = F.dropout(y, 0.5, self.training)
        z = self.b(y)
        d.add_(1.0)
        return F.relu(z), d, F.relu(self.b(x))


@case(KEPT)
class WriteBetweenInAList(Two):
    """The list is read before its element is written."""

    def forward(self, x):
        y = self.a(x)
        z = F.linear(torch.cat([y, x], 1), torch.ones(6, 12))
        y.add_(1.0)
        return F.relu(z), y, F.relu(self.b(x))


@case(KEPT)
class ViewBeforeWrite(Two):
    def forward(self, x):
        y = self.a(x)
        v = y.view(-1)
        F.relu_(y)
        return v, F.relu(self.b(x))


@case(KEPT)
class WriteToAView(Two):
    def forward(self, x):
        y = self.a(x)
        F.relu_(y[0])
        return F.relu(self.b(y)), y, F.relu(self.b(x))


@case(KEPT)
class InputWritten(Two):
    def forward(self, x):
        y = F.relu(self.a(x))
        x.mul_(2.0)
        return y + F.relu(self.b(x))


@case(KEPT)
class InListBeforeWrite(Two):
    def forward(self, x):
        y = self.a(x)
        held = [y, x]
        F.relu_(held[0])
        return torch.cat(held), F.relu(self.b(y))


@case(KEPT)
class ListThatGrows(Two):
    def forward(self, x):
        held: List[torch.Tensor] = []
        held.append(F.relu(self.a(x)))
        held.append(F.relu(self.b(x)))
        held[0].add_(1.0)
        return torch.stack(held)


@case(KEPT)
class TwinsReturned(Two):
    """Equal, but two tensors."""

    def forward(self, x):
        return F.relu(self.a(x)), F.relu(self.a(x))


@case(KEPT)
class TwinsOneWritten(Two):
    def forward(self, x):
        y, z = F.relu(self.a(x)), F.relu(self.a(x))
        y.add_(1.0)
        return y * z


@case(KEPT)
class SameTensorReturnedTwice(Two):
    def forward(self, x):
        y = F.relu(self.a(x))
        return y, y, y.view(-1)


@case(KEPT)
class EvalDropoutReturned(Two):
    """What shares memory depends on the mode."""

    def forward(self, x):
        y = F.relu(self.a(x))
        return y, F.dropout(y, 0.5, self.training)


@case(KEPT)
class WriteInABranch(Two):
    def forward(self, x):
        y = self.a(x)
        if x.sum() > 0:
            F.relu_(y)
        return F.relu(self.b(y)), y, F.relu(self.b(x))


@case(KEPT)
class WriteInALoop(Two):
    def forward(self, x):
        y = self.a(x)
        for i in range(3):
            z = F.relu(self.b(y))
            y.add_(z)
        return y


@case(KEPT)
class WriteThatOnlyDeadCodeReads(Two):
    """In evaluation the input is written to; what reads the result is dropped."""

    def forward(self, x):
        y = F.dropout(x, 0.5, self.training)
        z = F.relu(self.a(x))
        w = F.relu_(y)
        if bool(z.sum() > 0):
            w = self.b(w)
        return z


@case(KEPT)
class WriteIntoWhatALoopCarries(Two):
    """From the second round on it is the input that is written to."""

    def forward(self, x):
        y = F.relu(self.a(x))
        for _ in range(2):
            F.relu_(y)
            y = x
        return y


@case(KEPT)
class AddThatPromotes(Two):
    """In place the result stays float32."""

    def forward(self, x):
        y = self.a(x)
        y.add_(torch.ones(6, dtype=torch.double))
        return F.relu(self.b(y)), F.relu(self.b(x))


@case(KEPT)
class ParameterWritten(Two):
    def forward(self, x):
        y = F.relu(self.a(x))
        with_old = F.relu(self.b(x))
        self.b.weight.detach().mul_(0.5)
        return y + with_old + F.relu(self.b(x))


@case(KEPT)
class Running(Two):
    def __init__(self):
        super().__init__()
        # Of a column that is nearly constant a norm makes its rounding errors;
        # this eps does not.
        self.norm = nn.BatchNorm1d(6, eps=0.5)

    def forward(self, x):
        return F.relu(self.norm(self.a(x))) + F.relu(self.norm(F.relu(self.b(x))))


@case(KEPT)
class TwoDropouts(Two):
    def forward(self, x):
        y = F.relu(self.a(x))
        return F.dropout(y, 0.5, self.training) + F.dropout(y, 0.5, self.training)


@case(KEPT)
class RandomInOrder(Two):
    def forward(self, x):
        y = F.dropout(F.relu(self.a(x)), 0.5, self.training)
        noise = torch.rand_like(x)
        return F.dropout(F.relu(self.b(x + noise)), 0.5, self.training) + y


@case(KEPT)
class Branches(Two):
    def forward(self, x):
        y = self.a(x)
        if bool(x.sum() > 0):
            z = F.relu(y) + F.relu(self.b(x))
        elif bool(x.mean() < -10):
            z = y
        else:
            z = F.relu(self.b(F.relu(y)))
        return z, y


@case(KEPT)
class Loop(Two):
    def forward(self, x):
        i = 0
        while i < 3:
            x = F.relu(self.a(x)) + F.relu(self.b(x))
            i += 1
        return x


@case(KEPT)
class TupleOfStates(Two):
    def forward(self, x) -> Tuple[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]:
        h, c = F.relu(self.a(x)), F.relu(self.b(x))
        state = (h, c)
        return state[0] + state[1], state


INPUTS = [rand(4, 6), -rand(4, 6).abs(), rand(4, 6).abs()]


# Backward fails in eager as well: what it needs was written to.
NO_BACKWARD = {
    "WriteThatOnlyDeadCodeReads",
    "WriteIntoWhatALoopCarries",
    "ChainOfWrites",
    "DropoutInPlace",
    "InputWritten",
    "ListThatGrows",
    "TwinsOneWritten",
    "WriteInALoop",
    "WriteBetween",
    "ParameterWritten",
}


# Every reader of what is written stays, or the method is left as it was because
# of a write around a dropout.
LEFT_ALONE = {
    "InListBeforeWrite",
    "InputWritten",
    "ListThatGrows",
    "WriteInALoop",
    "WriteThatOnlyDeadCodeReads",
    "WriteIntoWhatALoopCarries",
    "DropoutOfASharedValue",
    "LaterReadThroughDropout",
    "WriteBetween",
}


@pytest.mark.parametrize("sign", range(3), ids=["mixed", "negative", "positive"])
@pytest.mark.parametrize("name", [*FUNCTIONAL, *KEPT])
def test_same_to_every_observer(name, sign):
    module = {**FUNCTIONAL, **KEPT}[name]()
    optimized = check(module, INPUTS[sign], grad=name not in NO_BACKWARD)
    if name not in LEFT_ALONE:
        assert FORWARD in str(optimized.graph), "nothing was optimized: the test shows nothing"


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_made_functional(name):
    found = kinds(optimize(torch.jit.script(FUNCTIONAL[name]())))
    writes = [kind for kind in found if kind.endswith("_") and not kind.endswith("__")]
    assert not writes


IN_PLACE = {
    "DropoutOfASharedValue": "aten::relu_",
    "LaterReadThroughDropout": "aten::add_",
    "ViewBeforeWrite": "aten::relu_",
    "WriteToAView": "aten::relu_",
    "InputWritten": "aten::mul_",
    "WriteInABranch": "aten::relu_",
    "WriteInALoop": "aten::add_",
    "AddThatPromotes": "aten::add_",
    "ListThatGrows": "aten::add_",
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_left_in_place(name):
    assert kinds(optimize(torch.jit.script(KEPT[name]())))[IN_PLACE[name]] >= 1


def test_sizes_from_one_list_are_no_shared_memory():
    class Views(Two):
        def forward(self, x):
            y = torch.relu((x - x).reshape(2, -1)).view(4, 6)
            return y, torch.relu(y.reshape(2, -1)).view(4, 6)

    # Freezing makes one constant of equal lists.
    frozen = torch.jit.freeze(torch.jit.script(Views().eval()), optimize_numerics=False)
    first, second = optimize(frozen)(INPUTS[0])
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


def test_twins_in_a_dictionary_stay_two():
    """A container that nothing is known of could hold one tensor twice."""

    class Held(Two):
        def forward(self, x):
            y = self.a(x)
            return {"first": F.relu(y), "second": F.relu(y)}, F.relu(self.b(x))

    optimized = optimize(torch.jit.script(Held()))
    assert FORWARD in str(optimized.graph)
    results, _ = optimized(INPUTS[0])
    results["first"].zero_()
    assert results["second"].abs().sum() > 0


def test_copies_that_only_may_be_copies_stay_two():
    """contiguous returns its argument or a copy, as strides have it."""

    class Copies(Two):
        def forward(self, x):
            y = F.relu(self.a(x)).t()
            return y, y.contiguous(), y.contiguous(), F.relu(self.b(x)), F.relu(self.b(x * 2))

    optimized = optimize(torch.jit.script(Copies()))
    assert FORWARD in str(optimized.graph)
    for x, shared in [(INPUTS[0], False), (INPUTS[0][:1], True)]:
        y, first, second, *_ = optimized(x)
        assert (first.data_ptr() == second.data_ptr()) == shared
        assert (first.data_ptr() == y.data_ptr()) == shared


def test_attribute_that_is_set():
    class Switch(Two):
        def __init__(self):
            super().__init__()
            self.state = torch.zeros(6)

        def forward(self, x):
            before = F.relu(self.a(x)) + self.state
            self.state = F.relu(self.b(x))[0]
            return before + self.state

    original = torch.jit.script(Switch())
    optimized, x = optimize(original), rand(4, 6)
    for _ in range(3):
        torch.testing.assert_close(optimized(x), original(x))
        torch.testing.assert_close(optimized.state, original.state)


def test_weight_that_is_set():
    class Swap(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.eye(6)

        def forward(self, x):
            y = F.relu(F.linear(x, self.w))
            self.w = self.w + 1
            return y + F.relu(F.linear(x, self.w))

    original = torch.jit.script(Swap())
    optimized, x = optimize(original), rand(4, 6)
    for _ in range(3):
        torch.testing.assert_close(optimized(x), original(x))


def test_tied_weights():
    class Tied(Two):
        def __init__(self):
            super().__init__()
            self.b.weight = self.a.weight

    class Net(Tied):
        def forward(self, x):
            return F.relu(self.b(F.relu(self.a(x))))

    check(Net(), rand(4, 6))


def test_fork_is_left_alone():
    @torch.jit.script
    def work(x: torch.Tensor, w: torch.Tensor):
        return torch.relu(F.linear(x, w))

    class Forks(Two):
        def forward(self, x):
            future = torch.jit.fork(work, x, self.a.weight)
            return F.relu(self.b(x)) + torch.jit.wait(future)

    original = torch.jit.script(Forks())
    optimized, x = optimize(original), rand(4, 6)
    torch.testing.assert_close(optimized(x), original(x))


def test_training_switches_after_optimize():
    original = torch.jit.script(Running())
    optimized = optimize(original.eval())
    optimized.train()
    x, before = rand(4, 6), original.norm.running_mean.clone()
    optimized(x)
    assert not torch.equal(original.norm.running_mean, before)


def test_text_is_the_same_every_time():
    original = torch.jit.script(Branches())
    assert len({text(optimize(original)) for _ in range(5)}) == 1
