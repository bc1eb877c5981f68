"""Multinomial negative log-likelihood of each row, from logits a and counts x of sum n.

It is n logsumexp(a) - x . a + sum log x! - log n!. With c(x) = log x! - x log x + x this is
n (logsumexp(a) - log n) - c(n), plus the sum over counts of x (log x - a) + c(x). No term is large
where the nll is not.

One kernel serves forward (``nll``), backward (``dnll`` in, gradient out) and both at once, with
``scale`` for the gradient of every row. A program takes whole rows. A row longer than a tile is
read in pieces, and read again for the gradient.
"""

import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows
from .categorical_nll import add_exps_of_piece, load_piece
from .counts import count_constant
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
from .launch import (
    divide_up,
    launch_tiles,
    most_elements,
    partial_sums,
    samples_of,
    stride_of,
    tiling_of,
)


@triton.jit
def terms_of_counts(x, logits, PTX: tl.constexpr):
    """x (log x - a) + c(x): 0 for a zero, NaN for a negative count."""
    count = tl.where(x > 0.0, x, 1.0)
    log_x = tl.log(count)
    terms = count * (log_x - logits) + count_constant(count, log_x, PTX)
    return tl.where(x == 0.0, 0.0, tl.where(x > 0.0, terms, float("nan")))


@triton.jit
def multinomial_nll_kernel(
    logits_ptr,
    x_ptr,
    dnll_ptr,
    nll_ptr,
    dlogits_ptr,
    logits_stride,
    x_stride,
    dnll_stride,
    scale: tl.float64,
    rows,  # of x, and of logits for every sample
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
    x_row, row, col, cols, valid, mask = tile(rows, cols, 1, True, VEC, BLOCK_ROWS, BLOCK_COLS)
    stride, x_stride = logits_stride * VEC, x_stride * VEC
    greatest = tl.full((BLOCK_ROWS,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_ROWS,), ACC)
    if WHOLE:
        logits = load_piece(logits_ptr, row, col, stride, mask, ACC)
        x = load_tile(x_ptr, x_row, col, x_stride, mask, ACC)
        greatest, total = add_exps_of_piece(logits, greatest, total, PTX)
        # The greatest logit is subtracted first, so that nothing cancels at a probability near 1.
        n, terms = x, terms_of_counts(x, logits - greatest[:, None], PTX)
        base = tl.zeros_like(greatest)
    else:
        n = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
        terms = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
        for piece in range(pieces):
            here = col + piece * BLOCK_COLS
            inside = valid[:, None] & (here < cols)[None, :]
            logits = load_piece(logits_ptr, row, here, stride, inside, ACC)
            x = load_tile(x_ptr, x_row, here, x_stride, inside, ACC)
            greatest, total = add_exps_of_piece(logits, greatest, total, PTX)
            n += x
            terms += terms_of_counts(x, logits, PTX)
        base = greatest
    n, terms = tl.sum(n, axis=1), tl.sum(terms, axis=1)

    if nll_ptr is not None:
        some = tl.where(n > 0.0, n, 1.0)
        log_n = tl.log(some)
        constant = tl.where(n > 0.0, count_constant(some, log_n, PTX), 0.0)
        of_n = tl.where(n > 0.0, some * ((base - log_n) + tl.log(total)), 0.0)
        nll = (terms - constant) + of_n
        if SUM_ROWS:
            store_tile_sum(nll_ptr, nll, valid)
        else:
            store_rows(nll_ptr, nll, row, valid, tl.num_programs(1).to(tl.int64) * rows, 1)

    if dlogits_ptr is not None:
        if dnll_ptr is not None:
            grad = load_rows(dnll_ptr, row, valid, dnll_stride, ACC)
        else:
            grad = tl.full((BLOCK_ROWS, 1), scale, ACC)
        grad = tl.where((terms == terms)[:, None], grad, float("nan"))
        factor = divide(n, total, PTX)[:, None]
        if WHOLE:
            slope = factor * exp_scaled(logits - greatest[:, None], 1.0, PTX) - x
            store_tile(dlogits_ptr, row, col, cols, mask, grad * slope)
        else:
            for piece in range(pieces):
                here = col + piece * BLOCK_COLS
                inside = valid[:, None] & (here < cols)[None, :]
                logits = load_piece(logits_ptr, row, here, stride, inside, ACC)
                x = load_tile(x_ptr, x_row, here, x_stride, inside, ACC)
                slope = factor * exp_scaled(logits - greatest[:, None], 1.0, PTX) - x
                store_tile(dlogits_ptr, row, here, cols, inside, grad * slope)


def launch_multinomial_nll(logits, x, *, dnll=None, scale=1.0, values=None, needs=()):
    logits, x = as_rows(logits), as_rows(x)
    samples, x = samples_of(logits, x)
    tiling = tiling_of(*x.shape, logits, x, samples=samples, largest=most_elements(logits, x))
    pieces = tiling.col_tiles
    tiling = tiling._replace(programs=divide_up(tiling.rows, tiling.block_rows))
    nll = partial_sums(logits, tiling._replace(col_tiles=1), values, samples)
    dlogits = empty_like_rows(logits, any(needs))
    launch_tiles(
        multinomial_nll_kernel,
        tiling,
        [logits, x, dnll, nll, dlogits],
        [logits, x],
        [stride_of(dnll), scale],
        programs=samples,
        WHOLE=pieces == 1,
        SUM_ROWS=values == "total",
    )
    return nll, [] if dlogits is None else [dlogits]
