"""``negative_binomial_nll`` of means library * softmax(logits), which are never stored.

A program takes whole rows and reads them in pieces: once for the greatest logit and the sum of
exponentials, and again for the terms. With gradients it reads them a third time, because each logit
changes all means of its row. Until then the tensor of the gradient holds the slopes.
"""

import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows, padded
from .categorical_nll import add_exps_of_piece, load_piece
from .device import (
    divide,
    exp_scaled,
    load_rows,
    load_tile,
    store_rows,
    store_tile,
    store_tile_sum,
    tile,
)
from .launch import divide_up, launch_tiles, partial_sums, samples_of, stride_of, tiling_of
from .negative_binomial_nll import ThetaGradient, compact, terms


@triton.jit
def softmax_negative_binomial_nll_kernel(
    logits_ptr,
    x_ptr,
    log_theta_ptr,
    log_library_ptr,
    zero_logits_ptr,
    dnll_ptr,
    nll_ptr,
    dlogits_ptr,
    dlog_library_ptr,
    dzero_logits_ptr,
    dlog_theta_ptr,
    row_dlog_theta_ptr,  # [rows]
    col_dlog_theta_ptr,  # [tiles of a column, cols]
    logits_stride,
    x_stride,
    log_theta_stride,
    zero_logits_stride,
    row_log_theta_stride,
    log_library_stride,
    dnll_stride,
    log_theta_value: tl.float64,
    scale: tl.float64,
    rows,  # of x, and of logits for every sample
    cols,
    pieces,
    THETA: tl.constexpr,  # "value": one float; "row": [rows, 1]; "element": [rows, cols]
    SUM_ROWS: tl.constexpr,  # nll: one number per tile instead of one per row
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    x_row, row, col, cols, valid, _ = tile(rows, cols, 1, True, VEC, BLOCK_ROWS, BLOCK_COLS)
    all_rows = tl.num_programs(1).to(tl.int64) * rows
    greatest = tl.full((BLOCK_ROWS,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_ROWS,), ACC)
    for piece in range(pieces):
        here = col + piece * BLOCK_COLS
        inside = valid[:, None] & (here < cols)[None, :]
        logits = load_piece(logits_ptr, row, here, logits_stride * VEC, inside, ACC)
        greatest, total = add_exps_of_piece(logits, greatest, total, PTX)
    library = tl.load(log_library_ptr + row * log_library_stride, mask=valid, other=0.0).to(ACC)
    shift = (library - tl.log(total))[:, None]

    if dnll_ptr is not None:
        grad = load_rows(dnll_ptr, row, valid, dnll_stride, ACC)
    else:
        grad = tl.full((BLOCK_ROWS, 1), scale, ACC)
    if THETA == "row":
        a = load_rows(log_theta_ptr, row, valid, row_log_theta_stride, ACC)
        a = tl.broadcast_to(a, (BLOCK_ROWS, BLOCK_COLS))
    else:
        a = tl.full((BLOCK_ROWS, BLOCK_COLS), log_theta_value, ACC)
    nll_sum = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    dm_sum = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    da_sum = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    for piece in range(pieces):
        here = col + piece * BLOCK_COLS
        inside = valid[:, None] & (here < cols)[None, :]
        logits = load_tile(logits_ptr, row, here, logits_stride * VEC, inside, ACC)
        x = load_tile(x_ptr, x_row, here, x_stride * VEC, inside, ACC)
        m = (logits - greatest[:, None]) + shift
        if THETA == "element":
            a = load_tile(log_theta_ptr, row, here, log_theta_stride * VEC, inside, ACC)
        z = m
        if zero_logits_ptr is not None:
            z = load_tile(zero_logits_ptr, row, here, zero_logits_stride * VEC, inside, ACC)
        nll, dm, da, dz = terms(x, m, a, z, zero_logits_ptr is not None, PTX)
        nll_sum += tl.where(inside, nll, 0.0)
        dm, da = tl.where(inside, grad * dm, 0.0), tl.where(inside, grad * da, 0.0)
        dm_sum += dm
        if dlogits_ptr is not None:
            store_tile(dlogits_ptr, row, here, cols, inside, dm)
        if dzero_logits_ptr is not None:
            store_tile(dzero_logits_ptr, row, here, cols, inside, grad * dz)
        if dlog_theta_ptr is not None:
            store_tile(dlog_theta_ptr, row, here, cols, inside, da)
        if row_dlog_theta_ptr is not None:
            da_sum += da
        if col_dlog_theta_ptr is not None:
            part = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
            to = col_dlog_theta_ptr + part * cols + here
            tl.store(to, tl.sum(da, axis=0), mask=here < cols)

    if nll_ptr is not None:
        nll = tl.sum(nll_sum, axis=1)
        if SUM_ROWS:
            store_tile_sum(nll_ptr, nll, valid)
        else:
            store_rows(nll_ptr, nll, row, valid, all_rows, 1)
    if row_dlog_theta_ptr is not None:
        store_rows(row_dlog_theta_ptr, tl.sum(da_sum, axis=1), row, valid, all_rows, 1)
    slope = tl.sum(dm_sum, axis=1)
    if dlog_library_ptr is not None:
        store_rows(dlog_library_ptr, slope, row, valid, all_rows, 1)
    if dlogits_ptr is not None:
        factor = divide(slope, total, PTX)[:, None]
        for piece in range(pieces):
            here = col + piece * BLOCK_COLS
            inside = valid[:, None] & (here < cols)[None, :]
            logits = load_tile(logits_ptr, row, here, logits_stride * VEC, inside, ACC)
            dm = load_tile(dlogits_ptr, row, here, cols, inside, ACC)
            share = factor * exp_scaled(logits - greatest[:, None], 1.0, PTX)
            store_tile(dlogits_ptr, row, here, cols, inside, dm - share)


def launch_softmax_negative_binomial_nll(
    logits, x, log_theta, log_library, zero_logits, log_theta_value, *, dnll=None, scale=1.0,
    values=None, needs=(),
):  # fmt: skip
    needs_logits, needs_theta, needs_library, needs_zeros = padded(needs, 4)
    logits, x, zero_logits = as_rows(logits), as_rows(x), as_rows(zero_logits)
    samples, x = samples_of(logits, x)
    theta = ThetaGradient(log_theta, logits.shape, needs_theta)
    full = [logits, x, theta.wide, zero_logits]
    tiling = compact(tiling_of(*x.shape, *full, samples=samples))
    pieces = tiling.col_tiles
    of_rows = tiling._replace(col_tiles=1, programs=divide_up(tiling.rows, tiling.block_rows))
    nll = partial_sums(logits, of_rows, values, samples)
    dlogits = empty_like_rows(logits, needs_logits)
    dlog_library = partial_sums(logits, of_rows, "rows") if needs_library else None
    dzero_logits = empty_like_rows(zero_logits, needs_zeros)
    sums = theta.allocate(logits, of_rows, samples)
    launch_tiles(
        softmax_negative_binomial_nll_kernel,
        of_rows._replace(col_tiles=pieces),
        [
            *(logits, x, theta.like, log_library, zero_logits, dnll),
            *(nll, dlogits, dlog_library, dzero_logits, *sums),
        ],
        full,
        [theta.row_stride, stride_of(log_library), stride_of(dnll), log_theta_value, scale],
        programs=samples,
        THETA=theta.kind,
        SUM_ROWS=values == "total",
    )
    if dlog_library is not None:
        dlog_library = dlog_library.to(log_library.dtype)[:, None]
    gradients = dlogits, theta.result(), dlog_library, dzero_logits
    return nll, [g for g in gradients if g is not None]
