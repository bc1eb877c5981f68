"""Bernoulli negative log-likelihood, row sums: from logits, softplus(logits) - x logits, or from
probabilities, -x log p - (1 - x) log(1 - p), as ``F.binary_cross_entropy`` has it.

One kernel serves forward (``nll``), backward (``grad`` in, gradients out) and both at
once, with ``scale`` for the gradient of every row: outputs that are None are not computed.
"""

import torch
import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows
from .device import (
    divide,
    exp_scaled,
    load_rows,
    load_tile,
    log1m_half,
    log1p_unit,
    store_rows,
    store_tile,
    store_tile_sum,
    tile,
)
from .launch import (
    empty_samples,
    launch_tiles,
    partial_sums,
    samples_of,
    stride_of,
    sum_samples,
    sum_stages,
    tiling,
)

# Below it torch divides the gradient by this instead of p (1 - p): a float32, in float64 too.
LEAST_VARIANCE = tl.constexpr(torch.tensor(1e-12).item())


@triton.jit
def terms_of_logits(logits, x, PTX: tl.constexpr):
    """The nll of each element, and its gradients in logits and x."""
    odds = exp_scaled(tl.abs(logits), -1.0, PTX)
    nll = tl.maximum(logits, 0.0) - x * logits + log1p_unit(odds, PTX)
    mean = divide(tl.where(logits >= 0.0, 1.0, odds), 1.0 + odds, PTX)
    return nll, mean - x, -logits


@triton.jit
def log_probability(p):
    """log p, of subnormal numbers too, which libdevice's float32 logarithm flushes to 0."""
    if p.dtype == tl.float64:
        return tl.log(p)
    tiny = p < 1.1754943508222875e-38
    return tl.log(tl.where(tiny, p * 16777216.0, p)) - tl.where(tiny, 16.635532333438686, 0.0)


@triton.jit
def terms_of_probabilities(p, x, PTX: tl.constexpr):
    """The nll of each element, and its gradients in p and x, clamped where torch clamps them.

    The gradient in x is not. Outside [0, 1] all are NaN: comparisons keep one that ``tl.maximum``
    would drop.
    """
    p = tl.where((p >= 0.0) & (p <= 1.0) & (x >= 0.0) & (x <= 1.0), p, float("nan"))
    rest = 1.0 - p
    low = p < rest
    smaller = tl.where(low, p, rest)  # exact, as 1 - p is from p = 1/2 on
    log_smaller, log_larger = log_probability(smaller), log1m_half(smaller, PTX)
    dx = tl.where(low, log_larger - log_smaller, log_smaller - log_larger)
    log_smaller = tl.where(log_smaller < -100.0, -100.0, log_smaller)
    log_p = tl.where(low, log_smaller, log_larger)
    log_rest = tl.where(low, log_larger, log_smaller)
    nll = -x * log_p - (1.0 - x) * log_rest
    variance = p * rest
    variance = tl.where(variance < LEAST_VARIANCE, LEAST_VARIANCE, variance)
    return nll, divide(p - x, variance, PTX), dx


@triton.jit
def bernoulli_nll_kernel(
    recon_ptr,
    x_ptr,
    grad_ptr,
    nll_ptr,
    drecon_ptr,
    dx_ptr,
    recon_stride,
    x_stride,
    grad_stride,
    scale: tl.float64,
    rows,  # of x, and of recon for every sample
    cols,
    col_tiles,
    PROBABILITIES: tl.constexpr,  # recon: probabilities instead of logits
    SUM_ROWS: tl.constexpr,  # nll: one number a tile instead of one a row of the tile
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    x_row, row, col, cols, valid, mask = tile(
        rows, cols, col_tiles, True, VEC, BLOCK_ROWS, BLOCK_COLS
    )

    recon = load_tile(recon_ptr, row, col, recon_stride * VEC, mask, ACC)
    x = load_tile(x_ptr, x_row, col, x_stride * VEC, mask, ACC)
    if PROBABILITIES:
        nll, drecon, dx = terms_of_probabilities(recon, x, PTX)
    else:
        nll, drecon, dx = terms_of_logits(recon, x, PTX)

    if nll_ptr is not None:
        nll = tl.sum(tl.where(mask, nll, 0.0), axis=1)
        if SUM_ROWS:
            store_tile_sum(nll_ptr, nll, valid)
        else:
            store_rows(nll_ptr, nll, row, valid, tl.num_programs(1).to(tl.int64) * rows, col_tiles)

    if grad_ptr is not None:
        grad = load_rows(grad_ptr, row, valid, grad_stride, ACC)
    else:
        grad = tl.full((BLOCK_ROWS, 1), scale, ACC)
    if drecon_ptr is not None:
        store_tile(drecon_ptr, row, col, cols, mask, grad * drecon)
    if dx_ptr is not None:
        store_tile(dx_ptr, row, col, cols, mask, grad * dx)


def launch_bernoulli_nll(
    recon, x, *, probabilities=False, grad=None, scale=1.0, output=None, needs=(False,) * 2
):
    """Launch on operands as the op has them.

    ``output`` is None, "rows" (the sums [rows]) or "tiles" (their partial sums, one a program).
    Returns it with the gradients that ``needs`` asks of (recon, x).
    """
    recon, x = as_rows(recon), as_rows(x)
    samples, x_rows = samples_of(recon, x)
    tiles = tiling(*x_rows.shape, recon, x_rows, samples=samples)
    nll = partial_sums(recon, tiles, output, samples)
    drecon = empty_like_rows(recon, needs[0])
    dx = empty_samples(x, recon, tiles.acc, needs[1])
    launch_tiles(
        bernoulli_nll_kernel,
        tiles,
        [recon, x_rows, grad, nll, drecon, dx],
        [recon, x_rows],
        [stride_of(grad), scale],
        programs=samples,
        PROBABILITIES=probabilities,
        SUM_ROWS=output == "tiles",
    )
    if output == "rows":
        nll = sum_stages(nll, tiles.col_tiles)
    return nll, [g for g in (drecon, sum_samples(dx, x)) if g is not None]


def bernoulli_nll(recon, x, probabilities):
    return launch_bernoulli_nll(recon, x, probabilities=probabilities, output="rows")[0]


def bernoulli_nll_backward(dnll, recon, x, probabilities, needs):
    return launch_bernoulli_nll(recon, x, probabilities=probabilities, grad=dnll, needs=needs)[1]
