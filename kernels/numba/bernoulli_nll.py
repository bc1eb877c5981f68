"""Bernoulli negative log-likelihood, row sums: from logits, softplus(logits) - x logits, or from
probabilities, -x log p - (1 - x) log(1 - p), as ``F.binary_cross_entropy`` has it.

One kernel serves forward (``nll``), backward (``dnll`` in, gradients out) and both at once, with
``scale`` for the gradient of every row.
"""

import numpy as np
import torch

from ..rows import accumulator, empty_like_rows, padded
from .compiler import elementwise, inline, kernel
from .device import exp, fill, log, log1m_half, log1p_unit
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
from .sums import add_rows, pieces_of_sums, row_sums

# torch divides the gradient by p (1 - p), or by this if it is greater: a float32, in float64 too.
LEAST_VARIANCE = torch.tensor(1e-12, dtype=torch.float32, device="cpu").item()


@inline
def nll_at(logit, x, odds):
    """The nll of one element, from odds = exp -|logit|."""
    zero = type(logit)(0.0)
    positive = logit if logit > zero else zero
    return positive - x * logit + log1p_unit(odds)


@inline
def mean_at(logit, odds):
    real = type(logit)
    return (real(1.0) if logit >= real(0.0) else odds) / (real(1.0) + odds)


@row_sums
def nll_of_logits(tensors, i):
    logits, x = tensors
    return nll_at(logits[i], x[i], exp(-abs(logits[i])))


@elementwise
def logits_gradient(grad, logits, x, drecon):
    for i in range(drecon.size):
        mean = mean_at(logits[i], exp(-abs(logits[i])))
        drecon[i] = grad[i] * (mean - x[i])


@elementwise
def logits_terms_and_gradient(grad, logits, x, nll, drecon):
    """Both from one exponential."""
    for i in range(nll.size):
        odds = exp(-abs(logits[i]))
        nll[i] = nll_at(logits[i], x[i], odds)
        drecon[i] = grad[i] * (mean_at(logits[i], odds) - x[i])


@elementwise
def subtract_logits_x_gradient(grad, logits, x, dx):
    for i in range(dx.size):
        dx[i] -= grad[i] * logits[i]


@inline
def valid(p, x):
    """p, but NaN where it or x is outside [0, 1]."""
    real = type(p)
    inside = p >= real(0.0) and p <= real(1.0) and x >= real(0.0) and x <= real(1.0)
    return p if inside else real(np.nan)


@inline
def logs_of(p):
    """(log p, log (1 - p)), of the smaller of the two that is exact and of its complement."""
    real = type(p)
    rest = real(1.0) - p
    low = p < rest
    smaller = p if low else rest  # exact, because 1 - p is exact from p = 1/2 on
    log_smaller, log_larger = log(smaller), log1m_half(smaller)
    return (log_smaller if low else log_larger), (log_larger if low else log_smaller)


@row_sums
def nll_of_probabilities(tensors, i):
    """The nll of one element, clamped where torch clamps it."""
    p, x = tensors
    real = type(p[i])
    log_p, log_rest = logs_of(valid(p[i], x[i]))
    log_p = real(-100.0) if log_p < real(-100.0) else log_p
    log_rest = real(-100.0) if log_rest < real(-100.0) else log_rest
    return -x[i] * log_p - (real(1.0) - x[i]) * log_rest


@elementwise
def probabilities_gradient(grad, p, x, drecon):
    real = drecon.dtype.type
    for i in range(drecon.size):
        inside = valid(p[i], x[i])
        variance = inside * (real(1.0) - inside)
        variance = real(LEAST_VARIANCE) if variance < real(LEAST_VARIANCE) else variance
        drecon[i] = grad[i] * ((inside - x[i]) / variance)


@elementwise
def subtract_probabilities_x_gradient(grad, p, x, dx):
    """Gradient in x (torch does not clamp it)."""
    for i in range(dx.size):
        log_p, log_rest = logs_of(valid(p[i], x[i]))
        dx[i] -= grad[i] * (log_p - log_rest)


@kernel
def bernoulli_nll_kernel(
    queue, step, rows, cols, scratch, samples, probabilities, scale, recon_ptr, x_ptr, dnll_ptr,
    nll_ptr, drecon_ptr, dx_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    pieces = pieces_of_sums(queue)
    fill(scratch[0], scale)
    for tile in tiles(queue, step, rows, cols):
        x = load(x_ptr, tile, scratch[1])
        grad = scratch[0][: x.size]
        dx = target(dx_ptr, tile, scratch[2])
        if present(dx_ptr):
            fill(dx, 0.0)
        for k in range(samples):
            here = sample_of(tile, k, rows)
            recon = load(recon_ptr, here, scratch[3])
            if present(dnll_ptr):
                grad = load(dnll_ptr, here, scratch[5])
            drecon = target(drecon_ptr, here, scratch[6])
            if present(nll_ptr):
                given, terms = (recon, x), scratch[4]
                if probabilities:
                    nll_of_probabilities(given, here, cols, 1.0, pieces, nll_ptr, terms)
                elif present(drecon_ptr):
                    terms = terms[: x.size]
                    logits_terms_and_gradient(grad, recon, x, terms, drecon)
                    add_rows(terms, here, cols, 1.0, pieces, nll_ptr)
                else:
                    nll_of_logits(given, here, cols, 1.0, pieces, nll_ptr, terms)
            if present(drecon_ptr):
                if probabilities:
                    probabilities_gradient(grad, recon, x, drecon)
                elif not present(nll_ptr):
                    logits_gradient(grad, recon, x, drecon)
                store(drecon_ptr, here, drecon)
            if present(dx_ptr):
                if probabilities:
                    subtract_probabilities_x_gradient(grad, recon, x, dx)
                else:
                    subtract_logits_x_gradient(grad, recon, x, dx)
        store(dx_ptr, tile, dx)


def launch_bernoulli_nll(recon, x, probabilities, *, dnll=None, scale=1.0, values=None, needs=()):
    needs_recon, needs_x = padded(needs, 2)
    samples, x = samples_of(recon, x, needs_x)
    acc = accumulator(recon, x)
    nll = recon.new_empty(recon.shape[0], dtype=acc) if values else None
    gradients = [empty_like_rows(recon, needs_recon), empty_like_rows(x, needs_x)]
    launch(
        bernoulli_nll_kernel,
        acc,
        *x.shape,
        samples,
        probabilities,
        scale,
        *map(operand, (recon, x, dnll, nll, *gradients)),
        cost=0.4 * samples,
        tile=TILE,
        sums=recon.shape[0],
    )
    return nll, [g for g in gradients if g is not None]
