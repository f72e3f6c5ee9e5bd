"""Triton kernels that standardize filters; see filter_kernel.py.

This module needs triton. A program computes one filter, in the order in which it lies
in memory: mean and variance do not depend on the order.
"""

import triton
import triton.language as tl


@triton.jit
def _standardize(
    weight, gain, o, n, gamma, scale, GAINS: tl.constexpr, BLOCK: tl.constexpr
):
    """A filter with mean 0 and variance 1, what it is multiplied by, and its 1 / std.

    GAINS is the number of gains: 0 for none, 1 for one of the layer, 2 for one of each
    filter.
    """
    i = tl.arange(0, BLOCK)
    inside = i < n
    w = tl.load(weight + o * n + i, mask=inside, other=0.0).to(tl.float32)
    w = tl.where(inside, w - tl.sum(w, axis=0) / n, 0.0)
    inverse_std = 1.0 / tl.sqrt(tl.sum(w * w, axis=0) / n + gamma)
    factor = scale
    if GAINS == 1:
        factor = scale * tl.load(gain).to(tl.float32)
    if GAINS == 2:
        factor = scale * tl.load(gain + o).to(tl.float32)
    return w * inverse_std, factor, inverse_std


@triton.jit
def forward_kernel(
    weight, gain, out, n, gamma, scale, GAINS: tl.constexpr, BLOCK: tl.constexpr
):
    """Write gain * scale * (W - E) / sqrt(Var + gamma)."""
    o = tl.program_id(0).to(tl.int64)
    x, factor, _ = _standardize(weight, gain, o, n, gamma, scale, GAINS, BLOCK)
    i = tl.arange(0, BLOCK)
    tl.store(out + o * n + i, (x * factor).to(out.dtype.element_ty), mask=i < n)


@triton.jit
def backward_kernel(
    weight,
    gain,
    grad_out,
    grad_weight,
    grad_gain,
    n,
    gamma,
    scale,
    GAINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of the weight, and of the gain: one number for each filter."""
    o = tl.program_id(0).to(tl.int64)
    x, factor, inverse_std = _standardize(
        weight, gain, o, n, gamma, scale, GAINS, BLOCK
    )
    i = tl.arange(0, BLOCK)
    inside = i < n
    g = tl.load(grad_out + o * n + i, mask=inside, other=0.0).to(tl.float32)
    along = tl.sum(g * x, axis=0)
    grad = (g - tl.sum(g, axis=0) / n - x * (along / n)) * (factor * inverse_std)
    grad = grad.to(grad_weight.dtype.element_ty)
    tl.store(grad_weight + o * n + i, grad, mask=inside)
    if GAINS > 0:
        grad = (scale * along).to(grad_gain.dtype.element_ty)
        tl.store(grad_gain + o, grad)
