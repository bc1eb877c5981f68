"""Bound, normalised weights and effective sample size from log weights [samples, rows].

The formulas are in ``../triton/importance_weights.py``.

A tile is a stretch of rows, and its sums over the samples are in float64.
"""

import numpy as np
import torch

from ..rows import accumulator
from .compiler import elementwise, helper, inline, kernel
from .device import exp, expm1, fill, log, log1p_unit, scale
from .launch import launch
from .loops import subtract
from .memory import TILE, load, operand, present, sample_of, target, tiles, workspace


@inline
def relative_weight(log_weight, extreme, order):
    """exp(order * (log_weight - extreme)), which is 1 at the extreme and less elsewhere.

    The difference comes first: of two products one would be rounded and the other fused with the
    subtraction. Where the extreme is infinitely likely the others weigh 0; NaN stays NaN.
    """
    real = type(log_weight)
    infinity = real(np.inf)
    shift = real(0.0) if abs(extreme) == infinity else extreme
    weight = exp(real(order) * (log_weight - shift))
    here = real(order) * log_weight
    below = real(order) * extreme == infinity and here < infinity
    return real(1.0) if here == infinity else real(0.0) if below else weight


@elementwise
def copy_to(values, result):
    real = result.dtype.type
    for i in range(result.size):
        result[i] = real(values[i])


@elementwise
def observe(log_weights, greatest, least, total):
    for i in range(log_weights.size):
        x = log_weights[i]
        greatest[i] = x if x > greatest[i] else greatest[i]
        least[i] = x if x < least[i] else least[i]
        total[i] += x


@elementwise
def weigh_samples(log_weights, order, extreme, weights, total, squares):
    for i in range(log_weights.size):
        weight = relative_weight(log_weights[i], extreme[i], order)
        weights[i] = weight
        total[i] += weight
        squares[i] += weight * weight


@elementwise
def add_excess(log_weights, order, mean, excess):
    real = log_weights.dtype.type
    for i in range(log_weights.size):
        above = real(order * (log_weights[i] - mean[i]))
        excess[i] += expm1(above)


@inline
def are_close(order, greatest, least, mean):
    return abs(order) * (greatest - mean) < 0.5 and abs(order) * (mean - least) < 0.5


@helper
def any_close(order, greatest, least, mean):
    found = False
    for i in range(mean.size):
        found = found or are_close(order, greatest[i], least[i], mean[i])
    return found


@elementwise
def conclude_importance(order, samples, greatest, least, mean, total, squares, excess, bound, ess):
    """The rounding error of a logarithm is divided by order: where the weights are close to each
    other, as they are with a small order, it is taken of 1 + something small.
    """
    real = bound.dtype.type
    for i in range(bound.size):
        close = are_close(order, greatest[i], least[i], mean[i])
        near = log1p_unit(real(excess[i] / samples if close else 0.0)) / order + mean[i]
        extreme = least[i] if order < 0.0 else greatest[i]
        far = log(real(total[i] / samples)) / order + extreme
        bound[i] = real(near if close else far)
        # Where all weights are zero, no sample counts: 0 / 1.
        ess[i] = real(total[i] * total[i] / (1.0 if squares[i] == 0.0 else squares[i]))


@elementwise
def divide(weights, total):
    real = weights.dtype.type
    for i in range(weights.size):
        weights[i] /= real(1.0) if total[i] == 0.0 else real(total[i])


@kernel
def importance_weights_kernel(
    queue, step, rows, cols, scratch, samples, order, log_ratio_ptr, nll_ptr, weights_ptr,
    log_weights_ptr, bound_ptr, ess_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    sums = np.empty((4, TILE))
    for tile in tiles(queue, step, rows, cols):
        _, count, _, _ = tile
        mean, total, squares = sums[0][:count], sums[1][:count], sums[2][:count]
        excess, greatest, least = sums[3][:count], scratch[0][:count], scratch[1][:count]
        bound, ess = target(bound_ptr, tile, scratch[2]), target(ess_ptr, tile, scratch[3])
        for empty in (mean, total, squares, excess):
            fill(empty, 0.0)
        fill(greatest, -np.inf)
        fill(least, np.inf)
        for k in range(samples):
            here = sample_of(tile, k, rows)
            log_weights = load(log_ratio_ptr, here, scratch[4])
            if present(nll_ptr):
                log_ratio, nll = log_weights, load(nll_ptr, here, scratch[5])
                log_weights = target(log_weights_ptr, here, scratch[6])
                subtract(log_ratio, nll, log_weights)
            observe(log_weights, greatest, least, mean)
        scale(mean, 1.0 / samples)
        if order == 0.0:
            copy_to(mean, bound)
            fill(ess, samples)
        near = any_close(order, greatest, least, mean)
        extreme = least if order < 0.0 else greatest  # that of the sample with the greatest weight
        for k in range(samples):
            here = sample_of(tile, k, rows)
            weights = target(weights_ptr, here, scratch[5])
            if order == 0.0:
                fill(weights, 1.0 / samples)
                continue
            where = log_weights_ptr if present(nll_ptr) else log_ratio_ptr
            log_weights = load(where, here, scratch[4])
            weigh_samples(log_weights, order, extreme, weights, total, squares)
            if near:
                add_excess(log_weights, order, mean, excess)
        if order != 0.0:
            conclude_importance(
                order, samples, greatest, least, mean, total, squares, excess, bound, ess
            )
            for k in range(samples):
                divide(target(weights_ptr, sample_of(tile, k, rows), scratch[5]), total)


def importance_weights(log_ratio, nll, alpha):
    """[bound, weights, ess], and with an nll the log weights, which else are log_ratio itself."""
    samples, rows = log_ratio.shape
    acc = accumulator(log_ratio, nll)
    weights = torch.empty((samples, rows), dtype=acc, device="cpu")
    bound, ess = weights.new_empty(rows), weights.new_empty(rows)
    log_weights = None if nll is None else torch.empty_like(weights)
    matrices = [
        None if t is None else t.reshape(-1) for t in (log_ratio, nll, weights, log_weights)
    ]
    launch(
        importance_weights_kernel,
        acc,
        rows,
        1,
        samples,
        1.0 - alpha,
        *map(operand, (*matrices, bound, ess)),
        cost=2.0 * samples,
    )
    return [bound, weights, ess] + ([] if nll is None else [log_weights])
