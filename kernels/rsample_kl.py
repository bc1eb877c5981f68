"""One reparameterised sample, z = mu + exp(logvar / 2) eps, and the KL to the prior.

The backward kernel draws the same eps again from the seed: no noise is stored.
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
from .noise import draw_seed, normal_tile


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
    cols *= VEC
    row = tile_rows(col_tiles, BLOCK_ROWS)
    col = tile_cols(col_tiles, BLOCK_COLS)
    col_tile = tl.program_id(0) % col_tiles
    mask = (row < rows)[:, None] & (col < cols)[None, :]

    mu = load_tile(mu_ptr, row, col, mu_stride * VEC, mask, ACC)
    logvar = load_tile(logvar_ptr, row, col, logvar_stride * VEC, mask, ACC)
    std = exp_scaled(logvar, 0.5, PTX)
    eps = normal_tile(tl.load(seed_ptr), row, col_tile, 0, BLOCK_ROWS, BLOCK_COLS, PTX)
    store_tile(z_ptr, row, col, cols, mask, mu + std * eps.to(ACC))

    distance, log_ratio, root = in_units_of_prior(
        mu, logvar, prior_mu_ptr, prior_logvar_ptr, row, col,
        prior_mu_stride * VEC, prior_logvar_stride * VEC, mask, ACC, PTX,
    )  # fmt: skip
    ratio = std * root
    kl = distance * distance + expm1_minus_x(log_ratio, ratio * ratio)
    store_rows(kl_ptr, 0.5 * tl.sum(kl, axis=1), row, row < rows, rows, col_tiles)


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
    cols *= VEC
    row = tile_rows(col_tiles, BLOCK_ROWS)
    col = tile_cols(col_tiles, BLOCK_COLS)
    col_tile = tl.program_id(0) % col_tiles
    mask = (row < rows)[:, None] & (col < cols)[None, :]

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
        dkl = load_rows(dkl_ptr, row, row < rows, dkl_stride, ACC)
        mu = load_tile(mu_ptr, row, col, mu_stride * VEC, mask, ACC)
        distance, log_ratio, root = in_units_of_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, row, col,
            prior_mu_stride * VEC, prior_logvar_stride * VEC, mask, ACC, PTX,
        )  # fmt: skip
        ratio = std * root
        dkl_dmu = dkl * (distance * root)
        dkl_dlogvar = 0.5 * dkl * expm1(log_ratio, ratio * ratio)
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


def launch_rsample_kl(inputs, seed):
    """Launch on (mu, logvar, prior_mu, prior_logvar), each [rows, cols], or None for no prior.

    Returns z [rows, cols] and the KL [rows].
    """
    inputs = [as_rows(t) for t in inputs]
    rows, cols = inputs[0].shape
    acc = accumulator(*inputs)
    z = inputs[0].new_empty(rows, cols)
    tiles = tiling(rows, cols, *inputs)
    kl = partial_sums(z, acc, tiles, "rows")
    arguments = [
        *inputs,
        seed,
        z,
        kl,
        *(stride_of(t, tiles.vector) for t in inputs),
        rows,
        cols // tiles.vector,
        tiles.col_tiles,
    ]
    if rows:
        launch(rsample_kl_kernel, (tiles.programs,), arguments, constants(tiles, acc))
    return z, row_sums(kl)


def launch_rsample_kl_backward(dz, dkl, inputs, seed, needs):
    """The wanted gradients, from dz [rows, cols] and dkl [rows]; either may be None."""
    inputs = [as_rows(t) for t in inputs]
    rows, cols = inputs[0].shape
    dz = as_rows(dz)
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    if dkl is None:  # the prior is in the KL alone, and the kernel leaves its gradients be
        gradients[2:] = [g if g is None else g.zero_() for g in gradients[2:]]
    tiles = tiling(rows, cols, *inputs, dz)
    acc = accumulator(*inputs)
    arguments = [
        *inputs,
        seed,
        dz,
        dkl,
        *gradients,
        *(stride_of(t, tiles.vector) for t in inputs),
        stride_of(dz, tiles.vector),
        stride_of(dkl),
        rows,
        cols // tiles.vector,
        tiles.col_tiles,
    ]
    if rows:
        launch(rsample_kl_backward_kernel, (tiles.programs,), arguments, constants(tiles, acc))
    return [g for g in gradients if g is not None]


def _forward(mu, logvar, prior_mu, prior_logvar, seed):
    return launch_rsample_kl((mu, logvar, prior_mu, prior_logvar), seed)


def _forward_fake(mu, logvar, prior_mu, prior_logvar, seed):
    acc = accumulator(mu, logvar, prior_mu, prior_logvar)
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape[0], dtype=acc)


def _backward(dz, dkl, mu, logvar, prior_mu, prior_logvar, seed, needs):
    return launch_rsample_kl_backward(dz, dkl, (mu, logvar, prior_mu, prior_logvar), seed, needs)


def _backward_fake(dz, dkl, mu, logvar, prior_mu, prior_logvar, seed, needs):
    return gradients_like((mu, logvar, prior_mu, prior_logvar), needs)


rsample_kl_op = register(
    "rsample_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor seed)"
    " -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
rsample_kl_backward_op = register(
    "rsample_kl_backward(Tensor? dz, Tensor? dkl, Tensor mu, Tensor logvar, Tensor? prior_mu, "
    "Tensor? prior_logvar, Tensor seed, bool[] needs) -> Tensor[]",
    _backward,
    _backward_fake,
)


class RsampleKL(KernelFunction):
    @staticmethod
    def forward(mu, logvar, prior_mu, prior_logvar, seed):
        return rsample_kl_op(mu, logvar, prior_mu, prior_logvar, seed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, dz, dkl):
        needs = ctx.needs_input_grad[:4]
        gradients = rsample_kl_backward_op(dz, dkl, *ctx.saved_tensors, list(needs))
        return *spread(gradients, needs), None


def rsample_kl(mu, logvar, prior_mu=None, prior_logvar=None, *, generator=None):
    """Twin of ``reference.rsample_kl`` on [rows, cols]: (z, kl)."""
    seed = draw_seed(mu.device, generator)
    return RsampleKL.apply(mu, logvar, prior_mu, prior_logvar, seed)
