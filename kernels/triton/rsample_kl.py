"""One reparameterised sample, z = mu + exp(logvar / 2) eps, and the KL to the prior.

The backward kernel draws the same eps again from the seed: no noise is stored.
"""

import triton
import triton.language as tl

from ..rows import as_rows, empty_like_rows, zeroed_prior
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
from .noise import normal_tile


@triton.jit
def rsample_kl_kernel(
    mu_ptr,
    logvar_ptr,
    prior_mu_ptr,
    prior_logvar_ptr,
    seed_ptr,
    z_ptr,
    kl_ptr,
    mu_stride,
    logvar_stride,
    prior_mu_stride,
    prior_logvar_stride,
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
    col_tile = tl.program_id(0) % col_tiles

    mu = load_tile(mu_ptr, row, col, mu_stride * VEC, mask, ACC)
    logvar = load_tile(logvar_ptr, row, col, logvar_stride * VEC, mask, ACC)
    std = exp_scaled(logvar, 0.5, PTX)
    eps = normal_tile(tl.load(seed_ptr), row, col_tile, 0, BLOCK_ROWS, BLOCK_COLS, PTX)
    store_tile(z_ptr, row, col, cols, mask, mu + std * eps.to(ACC))

    distance, logvar_ratio, root = in_units_of_prior(
        mu, logvar, prior_mu_ptr, prior_logvar_ptr, row, col,
        prior_mu_stride * VEC, prior_logvar_stride * VEC, mask, ACC, PTX,
    )  # fmt: skip
    ratio = std * root
    kl = distance * distance + expm1_minus_x(logvar_ratio, ratio * ratio)
    store_rows(kl_ptr, 0.5 * tl.sum(kl, axis=1), row, valid, rows, col_tiles)


@triton.jit
def rsample_kl_backward_kernel(
    mu_ptr,
    logvar_ptr,
    prior_mu_ptr,
    prior_logvar_ptr,
    seed_ptr,
    dz_ptr,
    dkl_ptr,
    dmu_ptr,
    dlogvar_ptr,
    dprior_mu_ptr,
    dprior_logvar_ptr,
    mu_stride,
    logvar_stride,
    prior_mu_stride,
    prior_logvar_stride,
    dz_stride,
    dkl_stride,
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
    col_tile = tl.program_id(0) % col_tiles

    logvar = load_tile(logvar_ptr, row, col, logvar_stride * VEC, mask, ACC)
    std = exp_scaled(logvar, 0.5, PTX)
    dmu = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    dlogvar = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    if dz_ptr is not None:
        dz = load_tile(dz_ptr, row, col, dz_stride * VEC, mask, ACC)
        eps = normal_tile(tl.load(seed_ptr), row, col_tile, 0, BLOCK_ROWS, BLOCK_COLS, PTX)
        dmu += dz
        dlogvar += 0.5 * std * (dz * eps.to(ACC))

    if dkl_ptr is not None:
        dkl = load_rows(dkl_ptr, row, valid, dkl_stride, ACC)
        mu = load_tile(mu_ptr, row, col, mu_stride * VEC, mask, ACC)
        distance, logvar_ratio, root = in_units_of_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, row, col,
            prior_mu_stride * VEC, prior_logvar_stride * VEC, mask, ACC, PTX,
        )  # fmt: skip
        ratio = std * root
        dkl_dmu, dkl_dlogvar = kl_gradients(dkl, distance, logvar_ratio, ratio * ratio, root)
        dmu += dkl_dmu
        dlogvar += dkl_dlogvar
        if dprior_mu_ptr is not None:
            store_tile(dprior_mu_ptr, row, col, cols, mask, -dkl_dmu)
        if dprior_logvar_ptr is not None:
            dprior_logvar = -dkl_dlogvar - 0.5 * dkl * (distance * distance)
            store_tile(dprior_logvar_ptr, row, col, cols, mask, dprior_logvar)

    if dmu_ptr is not None:
        store_tile(dmu_ptr, row, col, cols, mask, dmu)
    if dlogvar_ptr is not None:
        store_tile(dlogvar_ptr, row, col, cols, mask, dlogvar)


def rsample_kl(mu, logvar, prior_mu, prior_logvar, seed, keep_noise):
    """Noise is never kept: drawing it again costs no more than reading it."""
    inputs = [as_rows(t) for t in (mu, logvar, prior_mu, prior_logvar)]
    z = empty_like_rows(inputs[0])
    tiling = tiling_of(*z.shape, *inputs)
    kl = partial_sums(z, tiling, "rows")
    launch_tiles(rsample_kl_kernel, tiling, [*inputs, seed, z, kl], inputs)
    return [z, sum_stages(kl, tiling.col_tiles)]


def rsample_kl_backward(dz, dkl, mu, logvar, prior_mu, prior_logvar, seed, noise, needs):
    """Either of ``dz`` and ``dkl`` may be None."""
    inputs = [as_rows(t) for t in (mu, logvar, prior_mu, prior_logvar)]
    dz = as_rows(dz)
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    if dkl is None:
        gradients = zeroed_prior(gradients)
    tiling = tiling_of(*inputs[0].shape, *inputs, dz)
    pointers = [*inputs, seed, dz, dkl, *gradients]
    launch_tiles(rsample_kl_backward_kernel, tiling, pointers, [*inputs, dz], [stride_of(dkl)])
    return [g for g in gradients if g is not None]
