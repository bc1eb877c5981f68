"""Bernoulli negative log-likelihood from logits, softplus(logits) - x logits, row sums.

One kernel serves forward (``nll``), backward (``grad`` in, gradients out) and both at
once, with ``scale`` for the gradient of every row: outputs that are None are not computed.
"""

import triton
import triton.language as tl

from .device import (
    divide,
    exp_scaled,
    load_rows,
    load_tile,
    log1p_unit,
    store_rows,
    store_tile,
    store_tile_sum,
    tile_cols,
    tile_rows,
)
from .launch import (
    accumulator,
    as_rows,
    constants,
    empty_like_rows,
    empty_samples,
    launch,
    partial_sums,
    row_sums,
    samples_of,
    stride_of,
    sum_samples,
    tiling,
)
from .library import KernelFunction, gradients_like, once_differentiable, register, spread


@triton.jit
def bernoulli_nll_kernel(
    logits_ptr,
    x_ptr,
    grad_ptr,
    nll_ptr,
    dlogits_ptr,
    dx_ptr,
    logits_stride,
    x_stride,
    grad_stride,
    scale: tl.float64,
    rows,  # of x, and of logits for every sample
    cols,
    col_tiles,
    SUM_ROWS: tl.constexpr,  # nll: one number a tile instead of one a row of the tile
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    cols *= VEC
    x_row = tile_rows(col_tiles, BLOCK_ROWS)
    row = x_row + tl.program_id(1).to(tl.int64) * rows
    valid = x_row < rows
    col = tile_cols(col_tiles, BLOCK_COLS)
    mask = valid[:, None] & (col < cols)[None, :]

    logits = load_tile(logits_ptr, row, col, logits_stride * VEC, mask, ACC)
    x = load_tile(x_ptr, x_row, col, x_stride * VEC, mask, ACC)
    odds = exp_scaled(tl.abs(logits), -1.0, PTX)

    if nll_ptr is not None:
        nll = tl.maximum(logits, 0.0) - x * logits + log1p_unit(odds, PTX)
        nll = tl.sum(tl.where(mask, nll, 0.0), axis=1)
        if SUM_ROWS:
            store_tile_sum(nll_ptr, nll, valid)
        else:
            store_rows(nll_ptr, nll, row, valid, tl.num_programs(1).to(tl.int64) * rows, col_tiles)

    if grad_ptr is not None:
        grad = load_rows(grad_ptr, row, valid, grad_stride, ACC)
    else:
        grad = tl.full((BLOCK_ROWS, 1), scale, ACC)
    if dlogits_ptr is not None:
        mean = divide(tl.where(logits >= 0.0, 1.0, odds), 1.0 + odds, PTX)
        store_tile(dlogits_ptr, row, col, cols, mask, grad * (mean - x))
    if dx_ptr is not None:
        store_tile(dx_ptr, row, col, cols, mask, -grad * logits)


def launch_bernoulli_nll(logits, x, *, grad=None, scale=1.0, output=None, needs=(False,) * 2):
    """Launch on logits [rows, cols].

    x may have fewer rows, of which logits then holds samples one after another. ``output`` is
    None, "rows" (the sums [rows]) or "tiles" (their partial sums, one a program). Returns it
    with the gradients that ``needs`` asks of (logits, x).
    """
    logits, x = as_rows(logits), as_rows(x)
    samples, x_rows = samples_of(logits, x)
    rows, cols = x_rows.shape
    acc = accumulator(logits, x)
    dlogits = empty_like_rows(logits, needs[0])
    dx = empty_samples(x, logits, acc, needs[1])
    tiles = tiling(rows, cols, logits, x_rows, samples=samples)
    nll = partial_sums(logits, acc, tiles, output, samples)
    arguments = [
        logits,
        x_rows,
        grad,
        nll,
        dlogits,
        dx,
        stride_of(logits, tiles.vector),
        stride_of(x_rows, tiles.vector),
        stride_of(grad),
        scale,
        rows,
        cols // tiles.vector,
        tiles.col_tiles,
    ]
    flags = {"SUM_ROWS": output == "tiles"}
    if rows:
        launch(
            bernoulli_nll_kernel,
            (tiles.programs, samples),
            arguments,
            flags | constants(tiles, acc),
        )
    if output == "rows":
        nll = row_sums(nll)
    return nll, [g for g in (dlogits, sum_samples(dx, x)) if g is not None]


def _forward(logits, x):
    return launch_bernoulli_nll(logits, x, output="rows")[0]


def _forward_fake(logits, x):
    return logits.new_empty(logits.shape[0], dtype=accumulator(logits, x))


def _backward(grad, logits, x, needs):
    return launch_bernoulli_nll(logits, x, grad=grad, needs=needs)[1]


def _backward_fake(grad, logits, x, needs):
    return gradients_like((logits, x), needs)


bernoulli_nll_op = register(
    "bernoulli_nll(Tensor logits, Tensor x) -> Tensor", _forward, _forward_fake
)
bernoulli_nll_backward_op = register(
    "bernoulli_nll_backward(Tensor grad, Tensor logits, Tensor x, bool[] needs) -> Tensor[]",
    _backward,
    _backward_fake,
)


class BernoulliNLL(KernelFunction):
    @staticmethod
    def forward(logits, x):
        return bernoulli_nll_op(logits, x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        needs = ctx.needs_input_grad
        return spread(bernoulli_nll_backward_op(grad, *ctx.saved_tensors, list(needs)), needs)


def bernoulli_nll(logits, x):
    """Twin of ``reference.bernoulli_nll`` on [rows, cols]; x as in the launcher."""
    return BernoulliNLL.apply(logits, x)
