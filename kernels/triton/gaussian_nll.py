"""Diagonal-Gaussian negative log-density: -log N(x; recon, diag exp logvar), row sums.

One kernel serves forward (``nll``), backward (``grad`` in, gradients out) and both at
once, with ``scale`` for the gradient of every row: outputs that are None are not computed.
``SIGN`` = -1 turns it into the log-density.
"""

import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows
from .device import (
    exp_scaled,
    load_rows,
    load_tile,
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


@triton.jit
def gaussian_nll_kernel(
    recon_ptr,
    x_ptr,
    logvar_ptr,
    grad_ptr,
    nll_ptr,
    drecon_ptr,
    dx_ptr,
    dlogvar_ptr,
    recon_stride,
    x_stride,
    logvar_stride,
    grad_stride,
    logvar_value: tl.float64,
    scale: tl.float64,
    rows,  # of x, and of recon for every sample
    cols,
    col_tiles,
    LOGVAR: tl.constexpr,  # "value": one float; "row": [rows, 1]; "element": [rows, cols]
    SIGN: tl.constexpr,
    SUM_ROWS: tl.constexpr,  # nll: one number a tile instead of one a row of the tile
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    LOG_2PI: tl.constexpr = 1.8378770664093454836
    x_row, row, col, cols, valid, mask = tile(
        rows, cols, col_tiles, True, VEC, BLOCK_ROWS, BLOCK_COLS
    )
    all_rows = tl.num_programs(1).to(tl.int64) * rows
    # The columns of this tile: what is constant along a row is added once, times this.
    count = tl.minimum(cols - tl.program_id(0) % col_tiles * BLOCK_COLS, BLOCK_COLS).to(ACC)

    recon = load_tile(recon_ptr, row, col, recon_stride * VEC, mask, ACC)
    x = load_tile(x_ptr, x_row, col, x_stride * VEC, mask, ACC)
    if LOGVAR == "element":
        logvar = load_tile(logvar_ptr, row, col, logvar_stride * VEC, mask, ACC)
    elif LOGVAR == "row":
        logvar = load_rows(logvar_ptr, row, valid, logvar_stride, ACC)
    else:
        logvar = tl.full((BLOCK_ROWS, 1), logvar_value, ACC)
    inverse_std = exp_scaled(logvar, -0.5, PTX)
    residual = (x - recon) * inverse_std
    square = residual * residual
    if LOGVAR != "element":
        # Lanes past the end hold 0 * inverse_std, and that may be 0 * inf.
        square = tl.where(mask, square, 0.0)

    if nll_ptr is not None:
        if LOGVAR == "element":
            nll = tl.sum(square + logvar, axis=1) + count * LOG_2PI
        else:
            nll = tl.sum(square, axis=1) + count * tl.sum(logvar + LOG_2PI, axis=1)
        nll *= 0.5 * SIGN
        if SUM_ROWS:
            store_tile_sum(nll_ptr, nll, valid)
        else:
            store_rows(nll_ptr, nll, row, valid, all_rows, col_tiles)

    if grad_ptr is not None:
        grad = SIGN * load_rows(grad_ptr, row, valid, grad_stride, ACC)
    else:
        grad = tl.full((BLOCK_ROWS, 1), scale, ACC) * SIGN
    dx = grad * (residual * inverse_std)
    if dx_ptr is not None:
        store_tile(dx_ptr, row, col, cols, mask, dx)
    if drecon_ptr is not None:
        store_tile(drecon_ptr, row, col, cols, mask, -dx)
    if dlogvar_ptr is not None:
        if LOGVAR == "element":
            store_tile(dlogvar_ptr, row, col, cols, mask, 0.5 * grad * (1.0 - square))
        else:
            dlogvar = 0.5 * tl.sum(grad, axis=1) * (count - tl.sum(square, axis=1))
            store_rows(dlogvar_ptr, dlogvar, row, valid, all_rows, col_tiles)


def launch_gaussian_nll(
    recon, x, logvar, logvar_value, *, grad=None, scale=1.0, sign=1, output=None, needs=(False,) * 3
):
    """Launch on operands as the op has them.

    ``output`` is None, "rows" (the sums [rows]) or "tiles" (their partial sums, one a
    program). Returns it with the gradients that ``needs`` asks of (recon, x, logvar).
    """
    recon, x, logvar = as_rows(recon), as_rows(x), as_rows(logvar)
    samples, x_rows = samples_of(recon, x)
    per_element = logvar is not None and logvar.shape[1] == x.shape[1]
    full, narrow = [recon, x_rows], [logvar, grad]
    if per_element:
        full, narrow = [recon, x_rows, logvar], [grad]
    tiles = tiling(*x_rows.shape, *full, samples=samples)
    nll = partial_sums(recon, tiles, output, samples)
    drecon = empty_like_rows(recon, needs[0])
    dx = empty_samples(x, recon, tiles.acc, needs[1])
    if per_element:
        dlogvar = empty_like_rows(logvar, needs[2])
    else:
        dlogvar = partial_sums(recon, tiles, "rows" if needs[2] else None)
    launch_tiles(
        gaussian_nll_kernel,
        tiles,
        [recon, x_rows, logvar, grad, nll, drecon, dx, dlogvar],
        full,
        [*(stride_of(t) for t in narrow), logvar_value, scale],
        programs=samples,
        LOGVAR="value" if logvar is None else "element" if per_element else "row",
        SIGN=sign,
        SUM_ROWS=output == "tiles",
    )
    if needs[2] and not per_element:
        dlogvar = sum_stages(dlogvar, tiles.col_tiles).to(logvar.dtype)[:, None]
    if output == "rows":
        nll = sum_stages(nll, tiles.col_tiles)
    return nll, [g for g in (drecon, sum_samples(dx, x), dlogvar) if g is not None]


def gaussian_nll(recon, x, logvar, logvar_value, sign):
    return launch_gaussian_nll(recon, x, logvar, logvar_value, sign=sign, output="rows")[0]


def gaussian_nll_backward(dnll, recon, x, logvar, logvar_value, sign, needs):
    return launch_gaussian_nll(recon, x, logvar, logvar_value, grad=dnll, sign=sign, needs=needs)[1]
