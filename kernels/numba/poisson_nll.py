"""Poisson negative log-likelihood, row sums: exp(log_rate) - x log_rate + log x!.

That is x (t - log(1 + t)) with t = exp(log_rate) / x - 1, and what the nll is at its least, t = 0:
nothing cancels (``counts``).

One kernel serves forward (``nll``), backward (``dnll`` in, gradients out) and both at once, with
``scale`` for the gradient of every row.
"""

import numpy as np

from ..rows import accumulator, empty_like_rows
from .compiler import elementwise, inline, kernel
from .counts import count_constant, deviance
from .device import exp, fill, log
from .launch import launch, samples_of
from .memory import (
    TILE,
    load,
    operand,
    present,
    sample_of,
    store,
    target,
    tiles,
    workspace,
)
from .sums import pieces_of_sums, row_sums

SMALLEST = 2.0**-126  # counts below, if any, are no more than a zero


@inline
def valid(x):
    """x, but NaN where it is negative."""
    real = type(x)
    return x if x >= real(0.0) else real(np.nan)


@elementwise
def constants_of_counts(x, constant, inverse, log_x):
    """The term that all samples share; it is 0 where x is 0, whose nll is the rate."""
    real = x.dtype.type
    for i in range(x.size):
        positive = x[i] >= real(SMALLEST)
        count = x[i] if positive else real(1.0)
        logarithm = log(count)
        least = count_constant(count, logarithm)
        constant[i] = least if positive else real(0.0) * valid(x[i])
        inverse[i] = real(1.0) / count if positive else real(0.0)
        log_x[i] = logarithm if positive else real(0.0)


@row_sums
def nll_of_counts(tensors, i):
    log_rate, x, constant, inverse, log_x = tensors
    rate = exp(log_rate[i])
    far = deviance((rate - x[i]) * inverse[i], log_rate[i] - log_x[i])
    return constant[i] + (x[i] * far if inverse[i] > type(rate)(0.0) else rate)


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
    pieces = pieces_of_sums(queue)
    fill(scratch[0], scale)
    for tile in tiles(queue, step, rows, cols):
        x = load(x_ptr, tile, scratch[1])
        grad, size = scratch[0][: x.size], x.size
        constant, inverse, log_x = scratch[6][:size], scratch[7][:size], scratch[8][:size]
        if present(nll_ptr):
            constants_of_counts(x, constant, inverse, log_x)
        for k in range(samples):
            here = sample_of(tile, k, rows)
            log_rate = load(log_rate_ptr, here, scratch[2])
            if present(nll_ptr):
                given = log_rate, x, constant, inverse, log_x
                nll_of_counts(given, here, cols, 1.0, pieces, nll_ptr, scratch[3])
            if present(dnll_ptr):
                grad = load(dnll_ptr, here, scratch[4])
            if present(drate_ptr):
                drate = target(drate_ptr, here, scratch[5])
                rate_gradient(grad, log_rate, x, drate)
                store(drate_ptr, here, drate)


def launch_poisson_nll(log_rate, x, *, dnll=None, scale=1.0, values=None, needs=()):
    samples, x = samples_of(log_rate, x, False)
    acc = accumulator(log_rate, x)
    nll = log_rate.new_empty(log_rate.shape[0], dtype=acc) if values else None
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
        tile=TILE,
        sums=log_rate.shape[0],
    )
    return nll, [] if drate is None else [drate]
