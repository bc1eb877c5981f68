"""Negative log-likelihoods with one parameter per element, row sums: Bernoulli and Poisson.

One kernel serves forward (``nll``), backward (``dnll`` in, gradients out) and both at
once, with ``scale`` for the gradient of every row: outputs that are None are not computed.
"""

import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows, padded
from .device import load_rows, load_tile, store_rows, store_tile, store_tile_sum, tile
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
def one_parameter_kernel(
    recon_ptr,
    x_ptr,
    dnll_ptr,
    nll_ptr,
    drecon_ptr,
    dx_ptr,
    recon_stride,
    x_stride,
    dnll_stride,
    scale: tl.float64,
    rows,  # of x, and of recon for every sample
    cols,
    col_tiles,
    TERMS: tl.constexpr,  # function of (recon, x, PTX): the nll per element, its gradients in both
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

    recon = load_tile(recon_ptr, row, col, recon_stride * VEC, mask, ACC)
    x = load_tile(x_ptr, x_row, col, x_stride * VEC, mask, ACC)
    nll, drecon, dx = TERMS(recon, x, PTX)

    if nll_ptr is not None:
        nll = tl.sum(tl.where(mask, nll, 0.0), axis=1)
        if SUM_ROWS:
            store_tile_sum(nll_ptr, nll, valid)
        else:
            store_rows(nll_ptr, nll, row, valid, tl.num_programs(1).to(tl.int64) * rows, col_tiles)

    if dnll_ptr is not None:
        grad = load_rows(dnll_ptr, row, valid, dnll_stride, ACC)
    else:
        grad = tl.full((BLOCK_ROWS, 1), scale, ACC)
    if drecon_ptr is not None:
        store_tile(drecon_ptr, row, col, cols, mask, grad * drecon)
    if dx_ptr is not None:
        store_tile(dx_ptr, row, col, cols, mask, grad * dx)


def launch_one_parameter(
    terms, recon, x, *, largest=None, dnll=None, scale=1.0, values=None, needs=()
):  # fmt: skip
    """Launch such a likelihood; ``..likelihoods`` says what the arguments and results are.

    ``largest`` bounds the elements of a tile, where the terms take many registers.
    """
    needs_recon, needs_x = padded(needs, 2)
    recon, x = as_rows(recon), as_rows(x)
    samples, x_rows = samples_of(recon, x)
    tiling = tiling_of(*x_rows.shape, recon, x_rows, samples=samples, largest=largest)
    nll = partial_sums(recon, tiling, values, samples)
    drecon = empty_like_rows(recon, needs_recon)
    dx = empty_samples(x, recon, tiling.acc, needs_x)
    launch_tiles(
        one_parameter_kernel,
        tiling,
        [recon, x_rows, dnll, nll, drecon, dx],
        [recon, x_rows],
        [stride_of(dnll), scale],
        programs=samples,
        TERMS=terms,
        SUM_ROWS=values == "total",
    )
    if values == "rows":
        nll = sum_stages(nll, tiling.col_tiles)
    return nll, [g for g in (drecon, sum_samples(dx, x)) if g is not None]
