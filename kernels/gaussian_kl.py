"""KL between diagonal Gaussians, KL(N(mu, exp logvar) || N(prior_mu, exp prior_logvar)).

Row sums of 0.5 ((mu - prior_mu)^2 exp(-prior_logvar) + expm1(d) - d), with
d = logvar - prior_logvar. One kernel serves forward (``kl``) and backward (``grad`` in,
gradients out); no prior means the standard one.
"""

import triton
import triton.language as tl

from .device import (
    exp_scaled,
    expm1,
    expm1_minus_x,
    in_units_of_prior,
    load_rows,
    load_tile,
    store_rows,
    store_tile,
    tile_cols,
    tile_rows,
)
from .launch import (
    accumulator,
    as_rows,
    constants,
    empty_like_rows,
    launch,
    partial_sums,
    row_sums,
    stride_of,
    tiling,
)
from .library import KernelFunction, gradients_like, once_differentiable, register, spread


@triton.jit
def gaussian_kl_kernel(
    mu_ptr,
    logvar_ptr,
    prior_mu_ptr,
    prior_logvar_ptr,
    grad_ptr,
    kl_ptr,
    dmu_ptr,
    dlogvar_ptr,
    dprior_mu_ptr,
    dprior_logvar_ptr,
    mu_stride,
    logvar_stride,
    prior_mu_stride,
    prior_logvar_stride,
    grad_stride,
    rows,
    cols,
    col_tiles,
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    cols *= VEC
    row = tile_rows(col_tiles, BLOCK_ROWS)
    col = tile_cols(col_tiles, BLOCK_COLS)
    mask = (row < rows)[:, None] & (col < cols)[None, :]

    mu = load_tile(mu_ptr, row, col, mu_stride * VEC, mask, ACC)
    logvar = load_tile(logvar_ptr, row, col, logvar_stride * VEC, mask, ACC)
    distance, log_ratio, root = in_units_of_prior(
        mu, logvar, prior_mu_ptr, prior_logvar_ptr, row, col,
        prior_mu_stride * VEC, prior_logvar_stride * VEC, mask, ACC, PTX,
    )  # fmt: skip
    if prior_mu_ptr is not None:
        # Not exp(log_ratio), which would blow up the rounding error of that difference.
        ratio = exp_scaled(logvar, 0.5, PTX) * root
        variance = ratio * ratio
    else:
        variance = exp_scaled(logvar, 1.0, PTX)

    if kl_ptr is not None:
        kl = distance * distance + expm1_minus_x(log_ratio, variance)
        kl = 0.5 * tl.sum(kl, axis=1)
        store_rows(kl_ptr, kl, row, row < rows, rows, col_tiles)

    if grad_ptr is not None:
        grad = load_rows(grad_ptr, row, row < rows, grad_stride, ACC)
        dmu = grad * (distance * root)
        dlogvar = 0.5 * grad * expm1(log_ratio, variance)
        if dmu_ptr is not None:
            store_tile(dmu_ptr, row, col, cols, mask, dmu)
        if dlogvar_ptr is not None:
            store_tile(dlogvar_ptr, row, col, cols, mask, dlogvar)
        if dprior_mu_ptr is not None:
            store_tile(dprior_mu_ptr, row, col, cols, mask, -dmu)
        if dprior_logvar_ptr is not None:
            dprior_logvar = -dlogvar - 0.5 * grad * (distance * distance)
            store_tile(dprior_logvar_ptr, row, col, cols, mask, dprior_logvar)


def launch_gaussian_kl(inputs, *, grad=None, needs=(False,) * 4):
    """Launch on (mu, logvar, prior_mu, prior_logvar), each [rows, cols] or None.

    Returns the KL of each row, or with ``grad`` [rows] the gradients that ``needs`` asks of.
    """
    inputs = [as_rows(t) for t in inputs]
    rows, cols = inputs[0].shape
    acc = accumulator(*inputs)
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    tiles = tiling(rows, cols, *inputs)
    kl = partial_sums(inputs[0], acc, tiles, "rows" if grad is None else None)
    arguments = [
        *inputs,
        grad,
        kl,
        *gradients,
        *(stride_of(t, tiles.vector) for t in inputs),
        stride_of(grad),
        rows,
        cols // tiles.vector,
        tiles.col_tiles,
    ]
    if rows:
        launch(gaussian_kl_kernel, (tiles.programs,), arguments, constants(tiles, acc))
    return row_sums(kl) if grad is None else [g for g in gradients if g is not None]


def _forward(mu, logvar, prior_mu, prior_logvar):
    return launch_gaussian_kl((mu, logvar, prior_mu, prior_logvar))


def _forward_fake(mu, logvar, prior_mu, prior_logvar):
    acc = accumulator(mu, logvar, prior_mu, prior_logvar)
    return mu.new_empty(mu.shape[0], dtype=acc)


def _backward(grad, mu, logvar, prior_mu, prior_logvar, needs):
    return launch_gaussian_kl((mu, logvar, prior_mu, prior_logvar), grad=grad, needs=needs)


def _backward_fake(grad, mu, logvar, prior_mu, prior_logvar, needs):
    return gradients_like((mu, logvar, prior_mu, prior_logvar), needs)


gaussian_kl_op = register(
    "gaussian_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar) -> Tensor",
    _forward,
    _forward_fake,
)
gaussian_kl_backward_op = register(
    "gaussian_kl_backward(Tensor grad, Tensor mu, Tensor logvar, Tensor? prior_mu, "
    "Tensor? prior_logvar, bool[] needs) -> Tensor[]",
    _backward,
    _backward_fake,
)


class GaussianKL(KernelFunction):
    @staticmethod
    def forward(mu, logvar, prior_mu, prior_logvar):
        return gaussian_kl_op(mu, logvar, prior_mu, prior_logvar)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        needs = ctx.needs_input_grad
        return spread(gaussian_kl_backward_op(grad, *ctx.saved_tensors, list(needs)), needs)


def gaussian_kl(mu, logvar, prior_mu=None, prior_logvar=None):
    """Twin of ``reference.gaussian_kl`` on [rows, cols]."""
    return GaussianKL.apply(mu, logvar, prior_mu, prior_logvar)
