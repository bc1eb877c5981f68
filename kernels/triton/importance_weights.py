"""Bound, normalised weights and effective sample size from log weights [samples, rows].

With a = 1 - alpha the bound is 1/a log mean_k w_k^a (alpha = 0: IWAE; alpha = 1, the limit:
the mean of log w) and the weights are w_k^a / sum_j w_j^a, its gradient. The log weights are
log_ratio - nll, or log_ratio alone.
"""

import math

import torch
import triton
import triton.language as tl

from ..rows import accumulator
from .device import exp_scaled, expm1, log1p_unit
from .launch import PTX, divide_up, launch, power_of_two, triton_dtype

ELEMENTS = 1024  # of a tile [BLOCK_SAMPLES, BLOCK_ROWS]; a quarter in float64, or registers spill
TILE_SAMPLES = 64


@triton.jit
def load_log_weights(log_ratio_ptr, nll_ptr, offset, nll_offset, mask, ACC: tl.constexpr):
    log_weights = tl.load(log_ratio_ptr + offset, mask=mask, other=0.0).to(ACC)
    if nll_ptr is not None:
        log_weights -= tl.load(nll_ptr + nll_offset, mask=mask, other=0.0).to(ACC)
    return log_weights


@triton.jit
def relative_weight(log_weights, extreme, order, PTX: tl.constexpr):
    """exp(order * (log_weights - extreme)), which is 1 at the extreme and less elsewhere.

    The difference comes first: ``order * log_weights - order * extreme`` compiles to a fused
    multiply-add, which at the extreme is the rounding error of the product and not 0.

    Where the weight of the extreme is infinite, the others weigh 0. NaN stays NaN.
    """
    shift = tl.where(tl.abs(extreme) == float("inf"), 0.0, extreme)
    weight = exp_scaled(order * (log_weights - shift), 1.0, PTX)
    certain, here = order * extreme == float("inf"), order * log_weights
    below = certain & (here < float("inf"))
    return tl.where(here == float("inf"), 1.0, tl.where(below, 0.0, weight))


@triton.jit
def importance_weights_kernel(
    log_ratio_ptr,
    nll_ptr,
    bound_ptr,
    weights_ptr,
    ess_ptr,
    log_weights_ptr,
    log_ratio_stride,
    log_ratio_row_stride,
    nll_stride,
    nll_row_stride,
    order: tl.float64,  # 1 - alpha
    log_samples: tl.float64,
    samples,
    rows,
    MEAN: tl.constexpr,  # order 0
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_SAMPLES).to(tl.int64)
    order = tl.full((), order, ACC)
    greatest = tl.full((BLOCK_ROWS,), float("-inf"), ACC)
    least = tl.full((BLOCK_ROWS,), float("inf"), ACC)
    mean = tl.zeros((BLOCK_ROWS,), ACC)
    for start in range(0, samples, BLOCK_SAMPLES):
        sample = start + lane
        mask = (sample < samples)[:, None] & (row < rows)[None, :]
        offset = (sample * log_ratio_stride)[:, None] + (row * log_ratio_row_stride)[None, :]
        nll_offset = (sample * nll_stride)[:, None] + (row * nll_row_stride)[None, :]
        log_weights = load_log_weights(log_ratio_ptr, nll_ptr, offset, nll_offset, mask, ACC)
        if log_weights_ptr is not None:
            out = (sample * rows)[:, None] + row[None, :]
            tl.store(log_weights_ptr + out, log_weights, mask=mask)
        high = tl.where(mask, log_weights, float("-inf"))
        greatest = tl.maximum(greatest, tl.max(high, axis=0))
        low = tl.where(mask, log_weights, float("inf"))
        least = tl.minimum(least, tl.min(low, axis=0))
        mean += tl.sum(tl.where(mask, log_weights, 0.0), axis=0)
    mean /= samples
    # That of the sample with the greatest weight.
    extreme = tl.where(order < 0.0, least, greatest)

    if MEAN:
        tl.store(bound_ptr + row, mean, mask=row < rows)
        tl.store(ess_ptr + row, tl.zeros((BLOCK_ROWS,), ACC) + samples, mask=row < rows)
    else:
        total = tl.zeros((BLOCK_ROWS,), ACC)
        squares = tl.zeros((BLOCK_ROWS,), ACC)
        excess = tl.zeros((BLOCK_ROWS,), ACC)
        for start in range(0, samples, BLOCK_SAMPLES):
            sample = start + lane
            mask = (sample < samples)[:, None] & (row < rows)[None, :]
            offset = (sample * log_ratio_stride)[:, None] + (row * log_ratio_row_stride)[None, :]
            nll_offset = (sample * nll_stride)[:, None] + (row * nll_row_stride)[None, :]
            log_weights = load_log_weights(log_ratio_ptr, nll_ptr, offset, nll_offset, mask, ACC)
            weight = relative_weight(log_weights, extreme[None, :], order, PTX)
            weight = tl.where(mask, weight, 0.0)
            total += tl.sum(weight, axis=0)
            squares += tl.sum(weight * weight, axis=0)
            above = order * (log_weights - mean[None, :])
            above = tl.where(mask, expm1(above, exp_scaled(above, 1.0, PTX)), 0.0)
            excess += tl.sum(above, axis=0)
        # The rounding error of the logarithm is divided by order. Where the weights are close to
        # each other, as with a small order, log(1 + something small) has a smaller error.
        close = tl.abs(order) * tl.maximum(greatest - mean, mean - least) < 0.5
        near = log1p_unit(tl.where(close, excess / samples, 0.0), PTX) / order + mean
        far = (tl.log(total) - tl.full((), log_samples, ACC)) / order + extreme
        bound = tl.where(close, near, far)
        tl.store(bound_ptr + row, bound, mask=row < rows)
        # Where all weights are zero, no sample counts: 0 / 1.
        ess = total * total / tl.where(squares == 0.0, 1.0, squares)
        tl.store(ess_ptr + row, ess, mask=row < rows)
        total = tl.where(total == 0.0, 1.0, total)

    for start in range(0, samples, BLOCK_SAMPLES):
        sample = start + lane
        mask = (sample < samples)[:, None] & (row < rows)[None, :]
        if MEAN:
            weight = tl.full((BLOCK_SAMPLES, BLOCK_ROWS), 1.0, ACC) / samples
        else:
            offset = (sample * log_ratio_stride)[:, None] + (row * log_ratio_row_stride)[None, :]
            nll_offset = (sample * nll_stride)[:, None] + (row * nll_row_stride)[None, :]
            log_weights = load_log_weights(log_ratio_ptr, nll_ptr, offset, nll_offset, mask, ACC)
            weight = relative_weight(log_weights, extreme[None, :], order, PTX) / total[None, :]
        tl.store(weights_ptr + (sample * rows)[:, None] + row[None, :], weight, mask=mask)


def importance_weights(log_ratio, nll, alpha):
    samples, rows = log_ratio.shape
    acc = accumulator(log_ratio, nll)
    weights = torch.empty((samples, rows), dtype=acc, device=log_ratio.device)
    bound, ess = weights.new_empty(rows), weights.new_empty(rows)
    log_weights = None if nll is None else torch.empty_like(weights)
    block_samples = min(power_of_two(samples), TILE_SAMPLES)
    elements = ELEMENTS // 4 if acc == torch.float64 else ELEMENTS
    block_rows = max(1, min(elements // block_samples, power_of_two(max(rows, 1))))
    arguments = [
        log_ratio,
        nll,
        bound,
        weights,
        ess,
        log_weights,
        *log_ratio.stride(),
        *((0, 0) if nll is None else nll.stride()),
        1.0 - alpha,
        math.log(samples),
        samples,
        rows,
    ]
    constexprs = {
        "MEAN": alpha == 1.0,
        "BLOCK_SAMPLES": block_samples,
        "BLOCK_ROWS": block_rows,
        "ACC": triton_dtype(acc),
        "PTX": PTX,
    }
    if rows:
        grid = (divide_up(rows, block_rows),)
        launch(importance_weights_kernel, grid, arguments, constexprs)
    return [bound, weights, ess] + ([] if nll is None else [log_weights])
