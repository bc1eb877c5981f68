"""Reparameterised Gaussian samples, z = mu + exp(logvar / 2) eps, and with them the KL.

The backward kernel draws the same eps again from the seed: no noise is stored. Without
a KL the prior operands are None, and z may have several samples [samples, rows, cols].
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
def rsample_kernel(
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
    samples,
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
    seed = tl.load(seed_ptr)
    for sample in range(samples):
        eps = normal_tile(seed, row, col_tile, sample, BLOCK_ROWS, BLOCK_COLS, PTX)
        z = mu + std * eps.to(ACC)
        store_tile(z_ptr, row + tl.full((), sample, tl.int64) * rows, col, cols, mask, z)

    if kl_ptr is not None:
        distance, log_ratio, root = in_units_of_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, row, col,
            prior_mu_stride * VEC, prior_logvar_stride * VEC, mask, ACC, PTX,
        )  # fmt: skip
        ratio = std * root
        kl = distance * distance + expm1_minus_x(log_ratio, ratio * ratio)
        store_rows(kl_ptr, 0.5 * tl.sum(kl, axis=1), row, rows, col_tiles)


@triton.jit
def rsample_backward_kernel(
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
    samples,
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
        seed = tl.load(seed_ptr)
        for sample in range(samples):
            sample_row = row + tl.full((), sample, tl.int64) * rows
            dz = load_tile(dz_ptr, sample_row, col, dz_stride * VEC, mask, ACC)
            eps = normal_tile(seed, row, col_tile, sample, BLOCK_ROWS, BLOCK_COLS, PTX)
            dmu += dz
            dlogvar += dz * eps.to(ACC)
        dlogvar *= 0.5 * std

    if dkl_ptr is not None:
        dkl = load_rows(dkl_ptr, row, dkl_stride, rows, ACC)
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


def launch_rsample(inputs, seed, samples=1, *, with_kl):
    """Launch on (mu, logvar, prior_mu, prior_logvar), each [rows, cols] or None.

    Returns z [samples, rows, cols] and, if asked, the KL [rows], else None.
    """
    inputs = [as_rows(t) for t in inputs]
    rows, cols = inputs[0].shape
    acc = accumulator(*inputs)
    z = inputs[0].new_empty(samples, rows, cols)
    tiles = tiling(rows, cols, *inputs)
    kl = partial_sums(z[0], acc, tiles, "rows" if with_kl else None)
    arguments = [
        *inputs,
        seed,
        z,
        kl,
        *(stride_of(t, tiles.vector) for t in inputs),
        samples,
        rows,
        cols // tiles.vector,
        tiles.col_tiles,
    ]
    if rows:
        launch(rsample_kernel, tiles.programs, arguments, constants(tiles, acc))
    return z, row_sums(kl) if with_kl else None


def launch_rsample_backward(dz, dkl, inputs, seed, needs):
    """The wanted gradients, from dz [samples, rows, cols] and dkl [rows]; either may be None.

    Without dkl mu may be None too: the gradient of a sample does not depend on it.
    """
    inputs = [as_rows(t) for t in inputs]
    mu, logvar, prior_mu, prior_logvar = inputs
    outputs = (logvar if mu is None else mu, logvar, prior_mu, prior_logvar)
    rows, cols = logvar.shape
    samples = 1 if dz is None else dz.shape[0]
    dz = None if dz is None else as_rows(dz.reshape(samples * rows, cols))
    gradients = [empty_like_rows(t, n) for t, n in zip(outputs, needs, strict=True)]
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
        samples,
        rows,
        cols // tiles.vector,
        tiles.col_tiles,
    ]
    if rows:
        launch(rsample_backward_kernel, tiles.programs, arguments, constants(tiles, acc))
    return [g for g in gradients if g is not None]


def _rsample(mu, logvar, seed, samples):
    return launch_rsample((mu, logvar, None, None), seed, samples, with_kl=False)[0]


def _rsample_fake(mu, logvar, seed, samples):
    return mu.new_empty(samples, *mu.shape)


def _rsample_backward(dz, logvar, seed, needs):
    inputs, needs = (None, logvar, None, None), [*needs, False, False]
    return launch_rsample_backward(dz, None, inputs, seed, needs)


def _rsample_backward_fake(dz, logvar, seed, needs):
    return gradients_like((logvar, logvar), needs)


def _rsample_kl(mu, logvar, prior_mu, prior_logvar, seed):
    z, kl = launch_rsample((mu, logvar, prior_mu, prior_logvar), seed, with_kl=True)
    return z.squeeze(0), kl


def _rsample_kl_fake(mu, logvar, prior_mu, prior_logvar, seed):
    acc = accumulator(mu, logvar, prior_mu, prior_logvar)
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape[0], dtype=acc)


def _rsample_kl_backward(dz, dkl, mu, logvar, prior_mu, prior_logvar, seed, needs):
    dz = None if dz is None else dz[None]
    return launch_rsample_backward(dz, dkl, (mu, logvar, prior_mu, prior_logvar), seed, needs)


def _rsample_kl_backward_fake(dz, dkl, mu, logvar, prior_mu, prior_logvar, seed, needs):
    return gradients_like((mu, logvar, prior_mu, prior_logvar), needs)


rsample_op = register(
    "rsample(Tensor mu, Tensor logvar, Tensor seed, SymInt samples) -> Tensor",
    _rsample,
    _rsample_fake,
)
rsample_backward_op = register(
    "rsample_backward(Tensor dz, Tensor logvar, Tensor seed, bool[] needs) -> Tensor[]",
    _rsample_backward,
    _rsample_backward_fake,
)
rsample_kl_op = register(
    "rsample_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor seed)"
    " -> (Tensor, Tensor)",
    _rsample_kl,
    _rsample_kl_fake,
)
rsample_kl_backward_op = register(
    "rsample_kl_backward(Tensor? dz, Tensor? dkl, Tensor mu, Tensor logvar, Tensor? prior_mu, "
    "Tensor? prior_logvar, Tensor seed, bool[] needs) -> Tensor[]",
    _rsample_kl_backward,
    _rsample_kl_backward_fake,
)


class GaussianRsample(KernelFunction):
    @staticmethod
    def forward(mu, logvar, seed, samples):
        return rsample_op(mu, logvar, seed, samples)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:3])

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        needs = ctx.needs_input_grad[:2]
        gradients = rsample_backward_op(dz, *ctx.saved_tensors, list(needs))
        return *spread(gradients, needs), None, None


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


def gaussian_rsample(mu, logvar, samples=1, *, generator=None):
    """Twin of ``reference.gaussian_rsample``: z [samples, rows, cols] from mu [rows, cols]."""
    return GaussianRsample.apply(mu, logvar, draw_seed(mu.device, generator), samples)


def rsample_kl(mu, logvar, prior_mu=None, prior_logvar=None, *, generator=None):
    """Twin of ``reference.rsample_kl`` on [rows, cols]: (z, kl)."""
    seed = draw_seed(mu.device, generator)
    return RsampleKL.apply(mu, logvar, prior_mu, prior_logvar, seed)
