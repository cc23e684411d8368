"""Threads and processes: the same bits as alone, whoever else is at work."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from oracle import DTYPES
from support import LIBRARY, Layer, fused, operands, python_ok, rand

THREADS = 8


@pytest.fixture(autouse=True)
def one_thread_per_operator():
    """Sums are split by the number of threads, so fix it to compare bits."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def step(leaves, grad_output):
    leaves = [t.detach().requires_grad_() for t in leaves]
    output = fused(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, grad_output)


def in_threads(function, jobs):
    """function(job) for all jobs, started together."""
    barrier = threading.Barrier(THREADS)

    def run(job):
        torch.set_num_threads(1)
        barrier.wait(timeout=30)
        return function(job)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, jobs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_as_alone(dtype):
    jobs = [
        (operands((16 + i,), 65, 33 - i, dtype), rand(16 + i, 33 - i, dtype=dtype))
        for i in range(THREADS)
    ]
    alone = [step(*job) for job in jobs]
    together = in_threads(lambda job: [step(*job) for _ in range(20)], jobs)
    for want, repeats in zip(alone, together):
        for got in repeats:
            assert all(map(torch.equal, got, want))


def test_shared_operands():
    """Eight threads read one weight; each has its own graph."""
    job = operands((33,), 65, 17), rand(33, 17)
    want = step(*job)
    for got in in_threads(lambda _: step(*job), range(THREADS)):
        assert all(map(torch.equal, got, want))


def test_one_graph_from_many_threads():
    """Backward of the same output at the same time, its graph retained."""
    leaves, grad_output = operands((33,), 65, 17, requires_grad=True), rand(33, 17)
    output = fused(*leaves)

    def backward(_):
        return torch.autograd.grad(output, leaves, grad_output, retain_graph=True)

    want = backward(None)
    for got in in_threads(backward, range(THREADS)):
        assert all(map(torch.equal, got, want))


def test_gradients_accumulate_from_many_threads():
    """Hogwild: every thread adds to the same parameters' gradients."""
    model = Layer(7, 5)
    input = torch.ones(4, 7)
    model(input).sum().backward()
    want = [p.grad * THREADS for p in model.parameters()]
    model.zero_grad()
    in_threads(lambda _: model(input).sum().backward(), range(THREADS))
    # Multiples of eight of the same number: exact in any order.
    for p, total in zip(model.parameters(), want):
        torch.testing.assert_close(p.grad, total)


def test_errors_in_threads():
    def refused(i):
        with pytest.raises(RuntimeError, match=rf"got \[5, {i + 9}\]"):
            fused(rand(4, 7), torch.empty(5, i + 9))

    in_threads(refused, range(THREADS))


def test_recording_modes_are_the_threads():
    def run(i):
        leaves = operands((4,), 7, 5, requires_grad=True)
        with torch.set_grad_enabled(i % 2 == 0):
            return fused(*leaves).requires_grad

    assert in_threads(run, range(THREADS)) == [i % 2 == 0 for i in range(THREADS)]


FORK = """
import sys, torch
import torch.multiprocessing as multiprocessing

torch.ops.load_library(sys.argv[1])
torch.set_num_threads(1)  # a fork loses the parent's OpenMP threads
fused = torch.ops.hypatia.fused_linear_relu
torch.manual_seed(0)
input, weight = torch.randn(33, 65), torch.randn(17, 65)

def step():
    leaves = [t.detach().requires_grad_() for t in (input, weight)]
    output = fused(*leaves)
    return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]

def child(connection):
    connection.send([t.tolist() for t in step()])

if __name__ == "__main__":
    if sys.argv[2] == "used":
        step()
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    children = [context.Process(target=child, args=(send,)) for _, send in pipes]
    for process in children:
        process.start()
    received = [receive.recv() for receive, _ in pipes]
    for process in children:
        process.join(60)
        assert process.exitcode == 0, process.exitcode
    want = [t.tolist() for t in step()]
    assert all(got == want for got in received)
"""


@pytest.mark.parametrize("parent", ["fresh", "used"])
def test_forked_workers(parent):
    """Data loaders fork: children work whether the parent has called or not."""
    python_ok(FORK, LIBRARY, parent)
