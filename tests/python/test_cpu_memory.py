"""Memory of results, kept for later calls (src/cpu/results.rs)."""

import copy
import gc
import json
import pickle
import resource
import threading

import pytest
import torch

mlp = torch.ops.hypatia.fused_mlp
LIMIT = 64 << 20


def kernels():
    return json.loads(torch.ops.hypatia.build_info())["cpu_kernels"]


pytestmark = pytest.mark.skipif(kernels()["isa"] == "scalar", reason="ATen computes here")


@pytest.fixture(autouse=True)
def nothing_from_earlier_tests_comes_back_meanwhile():
    gc.collect()


def operands(rows=128, widths=(256, 512, 256)):
    torch.manual_seed(0)
    x = torch.randn(rows, widths[0])
    weights = [torch.randn(n, k) * k**-0.5 for k, n in zip(widths, widths[1:])]
    return x, weights, [torch.randn(n) for n in widths[1:]]


def eager(x, weights, biases):
    x = torch.relu(torch.nn.functional.linear(x, weights[0], biases[0]))
    return torch.nn.functional.linear(x, weights[1], biases[1])


def test_memory_waits_and_is_used_again():
    x, weights, biases = operands()
    y = mlp(x, weights, biases)
    where, before = y.data_ptr(), kernels()["result_bytes"]
    del y
    # An earlier, slightly larger block may have been used; older ones go if they are too many.
    fewest = 128 * 256 * 4
    most = fewest + fewest // 8 + 4096
    more = kernels()["result_bytes"] - before
    assert fewest <= more <= most or (before + most > LIMIT and before + more <= LIMIT)
    y = mlp(x, weights, biases)
    assert y.data_ptr() == where
    torch.testing.assert_close(y, eager(x, weights, biases))


def test_what_someone_has_is_never_used_again():
    x, weights, biases = operands()
    want = mlp(x, weights, biases).clone()
    kept = [mlp(x, weights, biases) for _ in range(3)]
    views = [mlp(x, weights, biases)[3:].t(), mlp(x, weights, biases).detach().numpy()]
    for _ in range(5):
        mlp(x * 2, weights, biases)
    assert all(torch.equal(y, want) for y in kept)
    assert torch.equal(views[0].t(), want[3:]) and torch.equal(torch.from_numpy(views[1]), want)
    assert len({y.data_ptr() for y in kept}) == 3


def test_no_more_waits_than_is_said():
    x, weights, biases = operands(2048, (64, 64, 2048))
    assert kernels()["result_limit"] == LIMIT
    results = [mlp(x, weights, biases) for _ in range(8)]  # 16 MiB each
    del results
    assert 0 < kernels()["result_bytes"] <= LIMIT
    x, weights, biases = operands(8256, (64, 64, 2048))
    before = kernels()["result_bytes"]
    mlp(x, weights, biases)  # 64.5 MiB: malloc's own
    assert kernels()["result_bytes"] == before


def test_they_are_tensors_like_others():
    x, weights, biases = operands()
    want = eager(x, weights, biases)
    y = mlp(x, weights, biases)
    close = torch.testing.assert_close
    close(copy.deepcopy(y), want)
    close(pickle.loads(pickle.dumps(y)), want)
    close(y.resize_(64, 256), want[:64])
    assert y.resize_(512, 256).shape == (512, 256)
    close(y[:64], want[:64])
    y = mlp(x, weights, biases)
    close(y.share_memory_(), want)
    assert y.is_shared()
    y = mlp(x, weights, biases)
    other = torch.empty(0).set_(y.untyped_storage(), 0, y.shape, y.stride())
    del y
    close(other, want)
    with torch.inference_mode():
        assert mlp(x, weights, biases).is_inference()
    y = mlp(x, weights, biases)
    assert y._version == 0 and not y.is_inference() and y.untyped_storage().nbytes() == 4 * y.numel()
    y.add_(1)
    assert y._version == 1
    close(y, want + 1)


def test_the_memory_profiler_sees_results():
    x, weights, biases = operands()
    with torch.profiler.profile(profile_memory=True) as profile:
        y = mlp(x, weights, biases)
    used = sum(e.self_cpu_memory_usage for e in profile.key_averages())
    assert used >= y.numel() * 4


def test_threads_take_and_give():
    x, weights, biases = operands()
    want, failed = mlp(x, weights, biases).clone(), []

    def work():
        for _ in range(50):
            some = [mlp(x, weights, biases) for _ in range(3)]
            if not all(torch.equal(y, want) for y in some):
                failed.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failed and kernels()["result_bytes"] <= LIMIT


def test_a_step_has_no_page_faults():
    x, weights, biases = operands(128, (512, 512, 512))
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
    dy = torch.randn(128, 512)

    def step():
        return torch.autograd.grad(mlp(x, weights, biases), leaves, dy)

    def faults(steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(steps):
            step()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps

    faults(20)
    # 2.5 MiB of results are 640 pages.
    assert faults(50) < 100
    want = torch.autograd.grad(eager(x, weights, biases), leaves, dy)
    for a, b in zip(step(), want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
