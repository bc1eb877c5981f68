"""KL between diagonal Gaussians, KL(N(mu, exp logvar) || N(prior_mu, exp prior_logvar)).

Row sums of 0.5 ((mu - prior_mu)^2 exp(-prior_logvar) + expm1(d) - d), with
d = logvar - prior_logvar. Without a prior it is N(0, I). One kernel serves forward (``kl``) and
backward (``grad`` in, gradients out).
"""

import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows
from .device import (
    exp_scaled,
    expm1_minus_x,
    in_units_of_prior,
    kl_gradients,
    load_rows,
    load_tile,
    store_rows,
    store_tile,
    tile,
)
from .launch import launch_tiles, partial_sums, stride_of, sum_stages, tiling_of


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
    row, _, col, cols, valid, mask = tile(rows, cols, col_tiles, False, VEC, BLOCK_ROWS, BLOCK_COLS)

    mu = load_tile(mu_ptr, row, col, mu_stride * VEC, mask, ACC)
    logvar = load_tile(logvar_ptr, row, col, logvar_stride * VEC, mask, ACC)
    distance, logvar_ratio, root = in_units_of_prior(
        mu, logvar, prior_mu_ptr, prior_logvar_ptr, row, col,
        prior_mu_stride * VEC, prior_logvar_stride * VEC, mask, ACC, PTX,
    )  # fmt: skip
    if prior_mu_ptr is not None:
        # exp(logvar_ratio) would multiply the rounding error of that difference.
        ratio = exp_scaled(logvar, 0.5, PTX) * root
        variance = ratio * ratio
    else:
        variance = exp_scaled(logvar, 1.0, PTX)

    if kl_ptr is not None:
        kl = distance * distance + expm1_minus_x(logvar_ratio, variance)
        kl = 0.5 * tl.sum(kl, axis=1)
        store_rows(kl_ptr, kl, row, valid, rows, col_tiles)

    if grad_ptr is not None:
        grad = load_rows(grad_ptr, row, valid, grad_stride, ACC)
        dmu, dlogvar = kl_gradients(grad, distance, logvar_ratio, variance, root)
        if dmu_ptr is not None:
            store_tile(dmu_ptr, row, col, cols, mask, dmu)
        if dlogvar_ptr is not None:
            store_tile(dlogvar_ptr, row, col, cols, mask, dlogvar)
        if dprior_mu_ptr is not None:
            store_tile(dprior_mu_ptr, row, col, cols, mask, -dmu)
        if dprior_logvar_ptr is not None:
            dprior_logvar = -dlogvar - 0.5 * grad * (distance * distance)
            store_tile(dprior_logvar_ptr, row, col, cols, mask, dprior_logvar)


def launch_gaussian_kl(inputs, *, dkl=None, needs=(False,) * 4):
    """Launch on (mu, logvar, prior_mu, prior_logvar), each [rows, cols] or None.

    Returns the KL of each row, or with ``dkl`` [rows] the gradients that ``needs`` asks for.
    """
    inputs = [as_rows(t) for t in inputs]
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    tiling = tiling_of(*inputs[0].shape, *inputs)
    kl = partial_sums(inputs[0], tiling, "rows" if dkl is None else None)
    pointers = [*inputs, dkl, kl, *gradients]
    launch_tiles(gaussian_kl_kernel, tiling, pointers, inputs, [stride_of(dkl)])
    if dkl is None:
        return sum_stages(kl, tiling.col_tiles)
    return [g for g in gradients if g is not None]


def gaussian_kl(mu, logvar, prior_mu, prior_logvar):
    return launch_gaussian_kl((mu, logvar, prior_mu, prior_logvar))


def gaussian_kl_backward(dkl, mu, logvar, prior_mu, prior_logvar, needs):
    return launch_gaussian_kl((mu, logvar, prior_mu, prior_logvar), dkl=dkl, needs=needs)
