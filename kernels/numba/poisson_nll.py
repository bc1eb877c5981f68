"""Poisson negative log-likelihood, row sums: exp(log_rate) - x log_rate + log x!.

One kernel serves forward (``nll``), backward (``dnll`` in, gradients out) and both at once, with
``scale`` for the gradient of every row.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload

from ..rows import accumulator, empty_like_rows
from .compiler import INTERNAL, elementwise, inline, kernel, polynomial
from .device import exp, fill, log
from .launch import launch, samples_of
from .memory import (
    BLOCK,
    load,
    operand,
    present,
    sample_of,
    store,
    target,
    tiles,
    workspace,
)
from .sums import row_sums

INLINE: Any = {**INTERNAL, "forceinline": True}
# log y! = y (y - 1) FEW(y) for 0 <= y <= 3/2, with relative error 6e-8
FEW = polynomial(
    0.5772156119346619, -0.2452465295791626, 0.1553199589252472, -0.1140766367316246,
    0.08698200434446335, -0.061683591455221176, 0.03586243465542793, -0.014995669946074486,
    0.0038559860549867153, -0.0004492785083130002,
)  # fmt: skip
# log x! = (x + 1/2) log x - x + log(2 pi) / 2 + STIRLING(1 / x^2) / x, to 3e-9 from x = 4 on
STIRLING = polynomial(1 / 12, -1 / 360, 1 / 1260, -1 / 1680)


def log_factorial(x):
    """log Gamma(x + 1) for x >= 0."""
    raise NotImplementedError


@overload(log_factorial, jit_options=INLINE)  # too long for LLVM to do it by itself
def _(x):
    if x == types.float32:
        return lambda x: log_factorial_32(x)
    return lambda x: math.lgamma(x + 1.0)


@inline
def one_less(product, y):
    """x! = product y! with y one less, down to 3/2."""
    more = y >= np.float32(1.5)
    return (product * y if more else product), (y - np.float32(1.0) if more else y)


@inline
def log_factorial_32(x):
    """Below 4 by x! = x (x - 1) ... y!: exact of integers, but for the rounding of log."""
    product, y = one_less(np.float32(1.0), x)
    product, y = one_less(product, y)
    product, y = one_less(product, y)
    small = x < np.float32(4.0)
    logarithm = log(product if small else x)
    inverse = np.float32(1.0) / x
    tail = np.float32(0.5) * logarithm + np.float32(0.5 * math.log(2 * math.pi))
    tail += inverse * STIRLING(inverse * inverse)
    large = x * (logarithm - np.float32(1.0)) + tail
    return logarithm + y * (y - np.float32(1.0)) * FEW(y) if small else large


@inline
def valid(x):
    """x, but NaN where it is negative."""
    real = type(x)
    return x if x >= real(0.0) else real(np.nan)


@elementwise
def log_factorials(x, result):
    for i in range(result.size):
        result[i] = log_factorial(valid(x[i]))


@row_sums
def nll_of_counts(tensors, i):
    log_rate, x, constant = tensors
    return (exp(log_rate[i]) - x[i] * log_rate[i]) + constant[i]


@elementwise
def rate_gradient(grad, log_rate, x, drate):
    for i in range(drate.size):
        drate[i] = grad[i] * (exp(log_rate[i]) - valid(x[i]))


@kernel
def poisson_nll_kernel(
    queue, step, rows, cols, scratch, samples, scale, log_rate_ptr, x_ptr, dnll_ptr, nll_ptr,
    drate_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    partial = np.empty(BLOCK + samples)
    fill(scratch[0], scale)
    for tile in tiles(queue, step, rows, cols):
        x = load(x_ptr, tile, scratch[1])
        grad, constant = scratch[0][: x.size], scratch[6][: x.size]
        if present(nll_ptr):
            log_factorials(x, constant)
        for k in range(samples):
            here = sample_of(tile, k, rows)
            log_rate = load(log_rate_ptr, here, scratch[2])
            if present(nll_ptr):
                given = log_rate, x, constant
                nll_of_counts(given, here, cols, 1.0, partial[k:], nll_ptr, scratch[3])
            if present(dnll_ptr):
                grad = load(dnll_ptr, here, scratch[4])
            if present(drate_ptr):
                drate = target(drate_ptr, here, scratch[5])
                rate_gradient(grad, log_rate, x, drate)
                store(drate_ptr, here, drate)


def launch_poisson_nll(log_rate, x, *, dnll=None, scale=1.0, values=None, needs=()):
    samples, x = samples_of(log_rate, x, False)
    acc = accumulator(log_rate, x)
    nll = torch.empty(log_rate.shape[0], dtype=acc, device="cpu") if values else None
    drate = empty_like_rows(log_rate, any(needs))
    tensors = log_rate, x, dnll, nll, drate
    launch(
        poisson_nll_kernel,
        acc,
        *x.shape,
        samples,
        scale,
        *map(operand, tensors),
        cost=0.6 * samples,
    )
    return nll, [] if drate is None else [drate]
