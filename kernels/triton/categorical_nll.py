"""Categorical negative log-likelihood of each row of logits: logsumexp(logits) - logits[target].

One kernel serves forward (``nll``), backward (``dnll`` in, gradient out) and both at once, with
``scale`` for the gradient of every row. A program takes whole rows. A row longer than a tile is
read in pieces, and read again for the gradient.
"""

import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows
from .device import (
    divide,
    exp_scaled,
    load_rows,
    store_rows,
    store_tile,
    store_tile_sum,
    tile,
)
from .launch import divide_up, launch_tiles, partial_sums, samples_of, stride_of, tiling_of


@triton.jit
def load_piece(ptr, row, col, stride, mask, ACC: tl.constexpr):
    offset = (row * stride)[:, None] + col[None, :]
    return tl.load(ptr + offset, mask=mask, other=float("-inf")).to(ACC)


@triton.jit
def add_exps_of_piece(logits, greatest, total, PTX: tl.constexpr):
    """(greatest, total) with one more piece: sum exp(logits) = exp(greatest) total."""
    top = tl.maximum(greatest, tl.max(logits, axis=1))
    # While all logits are -inf, 0 takes the place of the greatest: -inf - -inf is NaN.
    top = tl.where(top == float("-inf"), 0.0, top)
    total = total * exp_scaled(greatest - top, 1.0, PTX)
    return top, total + tl.sum(exp_scaled(logits - top[:, None], 1.0, PTX), axis=1)


@triton.jit
def add_piece(logits, col, target, greatest, total, chosen, PTX: tl.constexpr):
    """(greatest, total, chosen) with one more piece; ``chosen`` is the logit of the target."""
    greatest, total = add_exps_of_piece(logits, greatest, total, PTX)
    at_target = col[None, :] == target[:, None]
    return greatest, total, chosen + tl.sum(tl.where(at_target, logits, 0.0), axis=1)


@triton.jit
def gradient_of_piece(logits, col, target, greatest, total, PTX: tl.constexpr):
    probability = exp_scaled(logits - greatest[:, None], 1.0, PTX)
    probability *= divide(1.0, total, PTX)[:, None]
    return probability - tl.where(col[None, :] == target[:, None], 1.0, 0.0)


@triton.jit
def categorical_nll_kernel(
    logits_ptr,
    target_ptr,
    dnll_ptr,
    nll_ptr,
    dlogits_ptr,
    logits_stride,
    dnll_stride,
    scale: tl.float64,
    rows,  # of target, and of logits for every sample
    cols,
    pieces,
    WHOLE: tl.constexpr,  # a row is one piece
    SUM_ROWS: tl.constexpr,  # nll: one number per tile instead of one per row
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    target_row, row, col, cols, valid, mask = tile(rows, cols, 1, True, VEC, BLOCK_ROWS, BLOCK_COLS)
    target = tl.load(target_ptr + target_row, mask=valid, other=0)
    known = (target >= 0) & (target < cols)
    greatest = tl.full((BLOCK_ROWS,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_ROWS,), ACC)
    chosen = tl.zeros((BLOCK_ROWS,), ACC)
    stride = logits_stride * VEC
    if WHOLE:
        logits = load_piece(logits_ptr, row, col, stride, mask, ACC)
        greatest, total, chosen = add_piece(logits, col, target, greatest, total, chosen, PTX)
    else:
        for piece in range(pieces):
            here = col + piece * BLOCK_COLS
            inside = valid[:, None] & (here < cols)[None, :]
            logits = load_piece(logits_ptr, row, here, stride, inside, ACC)
            greatest, total, chosen = add_piece(logits, here, target, greatest, total, chosen, PTX)

    if nll_ptr is not None:
        nll = tl.where(known, (greatest - chosen) + tl.log(total), float("nan"))
        if SUM_ROWS:
            store_tile_sum(nll_ptr, nll, valid)
        else:
            store_rows(nll_ptr, nll, row, valid, tl.num_programs(1).to(tl.int64) * rows, 1)

    if dlogits_ptr is not None:
        if dnll_ptr is not None:
            grad = load_rows(dnll_ptr, row, valid, dnll_stride, ACC)
        else:
            grad = tl.full((BLOCK_ROWS, 1), scale, ACC)
        grad = tl.where(known[:, None], grad, float("nan"))
        if WHOLE:
            gradient = gradient_of_piece(logits, col, target, greatest, total, PTX)
            store_tile(dlogits_ptr, row, col, cols, mask, grad * gradient)
        else:
            for piece in range(pieces):
                here = col + piece * BLOCK_COLS
                inside = valid[:, None] & (here < cols)[None, :]
                logits = load_piece(logits_ptr, row, here, stride, inside, ACC)
                gradient = gradient_of_piece(logits, here, target, greatest, total, PTX)
                store_tile(dlogits_ptr, row, here, cols, inside, grad * gradient)


def launch_categorical_nll(logits, target, *, dnll=None, scale=1.0, values=None, needs=()):
    """Launch on logits [samples * rows, classes] and target [rows]."""
    logits = as_rows(logits)
    samples, target = samples_of(logits, target)
    tiling = tiling_of(len(target), logits.shape[1], logits, samples=samples)
    pieces = tiling.col_tiles
    tiling = tiling._replace(programs=divide_up(len(target), tiling.block_rows))
    nll = partial_sums(logits, tiling._replace(col_tiles=1), values, samples)
    dlogits = empty_like_rows(logits, any(needs))
    launch_tiles(
        categorical_nll_kernel,
        tiling,
        [logits, target.contiguous(), dnll, nll, dlogits],
        [logits],
        [stride_of(dnll), scale],
        programs=samples,
        WHOLE=pieces == 1,
        SUM_ROWS=values == "total",
    )
    return nll, [] if dlogits is None else [dlogits]
