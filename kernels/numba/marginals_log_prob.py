"""Product of the marginals of a mixture: sum_d log sum_k w_k N(z_d; mu_kd, s_kd).

Each latent is a mixture by itself, so a thread takes one latent with all rows and components. Its
backward has the gradients of both in one pass, with one exponential for a pair. No two threads
write to one place, and what a thread works on stays in its cache.

Logarithms are to base 2 inside, where an exponential takes a third less.
"""

import math

import numpy as np
import torch

from ..rows import accumulator
from .compiler import LANES, Restrict, elementwise, helper, inline, jit, kernel
from .device import exp2, fill, finite_or_zero
from .launch import launch
from .memory import in_place, load, operand, present, tiles, workspace
from .pairs import (
    LOG2_E,
    SCALE,
    STRETCH,
    conclude,
    log_density,
    put_aside,
    to_base_two,
    whole_blocks,
)
from .sums import REASSOCIATED

LINES = 1024  # rows, or components, at once: their numbers stay in the first cache
GROUP = 8  # components at once: they share what is read and written for a row
COST = 0.17, 0.22  # ns per pair, forward and backward


@elementwise
def add_log_weights(log_weights, constant):
    real = constant.dtype.type
    for i in range(constant.size):
        constant[i] += real(LOG2_E) * log_weights[i]


@elementwise
def add_components(z, mu, inverse, constant, greatest, total):
    """Add GROUP components to the sum: sum_k exp2(log_k) = exp2(greatest) total."""
    for i in range(z.size):
        top = greatest[i]
        for j in range(GROUP):
            top = max(top, log_density(z[i], mu[j], inverse[j], constant[j]))
        shift = finite_or_zero(top)
        sum_ = total[i] * exp2(greatest[i] - shift)
        for j in range(GROUP):
            log_one = log_density(z[i], mu[j], inverse[j], constant[j])
            sum_ += exp2(log_one - shift)
        greatest[i], total[i] = top, sum_


@inline
def share_and_pull(z, mu, inverse, log_ratio, upstream):
    """(upstream gradient times responsibility, the same times (z - mu) / std, z - mu)."""
    distance = z - mu
    scaled = distance * inverse
    share = upstream * exp2(log_ratio - scaled * scaled)
    # The scaled distance would not do: it may be infinite where the share is 0.
    return share, (share * inverse) * distance, distance


@jit(pipeline_class=Restrict, **REASSOCIATED)
def add_marginal_pulls(z, logsumexp, upstream, mu, inverse, constant, dz):
    """Add a component's part of the gradient of the rows, and the rows' part of its moments."""
    zeroth = first = second = z.dtype.type(0.0)
    for i in range(z.size):
        share, pull, distance = share_and_pull(
            z[i], mu, inverse, constant - logsumexp[i], upstream[i]
        )
        zeroth += share
        first += pull
        second += pull * distance
        dz[i] -= pull * inverse
    return zeroth, first, second


@helper
def part_of(operand, latent, start, stop, buffer, value):
    """Numbers [start, stop) of a latent, then ``value`` up to the end of the buffer."""
    found = load(operand, (latent, 1, start, stop - start), buffer)
    for i in range(stop - start):
        buffer[i] = found[i]
    for i in range(stop - start, buffer.size):
        buffer[i] = value
    return buffer


@helper
def components_of(mu_ptr, logvar_ptr, log_weights_ptr, latent, start, stop, size, scratch):
    """(mu, 1 / std, the constant of a log density) of components [start, stop)."""
    mu = part_of(mu_ptr, latent, start, stop, scratch[3][:size], 0.0)
    logvar = part_of(logvar_ptr, latent, start, stop, scratch[4][:size], 0.0)
    inverse, constant = scratch[5][:size], scratch[6][:size]
    to_base_two(logvar, inverse, constant)
    if present(log_weights_ptr):
        log_weights = part_of(log_weights_ptr, 0, start, stop, scratch[9][:size], 0.0)
        add_log_weights(log_weights, constant)
    return mu, inverse, constant


@kernel
def marginals_log_prob_kernel(
    queue, step, latents, _, scratch, rows, components, z_ptr, mu_ptr, logvar_ptr,
    log_weights_ptr, logsumexp_address,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    like = scratch[0]
    for latent, _, _, _ in tiles(queue, step, latents, 1, 1):
        for row in range(0, rows, LINES):
            end = min(row + LINES, rows)
            size = whole_blocks(end - row, LANES)
            z = part_of(z_ptr, latent, row, end, scratch[0][:size], 0.0)
            greatest, total = scratch[1][:size], scratch[2][:size]
            fill(greatest, -np.inf)
            fill(total, 0.0)
            for start in range(0, components, LINES):
                stop = min(start + LINES, components)
                count = whole_blocks(stop - start, GROUP)
                mu, inverse, constant = components_of(
                    mu_ptr, logvar_ptr, log_weights_ptr, latent, start, stop, count, scratch
                )
                fill(constant[stop - start :], -np.inf)
                for k in range(0, count, GROUP):
                    few = slice(k, k + GROUP)
                    add_components(z, mu[few], inverse[few], constant[few], greatest, total)
            conclude(greatest, total)
            found = in_place(logsumexp_address, latent * rows + row, end - row, like)
            for i in range(found.size):
                found[i] = total[i]


@kernel
def marginals_log_prob_backward_kernel(
    queue, step, latents, _, scratch, rows, components, z_ptr, mu_ptr, logvar_ptr,
    log_weights_ptr, logsumexp_ptr, upstream_ptr, dz_address, dmu_address, dlogvar_address,
    dlog_weights_address,
):  # fmt: skip
    """Add dz [latents, rows] and dmu, dlogvar, dlog_weights [latents, components], from zero on."""
    scratch = workspace(scratch, queue)
    like = scratch[0]
    real = like.dtype.type
    for latent, _, _, _ in tiles(queue, step, latents, 1, 1):
        dmu = in_place(dmu_address, latent * components, components, like)
        dlogvar = in_place(dlogvar_address, latent * components, components, like)
        dlog_weights = in_place(dlog_weights_address, latent * components, components, like)
        for row in range(0, rows, LINES):
            end = min(row + LINES, rows)
            size = whole_blocks(end - row, LANES)
            z = part_of(z_ptr, latent, row, end, scratch[0][:size], 0.0)
            logsumexp = part_of(logsumexp_ptr, latent, row, end, scratch[1][:size], np.inf)
            upstream = part_of(upstream_ptr, 0, row, end, scratch[2][:size], 0.0)
            dz, partial = scratch[7][:size], scratch[8][:size]
            fill(dz, 0.0)
            fill(partial, 0.0)
            for start in range(0, components, LINES):
                stop = min(start + LINES, components)
                count = stop - start
                mu, inverse, constant = components_of(
                    mu_ptr, logvar_ptr, log_weights_ptr, latent, start, stop, count, scratch
                )
                for k in range(count):
                    zeroth, first, second = add_marginal_pulls(
                        z, logsumexp, upstream, mu[k], inverse[k], constant[k], partial
                    )
                    scale = inverse[k] * real(1 / SCALE**2)
                    dmu[start + k] += first * scale
                    dlogvar[start + k] += real(0.5) * (second * scale - zeroth)
                    dlog_weights[start + k] += zeroth
                    if (k + 1) % STRETCH == 0 or k + 1 == count:
                        put_aside(partial, dz)
            found = in_place(dz_address, latent * rows + row, end - row, like)
            for i in range(found.size):
                found[i] = dz[i] * real(1 / SCALE**2)


def by_latents(tensor):
    return operand(tensor.t())


def of_components(log_weights):
    """The log weights as an operand that all latents share."""
    return operand(None if log_weights is None else log_weights[None])


def marginals_log_prob(z, mu, logvar, log_weights):
    """[log-densities [rows], the log-sum-exps that backward needs [cols, rows]]."""
    acc = accumulator(z, mu, logvar, log_weights)
    (rows, cols), components = z.shape, len(mu)
    logsumexp = torch.empty((cols, rows), dtype=acc, device="cpu")
    launch(
        marginals_log_prob_kernel,
        acc,
        cols,
        rows * components,
        rows,
        components,
        *map(by_latents, (z, mu, logvar)),
        of_components(log_weights),
        logsumexp.data_ptr(),
        cost=COST[0],
    )
    normalizer = 0.5 * math.log(2 * math.pi) + (math.log(components) if log_weights is None else 0)
    log_prob = math.log(2) * logsumexp.sum(0, dtype=torch.float64) - cols * normalizer
    return [log_prob.to(acc), logsumexp]


def marginals_log_prob_backward(dlog_prob, z, mu, logvar, log_weights, logsumexp, needs):
    """The wanted gradients, from dlog_prob [rows]."""
    inputs = z, mu, logvar, log_weights
    acc = logsumexp.dtype
    (rows, cols), components = z.shape, len(mu)
    # A row whose density is 0 pulls at no component.
    logsumexp = logsumexp.masked_fill(logsumexp == -math.inf, math.inf)
    found = [torch.zeros((cols, len(t)), dtype=acc, device="cpu") for t in (z, mu, mu, mu)]
    launch(
        marginals_log_prob_backward_kernel,
        acc,
        cols,
        rows * components,
        rows,
        components,
        *map(by_latents, inputs[:3]),
        of_components(log_weights),
        operand(logsumexp),
        by_latents(dlog_prob[:, None]),
        *(t.data_ptr() for t in found),
        cost=COST[1],
    )
    if needs[3]:
        found[3] = found[3].sum(0)
    gradients = zip(found, inputs, needs, strict=True)
    return [g.t().to(t.dtype).contiguous() for g, t, needed in gradients if needed]
