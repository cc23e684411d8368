"""Modules for the tests of optimize, and what every one must keep."""

import copy
import re

import torch

from support import optimize


def text(module):
    """Graph and code, without the numbers that tell copies of a class apart."""
    methods = [module._c._get_method(name) for name in module._c._method_names()]
    return re.sub(r"___torch_mangle_\d+\.", "", "".join(f"{m.graph}{m.code}" for m in methods))


def kinds(module):
    """How often each operator is in the graph of forward, blocks included."""
    found = re.findall(r" = (\w+::\w+)[(\[]", str(module.inlined_graph))
    return {kind: found.count(kind) for kind in found}


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    return []


def sharing(found):
    """Which tensors share memory, as groups of positions."""
    first = {}
    return [first.setdefault(t.untyped_storage().data_ptr(), i) for i, t in enumerate(found)]


def observe(module, inputs, seed, grad):
    """Everything a caller can see of one call."""
    inputs = [i.clone() for i in inputs]
    if grad:
        leaves = [i.requires_grad_() for i in inputs if i.is_floating_point()]
        inputs = [i * 1 if i.is_floating_point() else i for i in inputs]
    module.zero_grad()
    torch.manual_seed(seed)
    output = module(*inputs)
    seen = tensors(output) + inputs
    after = sharing(seen)
    if grad:
        sum(t.double().square().sum() for t in tensors(output)).backward()
        grads = [leaf.grad for leaf in leaves] + [p.grad for p in module.parameters()]
        seen += [torch.zeros(()) if g is None else g for g in grads]
    state = [t.clone() for t in module.state_dict().values()]
    return [t.detach().clone() for t in seen] + state, after


def assert_same_calls(eager, original, optimized, *inputs, grad=True, calls=2):
    """Outputs, inputs after the call, buffers, gradients, and what shares memory
    with what. All start from the same state, which they share.

    Without TorchScript's own optimizations: those return a copy where dropout
    returns its argument, and write to that copy, so that the original script
    differs from eager and from itself on the next call."""
    start = copy.deepcopy(original.state_dict())
    for with_grad in [False, True] if grad else [False]:
        for call in range(calls):
            results = []
            for module in (eager, original, optimized):
                with torch.no_grad():
                    for tensor, value in zip(module.state_dict().values(), start.values()):
                        tensor.copy_(value)
                with torch.jit.optimized_execution(False):
                    results.append(observe(module, inputs, call, with_grad))
            (values, shared), (_, original_shared), (ours, ours_shared) = results
            assert ours_shared == shared == original_shared
            for a, b in zip(values, ours, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                torch.testing.assert_close(b, a, equal_nan=True)


def check(module, *inputs, grad=True):
    """Scripts, optimizes and compares in both modes; returns the optimized one."""
    original = torch.jit.script(module)
    before = text(original)
    optimized = optimize(original)
    assert text(original) == before, "the original was changed"
    again = optimize(optimized)
    assert text(again) == text(optimized), "not idempotent"
    for training in (True, False):
        for each in (module, original, optimized):
            each.train(training)
        assert_same_calls(module, original, optimized, *inputs, grad=grad)
    return optimized
