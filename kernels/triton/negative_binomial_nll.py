"""Negative binomial negative log-likelihood, row sums, of log means m and log dispersions a.

With the inverse dispersion theta = exp a, mu = exp m and s = m - a it is theta softplus(s) +
x softplus(-s) - log(Gamma(x + theta) / (Gamma(theta) x!)). For x = 0 only the first term is left.
All other counts take Loader's saddle-point form (``counts``): two deviances, and Stirling's errors.

The zero-inflated nll is that of pi [x = 0] + (1 - pi) NB(x), with pi = sigmoid(zero_logits).

One kernel serves forward (``nll``), backward (``dnll`` in, gradients out) and both at once, with
``scale`` for the gradient of every row: outputs that are None are not computed.
"""

import torch
import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows, padded
from .counts import (
    HALF_LOG_2PI,
    count_constant,
    deviance,
    log1p_positive,
    stirling_error,
    stirling_slope,
)
from .device import (
    divide,
    exp_scaled,
    expm1,
    load_rows,
    load_tile,
    log1p_unit,
    store_rows,
    store_tile,
    store_tile_sum,
    tile,
)
from .launch import (
    divide_up,
    launch_tiles,
    partial_sums,
    power_of_two,
    samples_of,
    stride_of,
    sum_stages,
    tiling_of,
)


@triton.jit
def bounded(x):
    """x, clamped so that exp(x) and exp(-x) are normal numbers; NaN stays NaN."""
    MOST: tl.constexpr = 700.0 if x.dtype == tl.float64 else 80.0
    x = tl.where(x > MOST, MOST, x)
    return tl.where(x < -MOST, -MOST, x)


@triton.jit
def of_zeros(m, a, PTX: tl.constexpr):
    """(theta softplus(m - a), its slopes in m and a)."""
    low = m < a
    mu = exp_scaled(tl.where(m > 0.0, bounded(m), m), 1.0, PTX)
    theta = exp_scaled(bounded(a), 1.0, PTX)
    less, more = tl.where(mu < theta, mu, theta), tl.where(mu < theta, theta, mu)
    q = less / more  # an exact division: theta softplus(s) may be 1e10 times as large
    log1p = log1p_unit(q, PTX)
    larger = divide(1.0, 1.0 + q, PTX)
    softplus = (m - a) + log1p
    # Where mu is the smaller one, theta log(1 + q) is mu log(1 + q) / q.
    quotient = tl.where(q > 0.0, log1p / tl.where(q > 0.0, q, 1.0), 1.0)
    value = tl.where(low, mu * quotient, theta * softplus)
    # log(1 + q) - q / (1 + q), which is q^2 / 2 near zero
    rest = q * q * larger - deviance(q, log1p, PTX)
    return value, less * larger, theta * tl.where(low, rest, softplus - larger)


@triton.jit
def inflated_zeros(value, z, PTX: tl.constexpr):
    """(-log(pi + (1 - pi) exp(-value)), its slopes in value and in z), with pi = sigmoid(z)."""
    odds = exp_scaled(-tl.abs(z), 1.0, PTX)
    odds_after = exp_scaled(-tl.abs(z + value), 1.0, PTX)
    inverse, inverse_after = divide(1.0, 1.0 + odds, PTX), divide(1.0, 1.0 + odds_after, PTX)
    genuine = tl.where(z > 0.0, odds * inverse, inverse)
    lost = -genuine * expm1(-value, exp_scaled(-value, 1.0, PTX))  # 1 - the probability
    below = z + value < 0.0
    smaller = odds_after * inverse_after
    dvalue = tl.where(below, inverse_after, smaller)
    after = tl.where(below, smaller, inverse_after)
    near = lost < 0.5
    # Otherwise z < 0, and the result is value + softplus(z) - softplus(z + value).
    ratio = divide(lost, tl.where(near, 1.0 - lost, 1.0), PTX)
    difference = log1p_unit(odds, PTX) - log1p_unit(odds_after, PTX)
    far = tl.where(below, value, -z) + difference
    return tl.where(near, log1p_unit(tl.where(near, ratio, 0.0), PTX), far), dvalue, -after * lost


@triton.jit
def of_counts(x, m, a, PTX: tl.constexpr):
    """(nll, its slopes in m and a) for x > 0."""
    log_mu, log_theta = bounded(m), bounded(a)
    mu, theta = exp_scaled(log_mu, 1.0, PTX), exp_scaled(log_theta, 1.0, PTX)
    n = theta + x
    inverse = 1.0 / (theta + mu)
    t, u = (x - mu) * inverse, n * inverse
    log_x, log_u, log_n = tl.log(x), tl.log(u), tl.log(n)
    opposite, ratio = -theta * t / x, mu / x * u
    log_ratio = tl.where(ratio > 1e-20, tl.log(tl.maximum(ratio, 1e-20)), log_u + (log_mu - log_x))
    of_theta = theta * deviance(t, log_u, PTX)
    value = of_theta + x * deviance(opposite, log_ratio, PTX) + count_constant(x, log_x, PTX)
    whole = tl.where(n >= 1.0, 0.5 * log_n - HALF_LOG_2PI, log_n)
    value += tl.where(theta >= 1.0, 0.5 * log1p_positive(x / theta, PTX), whole - log_theta)
    value += stirling_error(theta, log_theta, PTX) - stirling_error(n, log_n, PTX)
    # Beyond the bounds of m and a the nll is linear.
    value += tl.where(m > 0.0, theta, -x) * (m - log_mu)
    value += tl.where(log_theta > a, log_theta - a, 0.0)
    slope = stirling_slope(theta, log_theta, PTX) - theta / n * stirling_slope(n, log_n, PTX)
    return value, -theta * t, of_theta + (slope - 0.5 * x / n)


@triton.jit
def terms(x, m, a, z, INFLATED: tl.constexpr, PTX: tl.constexpr):
    """(nll, its slopes in m, a and z) of each element; NaN where x is negative."""
    zero = x == 0.0
    nll, dm, da = of_zeros(m, a, PTX)
    count = tl.where(x > 0.0, x, float("nan"))
    count_nll, count_dm, count_da = of_counts(tl.where(zero, 1.0, count), m, a, PTX)
    dz = z
    if INFLATED:
        nll, dnll, dz = inflated_zeros(nll, z, PTX)
        dm, da = dm * dnll, da * dnll
        odds = exp_scaled(-tl.abs(z), 1.0, PTX)
        inverse = divide(1.0, 1.0 + odds, PTX)
        count_nll += log1p_unit(odds, PTX) + tl.maximum(z, 0.0)
        dz = tl.where(zero, dz, tl.where(z > 0.0, inverse, odds * inverse))
    nll, dm = tl.where(zero, nll, count_nll), tl.where(zero, dm, count_dm)
    return nll, dm, tl.where(zero, da, count_da), dz


@triton.jit
def negative_binomial_nll_kernel(
    log_mean_ptr,
    x_ptr,
    log_theta_ptr,
    zero_logits_ptr,
    dnll_ptr,
    nll_ptr,
    dlog_mean_ptr,
    dzero_logits_ptr,
    dlog_theta_ptr,
    row_dlog_theta_ptr,  # [tiles of a row, rows]
    col_dlog_theta_ptr,  # [tiles of a column, cols]
    log_mean_stride,
    x_stride,
    log_theta_stride,
    zero_logits_stride,
    full_dnll_stride,
    row_log_theta_stride,
    dnll_stride,
    log_theta_value: tl.float64,
    scale: tl.float64,
    rows,  # of x, and of log_mean for every sample
    cols,
    col_tiles,
    THETA: tl.constexpr,  # "value": one float; "row": [rows, 1]; "element": [rows, cols]
    ELEMENTWISE: tl.constexpr,  # nll and dnll are [rows, cols]
    SUM_ROWS: tl.constexpr,  # nll: one number per tile instead of one per row
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    x_row, row, col, cols, valid, mask = tile(
        rows, cols, col_tiles, True, VEC, BLOCK_ROWS, BLOCK_COLS
    )
    all_rows = tl.num_programs(1).to(tl.int64) * rows

    m = load_tile(log_mean_ptr, row, col, log_mean_stride * VEC, mask, ACC)
    x = load_tile(x_ptr, x_row, col, x_stride * VEC, mask, ACC)
    if THETA == "element":
        a = load_tile(log_theta_ptr, row, col, log_theta_stride * VEC, mask, ACC)
    elif THETA == "row":
        a = load_rows(log_theta_ptr, row, valid, row_log_theta_stride, ACC)
        a = tl.broadcast_to(a, (BLOCK_ROWS, BLOCK_COLS))
    else:
        a = tl.full((BLOCK_ROWS, BLOCK_COLS), log_theta_value, ACC)

    z = m
    if zero_logits_ptr is not None:
        z = load_tile(zero_logits_ptr, row, col, zero_logits_stride * VEC, mask, ACC)
    nll, dm, da, dz = terms(x, m, a, z, zero_logits_ptr is not None, PTX)

    if nll_ptr is not None:
        if ELEMENTWISE:
            store_tile(nll_ptr, row, col, cols, mask, nll)
        else:
            nll = tl.sum(tl.where(mask, nll, 0.0), axis=1)
            if SUM_ROWS:
                store_tile_sum(nll_ptr, nll, valid)
            else:
                store_rows(nll_ptr, nll, row, valid, all_rows, col_tiles)

    if dnll_ptr is not None:
        if ELEMENTWISE:
            grad = load_tile(dnll_ptr, row, col, full_dnll_stride * VEC, mask, ACC)
        else:
            grad = load_rows(dnll_ptr, row, valid, dnll_stride, ACC)
    else:
        grad = tl.full((BLOCK_ROWS, 1), scale, ACC)
    if dlog_mean_ptr is not None:
        store_tile(dlog_mean_ptr, row, col, cols, mask, grad * dm)
    if dzero_logits_ptr is not None:
        store_tile(dzero_logits_ptr, row, col, cols, mask, grad * dz)
    da = grad * da
    if dlog_theta_ptr is not None:
        store_tile(dlog_theta_ptr, row, col, cols, mask, da)
    if row_dlog_theta_ptr is not None:
        store_rows(
            row_dlog_theta_ptr, tl.sum(tl.where(mask, da, 0.0), 1), row, valid, all_rows, col_tiles
        )
    if col_dlog_theta_ptr is not None:
        row_tiles = tl.num_programs(0) // col_tiles
        part = tl.program_id(1).to(tl.int64) * row_tiles + tl.program_id(0) // col_tiles
        by_column = tl.sum(tl.where(mask, da, 0.0), axis=0)
        tl.store(col_dlog_theta_ptr + part * cols + col, by_column, mask=col < cols)


class ThetaGradient:
    """Where a kernel writes the gradient of log_theta: elements, sums of rows, or sums of columns.

    ``kind`` is "value" where log_theta is None, "row" for [rows, 1], and else "element". A
    log_theta [1, cols] counts as elements, with a row stride of 0.
    """

    def __init__(self, log_theta, shape, wanted):
        self.kind = "value" if log_theta is None else "element"
        if log_theta is not None and log_theta.shape[1] == 1 < shape[1]:
            self.kind = "row"
        elif log_theta is not None:
            log_theta = as_rows(log_theta)
        self.like, self.wanted = log_theta, wanted
        self.wide = log_theta.expand(shape) if self.kind == "element" else None
        self.row_stride = stride_of(log_theta) if self.kind == "row" else 0
        self.by_column = wanted and self.kind == "element" and log_theta.shape != shape
        self.element = self.row = self.column = None

    def allocate(self, tensor, tiling, samples):
        self.col_tiles = tiling.col_tiles
        if self.by_column:
            parts = samples * tiling.programs // tiling.col_tiles
            self.column = tensor.new_empty(parts, tiling.cols, dtype=tiling.acc)
        elif self.wanted and self.kind == "row":
            self.row = partial_sums(tensor, tiling, "rows")
        elif self.wanted:
            self.element = empty_like_rows(self.like)
        return self.element, self.row, self.column

    def result(self):
        if self.column is not None:
            return self.column.sum(0, keepdim=True).to(self.like.dtype)
        if self.row is not None:
            return sum_stages(self.row, self.col_tiles).to(self.like.dtype)[:, None]
        return self.element


def launch_negative_binomial_nll(
    log_mean, x, log_theta, zero_logits, log_theta_value, elementwise=False, *, dnll=None,
    scale=1.0, values=None, needs=(),
):  # fmt: skip
    needs_mean, needs_theta, needs_zeros = padded(needs, 3)
    log_mean, x, zero_logits = as_rows(log_mean), as_rows(x), as_rows(zero_logits)
    samples, x = samples_of(log_mean, x)
    theta = ThetaGradient(log_theta, log_mean.shape, needs_theta)
    dnll = as_rows(dnll) if elementwise else dnll
    full = [log_mean, x, theta.wide, zero_logits, dnll if elementwise else None]
    tiling = tiling_of(*x.shape, *full, samples=samples)
    # With tiles of another shape, ptxas spills registers of the float64 kernels.
    tiling = compact(tiling, 16 if tiling.acc == torch.float64 else MOST_COLS)
    if elementwise and values:
        nll = log_mean.new_empty(log_mean.shape, dtype=tiling.acc)
    else:
        nll = partial_sums(log_mean, tiling, values, samples)
    dlog_mean = empty_like_rows(log_mean, needs_mean)
    dzero_logits = empty_like_rows(zero_logits, needs_zeros)
    sums = theta.allocate(log_mean, tiling, samples)
    outputs = [nll, dlog_mean, dzero_logits, *sums]
    launch_tiles(
        negative_binomial_nll_kernel,
        tiling,
        [log_mean, x, theta.like, zero_logits, dnll, *outputs],
        full,
        [theta.row_stride, 0 if elementwise else stride_of(dnll), log_theta_value, scale],
        programs=samples,
        THETA=theta.kind,
        ELEMENTWISE=elementwise,
        SUM_ROWS=values == "total",
    )
    if values == "rows" and not elementwise:
        nll = sum_stages(nll, tiling.col_tiles)
    return nll, [g for g in (dlog_mean, theta.result(), dzero_logits) if g is not None]


# 4 elements per thread, 1 in float64: with 8, kernels that write gradients run out of registers.
ELEMENTS = 512
MOST_COLS = 128  # so that a tile has several rows, over which a column is summed


def compact(tiling, most_cols=MOST_COLS):
    """The same tiling with tiles of ``ELEMENTS`` elements."""
    elements = ELEMENTS // 4 if tiling.acc == torch.float64 else ELEMENTS
    cols = min(tiling.block_cols, most_cols)
    rows = min(elements // cols, power_of_two(max(tiling.rows, 1)))
    cols = min(tiling.block_cols, elements // rows)  # few rows: a tile of more columns
    col_tiles = divide_up(tiling.cols, cols)
    programs = divide_up(tiling.rows, rows) * col_tiles
    return tiling._replace(block_rows=rows, block_cols=cols, col_tiles=col_tiles, programs=programs)
