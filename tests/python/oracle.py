"""What the operators must return, in fp64, and how far off a correct one may be.

Needs torch alone: the GPU script uses it as the pytest suite does.

The tolerance
-------------
A result is a sum of n products, s = Σ aᵢbᵢ, summed in some order in an
accumulator of unit roundoff u, then rounded once to the output's dtype (unit
roundoff u_out). Write S = Σ|aᵢ||bᵢ|. Then

    |got - s| ≤ c·(n + 1)·u·S  +  u_out·|s|  +  (n + 1)·η + η_out

* c·(n + 1): every product takes part in at most n roundings (Higham, Accuracy
  and Stability, 3.1), so n + 1 times u is enough for any order of summation.
  With rounding to nearest the errors are also mean independent, and Connolly,
  Higham and Mary (2021) replace n by λ√n with probability
  1 - 2·exp(-λ²/2) a result. λ = 8 makes that 1 - 3e-14, so 10⁹ compared
  elements fail a correct library once in 40 000 runs. We take
  min(n + 1, 8√(n + 1)), which needs no assumption below n = 63.
* Tensor cores truncate instead of rounding to nearest, a biased error of up to
  2u (Fasi et al. 2021). There `tensor_cores=True` takes 2·(n + 1).
* TF32 keeps 11 significant bits of each operand: `tf32=True` adds
  (2·u_in + u_in²)·S with u_in = 2⁻¹¹ and counts as tensor cores.
* η is a smallest subnormal: underflow has an absolute error, not a relative one.
* The fp64 oracle has rounding errors itself, at most those of an fp64 result:
  (min(n + 1, 8√(n + 1)))·2⁻⁵³·S more. Only fp64 results notice.

ReLU is 1-Lipschitz and exact, so it changes no bound.

Chains of layers
----------------
Layer i gets ĥ with |ĥ - h| ≤ e instead of the exact h. Between the exact layer
on ĥ and on h lies at most |W|·e, and between what the operator makes of ĥ and
the exact layer on ĥ at most the bound above, whose S and |s| are those of ĥ: at
most |W|(|h| + e) + |b| and |s| + |W|·e. Their sum is the next layer's e. Nothing
is rounded twice in it, so a chain that is off in one layer is found as a layer
is. Gradients go back in the same way, with the masks of the activations that
the operator was given: a mask has no error of its own.
"""

from __future__ import annotations

import math

import torch

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
SMALLEST_SUBNORMAL = {
    torch.float64: 2.0**-1074,
    torch.float32: 2.0**-149,
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-133,
}
TF32_ROUNDOFF = 2.0**-11
LAMBDA = 8.0


def accumulator(dtype):
    """The narrowest type that a sum of `dtype` products may be kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def growth(terms):
    """How many roundings a sum of `terms` terms counts for."""
    return min(terms + 1, LAMBDA * math.sqrt(terms + 1))


def relu(z):
    """NaN stays NaN, as in torch.relu; written without it."""
    return torch.where(z <= 0, torch.zeros_like(z), z)


def relu_mask(output):
    """1 where the gradient passes: threshold_backward's mask, so NaN passes."""
    return torch.where(output <= 0, 0.0, 1.0).double()


def rows(t):
    """[*, K] as [M, K], for zero sizes as well."""
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])


def reference(input, weight, bias=None):
    """relu(input · weightᵀ + bias) in fp64, from the same rounded operands."""
    z = input.double() @ weight.double().t()
    return relu(z if bias is None else z + bias.double())


def reference_gradients(grad_output, input, weight, output):
    """The gradients of input, weight and bias in fp64.

    The mask comes from `output`, as the operator got it: whether an output
    within rounding of zero is positive is not this function's to decide.
    """
    dz = grad_output.double() * relu_mask(output)
    grad_input = dz @ weight.double()
    grad_weight = rows(dz).t() @ rows(input.double())
    return grad_input, grad_weight, rows(dz).sum(0)


def sum_bound(terms, scale, want, dtype, *, tf32=False, tensor_cores=False):
    """The bound of the module's docstring, element by element.

    `scale` is Σ|aᵢ||bᵢ| and `want` the exact result, both fp64.
    """
    u, u_out = UNIT_ROUNDOFF[accumulator(dtype)], UNIT_ROUNDOFF[dtype]
    summed = 2 * (terms + 1) * u if tensor_cores or tf32 else growth(terms) * u
    summed += growth(terms) * UNIT_ROUNDOFF[torch.float64]
    if tf32:
        summed += 2 * TF32_ROUNDOFF + TF32_ROUNDOFF**2
    # The output rounds what was computed, which is off by `summed` already.
    relative = summed * (1 + u_out) * scale + u_out * want.abs()
    underflow = (terms + 1) * SMALLEST_SUBNORMAL[accumulator(dtype)]
    return relative + underflow + SMALLEST_SUBNORMAL[dtype]


def forward_bound(input, weight, bias=None, *, bias_apart=False, **how):
    """How far fused_linear_relu may be from `reference`.

    With `bias_apart` the product is rounded to the output's dtype before the
    bias is added, as eager does for some strides and under vmap. The operator
    itself has no such excuse.
    """
    scale = input.double().abs() @ weight.double().abs().t()
    if bias is not None:
        scale = scale + bias.double().abs()
    want = reference(input, weight, bias)
    terms = input.shape[-1] + (bias is not None)
    bound = sum_bound(terms, scale, want, input.dtype, **how)
    if bias_apart and bias is not None:
        u_out = UNIT_ROUNDOFF[input.dtype]
        bound = bound + 2 * u_out * (input.double() @ weight.double().t()).abs()
    return bound


def gradient_bounds(grad_output, input, weight, output, **how):
    """How far the three gradients may be from `reference_gradients`."""
    absolute = [t.double().abs() for t in (grad_output, input, weight)]
    scales = reference_gradients(*absolute, output)
    wants = reference_gradients(grad_output, input, weight, output)
    n, m = weight.shape[0], math.prod(input.shape[:-1])
    # A sum of rows has no products, so TF32 does not touch it.
    bias_how = {**how, "tf32": False}
    return tuple(
        sum_bound(terms, scale, want, input.dtype, **options)
        for terms, scale, want, options in zip(
            (n, m, m), scales, wants, (how, how, bias_how)
        )
    )


def excess(got, want, bound):
    """|got - want| / bound: above 1 where got is wrong, infinite for a wrong class.

    An infinity is right where `want` is that infinity or rounds to it, that is
    where want and bound together pass the dtype's largest number.
    """
    value = got.double()
    past_largest = torch.finfo(got.dtype).max * (1 + UNIT_ROUNDOFF[got.dtype] / 2)
    right = (value == want) | (value.isnan() & want.isnan())
    right |= value.isinf() & (value.sign() * want + bound >= past_largest)
    ratio = (value - want).abs() / bound
    # Infinite operands have an infinite bound, which excuses nothing.
    ratio = torch.where(bound.isfinite() & ratio.isfinite(), ratio, math.inf)
    return torch.where(right, 0.0, ratio)


def assert_close(got, want, bound, what):
    """|got - want| ≤ bound everywhere; NaN exactly where want is NaN."""
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    ratio = excess(got, want, bound)
    if ratio.numel() and ratio.max() > 1:
        worst = torch.unravel_index(ratio.argmax(), ratio.shape)
        raise AssertionError(
            f"{what}: {int((ratio > 1).sum())} of {got.numel()} elements out of bound; "
            f"the worst at {[int(i) for i in worst]} is {got[worst].item()!r}, "
            f"want {want[worst].item()!r}, {ratio[worst].item():.3g} times its bound"
        )


def assert_forward(got, input, weight, bias=None, what="output", **how):
    """`got` is fused_linear_relu(input, weight, bias), within its bound."""
    assert got.dtype == input.dtype, f"{what}: {got.dtype}, want {input.dtype}"
    bound = forward_bound(input, weight, bias, **how)
    assert_close(got, reference(input, weight, bias), bound, what)


def assert_gradients(grads, grad_output, input, weight, output, what="", **how):
    """Each gradient that is not None is right, within its bound."""
    arguments = (grad_output, input, weight, output)
    wants, bounds = reference_gradients(*arguments), gradient_bounds(*arguments, **how)
    for name, got, want, bound in zip(("input", "weight", "bias"), grads, wants, bounds):
        if got is not None:
            assert got.dtype == input.dtype, f"{what} grad_{name}: {got.dtype}"
            assert_close(got, want, bound, f"{what} grad_{name}")


def mlp_layers(input, weights, biases, relu_last, **how):
    """[(exact result, bound)] of every layer of fused_mlp."""
    h, error = input.double(), torch.zeros_like(input, dtype=torch.float64)
    results = []
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        w = weight.double().t()
        z, scale, carried = h @ w, (h.abs() + error) @ w.abs(), error @ w.abs()
        if bias is not None:
            z, scale = z + bias.double(), scale + bias.double().abs()
        terms = weight.shape[1] + (bias is not None)
        error = carried + sum_bound(terms, scale, z.abs() + carried, input.dtype, **how)
        h = relu(z) if relu_last or i + 1 < len(weights) else z
        results.append((h, error))
    return results


def assert_mlp(got, input, weights, biases, relu_last=False, what="output", **how):
    """`got` is fused_mlp(input, weights, biases, relu_last), within its bound."""
    assert got.dtype == input.dtype, f"{what}: {got.dtype}, want {input.dtype}"
    want, bound = mlp_layers(input, weights, biases, relu_last, **how)[-1]
    assert_close(got, want, bound, what)


def mlp_gradients(grad_output, input, weights, hidden, output=None, **how):
    """[(exact gradient, bound)] of input, weights and biases.

    `hidden` are the results of all layers but the last as the operator had
    them, and `output` the last one's where it has a ReLU.
    """
    bias_how = {**how, "tf32": False}
    m = math.prod(input.shape[:-1])
    grad, error = grad_output.double(), torch.zeros_like(grad_output, dtype=torch.float64)
    of_weights, of_biases = [], []
    for i in reversed(range(len(weights))):
        y = output if i + 1 == len(weights) else hidden[i]
        if y is not None:
            grad, error = grad * relu_mask(y), error * relu_mask(y)
        size = grad.abs() + error
        for results, x, options in [
            (of_weights, input if i == 0 else hidden[i - 1], how),
            (of_biases, input.new_ones(*input.shape[:-1], 1), bias_how),
        ]:
            x = rows(x.double())
            want, scale = rows(grad).t() @ x, rows(size).t() @ x.abs()
            carried = rows(error).t() @ x.abs()
            bound = carried + sum_bound(m, scale, want.abs() + carried, input.dtype, **options)
            results.insert(0, (want, bound))
        w = weights[i].double()
        carried = error @ w.abs()
        grad, scale = grad @ w, size @ w.abs()
        error = carried + sum_bound(
            w.shape[0], scale, grad.abs() + carried, input.dtype, **how
        )
    of_biases = [(want[:, 0], bound[:, 0]) for want, bound in of_biases]
    return [(grad, error), *of_weights, *of_biases]


def assert_mlp_gradients(grads, *arguments, what="", **how):
    """Each gradient that is not None is right, within its bound; `arguments`
    are those of mlp_gradients."""
    wants = mlp_gradients(*arguments, **how)
    assert len(grads) == len(wants), what
    for place, (got, (want, bound)) in enumerate(zip(grads, wants)):
        if got is not None:
            assert got.dtype == arguments[1].dtype, f"{what} gradient {place}: {got.dtype}"
            assert_close(got, want, bound, f"{what} gradient {place}")
