"""Negative log-densities with a location and a scale, row sums.

They are RATE (distance(t) + width + CONSTANT) with t = (x - recon) exp(-RATE width). For a Gaussian
the width is the log variance and the distance t^2. For a Laplace they are the log scale and |t|.

One kernel serves forward (``nll``), backward (``dnll`` in, gradients out) and both at
once, with ``scale`` for the gradient of every row: outputs that are None are not computed.
``SIGN`` = -1 turns it into the log-density.
"""

import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows, padded
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
    tiling_of,
)


@triton.jit
def location_scale_kernel(
    recon_ptr,
    x_ptr,
    width_ptr,
    dnll_ptr,
    nll_ptr,
    drecon_ptr,
    dx_ptr,
    dwidth_ptr,
    recon_stride,
    x_stride,
    width_stride,
    dnll_stride,
    width_value: tl.float64,
    scale: tl.float64,
    rows,  # of x, and of recon for every sample
    cols,
    col_tiles,
    DISTANCE: tl.constexpr,  # function of t: the distance, and RATE times its slope
    RATE: tl.constexpr,
    CONSTANT: tl.constexpr,
    WIDTH: tl.constexpr,  # "value": one float; "row": [rows, 1]; "element": [rows, cols]
    SIGN: tl.constexpr,
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
    # How many columns the tile has: a term that is constant along a row is added once, times this.
    count = tl.minimum(cols - tl.program_id(0) % col_tiles * BLOCK_COLS, BLOCK_COLS).to(ACC)

    recon = load_tile(recon_ptr, row, col, recon_stride * VEC, mask, ACC)
    x = load_tile(x_ptr, x_row, col, x_stride * VEC, mask, ACC)
    if WIDTH == "element":
        width = load_tile(width_ptr, row, col, width_stride * VEC, mask, ACC)
    elif WIDTH == "row":
        width = load_rows(width_ptr, row, valid, width_stride, ACC)
    else:
        width = tl.full((BLOCK_ROWS, 1), width_value, ACC)
    inverse = exp_scaled(width, -RATE, PTX)
    distance, slope = DISTANCE((x - recon) * inverse)
    if WIDTH != "element":
        # Past the last column there is 0 * inverse, which may be 0 * inf.
        distance = tl.where(mask, distance, 0.0)

    if nll_ptr is not None:
        if WIDTH == "element":
            nll = tl.sum(distance + width, axis=1) + count * CONSTANT
        else:
            nll = tl.sum(distance, axis=1) + count * tl.sum(width + CONSTANT, axis=1)
        nll *= RATE * SIGN
        if SUM_ROWS:
            store_tile_sum(nll_ptr, nll, valid)
        else:
            store_rows(nll_ptr, nll, row, valid, all_rows, col_tiles)

    if dnll_ptr is not None:
        grad = SIGN * load_rows(dnll_ptr, row, valid, dnll_stride, ACC)
    else:
        grad = tl.full((BLOCK_ROWS, 1), scale, ACC) * SIGN
    dx = grad * (slope * inverse)
    if dx_ptr is not None:
        store_tile(dx_ptr, row, col, cols, mask, dx)
    if drecon_ptr is not None:
        store_tile(drecon_ptr, row, col, cols, mask, -dx)
    if dwidth_ptr is not None:
        if WIDTH == "element":
            store_tile(dwidth_ptr, row, col, cols, mask, RATE * grad * (1.0 - distance))
        else:
            dwidth = RATE * tl.sum(grad, axis=1) * (count - tl.sum(distance, axis=1))
            store_rows(dwidth_ptr, dwidth, row, valid, all_rows, col_tiles)


def launch_location_scale(
    recon,
    x,
    width,
    width_value,
    *,
    dnll=None,
    scale=1.0,
    sign=1,
    values=None,
    needs=(),
    **density,
):
    """Launch on operands as the op has them; ``density`` has DISTANCE, RATE and CONSTANT.

    ``width`` is [rows, cols], [rows, 1] or None for the float.
    """
    needs_recon, needs_x, needs_width = padded(needs, 3)
    recon, x, width = as_rows(recon), as_rows(x), as_rows(width)
    samples, x_rows = samples_of(recon, x)
    per_element = width is not None and width.shape[1] == x.shape[1]
    full, narrow = [recon, x_rows], [width, dnll]
    if per_element:
        full, narrow = [recon, x_rows, width], [dnll]
    tiling = tiling_of(*x_rows.shape, *full, samples=samples)
    nll = partial_sums(recon, tiling, values, samples)
    drecon = empty_like_rows(recon, needs_recon)
    dx = empty_samples(x, recon, tiling.acc, needs_x)
    if per_element:
        dwidth = empty_like_rows(width, needs_width)
    else:
        dwidth = partial_sums(recon, tiling, "rows" if needs_width else None)
    launch_tiles(
        location_scale_kernel,
        tiling,
        [recon, x_rows, width, dnll, nll, drecon, dx, dwidth],
        full,
        [*(stride_of(t) for t in narrow), width_value, scale],
        programs=samples,
        **density,
        WIDTH="value" if width is None else "element" if per_element else "row",
        SIGN=sign,
        SUM_ROWS=values == "total",
    )
    if needs_width and not per_element:
        dwidth = sum_stages(dwidth, tiling.col_tiles).to(width.dtype)[:, None]
    if values == "rows":
        nll = sum_stages(nll, tiling.col_tiles)
    return nll, [g for g in (drecon, sum_samples(dx, x), dwidth) if g is not None]
