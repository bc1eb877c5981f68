"""Product of the marginals of a mixture: sum_d log sum_k w_k N(z_d; mu_kd, s_kd).

Each latent is a mixture of its own and has its own programs. They work as in ``mixture_log_prob``:
a thread owns one row or one component, and goes through the others. Each pass takes one exponential
per row, component and latent. Logarithms are to base 2, like the instruction.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

from ..rows import accumulator
from .device import exp2
from .pairs import (
    add_exps,
    batch_of,
    excess_log_weight,
    in_tiles,
    launch_backward,
    launch_pairs,
    log_weights_of,
    own_and_others,
)

LOG2_E = math.log2(math.e)
# Distances in standard deviations are scaled by it, so that their squares are logarithms to base 2.
SCALE = math.sqrt(0.5 * LOG2_E)


@triton.jit
def log_densities(
    z, mu, inverse, constant_ptr, row, component, dataset_size, batch, ACC: tl.constexpr
):
    """Log densities of a tile [BLOCK_OTHERS, BLOCK_OWN], up to a shared constant."""
    distance = (z - mu) * inverse
    logs = tl.load(constant_ptr + component) - distance * distance
    if dataset_size is not None:
        excess = excess_log_weight(row, component, dataset_size, batch, ACC)
        logs += 1.4426950408889634 * excess
    return logs


@triton.jit
def marginals_log_prob_kernel(
    z_ptr,
    mu_ptr,
    inverse_ptr,
    constant_ptr,
    logsumexp_ptr,
    dataset_size,
    batch,
    rows,
    components,
    stretch,
    cols,
    BLOCK_OTHERS: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    rows, components, latent, row, start, end, other = own_and_others(
        rows, components, stretch, BLOCK_OTHERS, BLOCK_OWN
    )
    mu_ptr, inverse_ptr = mu_ptr + latent * components, inverse_ptr + latent * components
    constant_ptr += latent * components
    z = tl.load(z_ptr + latent * rows + row)
    greatest = tl.full((1, BLOCK_OWN), float("-inf"), ACC)
    total = tl.zeros((1, BLOCK_OWN), ACC)
    for first in range(start, end, BLOCK_OTHERS):
        component = first + other
        mu, inverse = tl.load(mu_ptr + component), tl.load(inverse_ptr + component)
        logs = log_densities(z, mu, inverse, constant_ptr, row, component, dataset_size, batch, ACC)
        greatest, total = add_exps(logs, greatest, total, True, PTX)
    stage = tl.program_id(1).to(tl.int64) * cols + latent
    tl.store(logsumexp_ptr + stage * rows + row, greatest + tl.log2(total))


@triton.jit
def marginals_log_prob_rows_kernel(
    z_ptr,
    mu_ptr,
    inverse_ptr,
    constant_ptr,
    logsumexp_ptr,
    upstream_ptr,
    dz_ptr,
    dataset_size,
    batch,
    rows,
    components,
    stretch,
    cols,
    BLOCK_OTHERS: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    rows, components, latent, row, start, end, other = own_and_others(
        rows, components, stretch, BLOCK_OTHERS, BLOCK_OWN
    )
    mu_ptr, inverse_ptr = mu_ptr + latent * components, inverse_ptr + latent * components
    constant_ptr += latent * components
    z = tl.load(z_ptr + latent * rows + row)
    logsumexp = tl.load(logsumexp_ptr + latent * rows + row)
    pull = tl.zeros((1, BLOCK_OWN), ACC)
    for first in range(start, end, BLOCK_OTHERS):
        component = first + other
        mu, inverse = tl.load(mu_ptr + component), tl.load(inverse_ptr + component)
        logs = log_densities(z, mu, inverse, constant_ptr, row, component, dataset_size, batch, ACC)
        # 1 / std is multiplied in twice, because its square may overflow where this does not.
        scaled = (exp2(logs - logsumexp, PTX) * inverse) * (mu - z)
        pull += tl.sum(scaled * inverse, axis=0)[None, :]
    stage = tl.program_id(1).to(tl.int64) * cols + latent
    tl.store(dz_ptr + stage * rows + row, pull * tl.load(upstream_ptr + row))


@triton.jit
def marginals_log_prob_components_kernel(
    z_ptr,
    mu_ptr,
    inverse_ptr,
    constant_ptr,
    logsumexp_ptr,
    upstream_ptr,
    zeroth_ptr,
    first_ptr,
    second_ptr,
    dataset_size,
    batch,
    components,
    rows,
    stretch,
    cols,
    BLOCK_OTHERS: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    """Per component, the weighted moments of z - mu."""
    components, rows, latent, component, start, end, other = own_and_others(
        components, rows, stretch, BLOCK_OTHERS, BLOCK_OWN
    )
    z_ptr, logsumexp_ptr = z_ptr + latent * rows, logsumexp_ptr + latent * rows
    constant_ptr += latent * components
    mu = tl.load(mu_ptr + latent * components + component)
    inverse = tl.load(inverse_ptr + latent * components + component)
    zeroth = tl.zeros((1, BLOCK_OWN), ACC)
    one, two = tl.zeros((1, BLOCK_OWN), ACC), tl.zeros((1, BLOCK_OWN), ACC)
    for begin in range(start, end, BLOCK_OTHERS):
        row = begin + other
        z, logsumexp = tl.load(z_ptr + row), tl.load(logsumexp_ptr + row)
        logs = log_densities(z, mu, inverse, constant_ptr, row, component, dataset_size, batch, ACC)
        weights = tl.load(upstream_ptr + row) * exp2(logs - logsumexp, PTX)
        weighted = weights * (z - mu)
        zeroth += tl.sum(weights, axis=0)[None, :]
        one += tl.sum(weighted, axis=0)[None, :]
        two += tl.sum(weighted * (z - mu), axis=0)[None, :]
    stage = tl.program_id(1).to(tl.int64) * cols + latent
    where = stage * components + component
    tl.store(zeroth_ptr + where, zeroth)
    tl.store(first_ptr + where, one)
    tl.store(second_ptr + where, two)


def operands(z, mu, logvar, log_weights, dataset_size):
    """(z, mu, 1 / std, the constant of each log density), each [cols, rows or components]."""
    acc, rows, components = accumulator(z, mu, logvar, log_weights), len(z), len(mu)
    logvar = logvar.t().to(acc)
    log_weights = log_weights_of(components, log_weights, dataset_size, acc)
    constant = LOG2_E * (log_weights - 0.5 * logvar)
    return [
        in_tiles(z.t(), rows, acc),
        in_tiles(mu.t(), components, acc),
        # A padding of 0 would make NaN of an infinite z.
        in_tiles(SCALE * torch.exp(-0.5 * logvar), components, acc, 1.0),
        in_tiles(constant, components, acc, -math.inf),
    ]


def marginals_log_prob(z, mu, logvar, log_weights, dataset_size=None):
    """[log-densities [rows], the log-sum-exps that backward needs [cols, rows]].

    With ``dataset_size`` the components are a batch of such a data set, in the order of z, and
    their weights are stratified. Only ``kl_decomposition`` asks for this.
    """
    rows, cols = z.shape
    tensors = operands(z, mu, logvar, log_weights, dataset_size)
    wide, components = tensors[0].shape[1], tensors[1].shape[1]
    (logsumexp,), stages = launch_pairs(
        marginals_log_prob_kernel,
        wide,
        components,
        tensors,
        [(cols, wide)],
        batch_of(z, dataset_size),
        cols,
    )
    if stages > 1:
        logsumexp = LOG2_E * torch.logsumexp(logsumexp / LOG2_E, 0)
    logsumexp = logsumexp[:, :rows].clone()
    log_prob = logsumexp.sum(0) / LOG2_E - 0.5 * cols * math.log(2 * math.pi)
    return [log_prob, logsumexp]


def marginals_log_prob_backward(
    dlog_prob, z, mu, logvar, log_weights, logsumexp, needs, dataset_size=None
):
    """The wanted gradients, from dlog_prob [rows]."""
    inputs, (rows, cols), components = (z, mu, logvar, log_weights), z.shape, len(mu)
    tensors, scalars = operands(*inputs, dataset_size), batch_of(z, dataset_size)
    kernels = marginals_log_prob_rows_kernel, marginals_log_prob_components_kernel
    given = tensors, logsumexp, dlog_prob, scalars, needs
    pulls, moments = launch_backward(*kernels, *given, cols)
    found: list[Any] = [None] * 4
    if pulls is not None:
        found[0] = (pulls[:, :rows] / SCALE**2).t()
    if moments is not None:
        inverse = tensors[2][:, :components]
        zeroth, first, second = (t[:, :components] for t in moments)
        first, second = (t * inverse * inverse / SCALE**2 for t in (first, second))
        found[1:3] = first.t(), 0.5 * (second - zeroth).t()
        found[3] = zeroth.sum(0) if needs[3] else None
    gradients = zip(found, inputs, needs, strict=True)
    return [g.to(t.dtype).contiguous() for g, t, needed in gradients if needed]
