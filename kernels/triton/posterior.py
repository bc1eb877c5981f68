"""A sample and the KL of Gaussians as networks put them out: a mean, and a spread in some form.

``FORM`` says what the spread is:

- "clamped_logvar": the log variance, clamped to [-30, 20].
- "log_std": the log standard deviation s, with sigma = exp(s) + ``STD_OFFSET``.
- "std", "variance": sigma, and its square.

A ``SOFT_CLAMP`` c > 0 first replaces each mean and each s by c tanh(x / c).

The kernels turn every form into means and log variances as they load it, and the gradients back as
they store them. In between they do what those of ``rsample_kl`` do.
"""

import triton
import triton.language as tl

from ..rows import GREATEST_LOGVAR, LEAST_LOGVAR, as_rows, empty_like_rows, halves, zeroed_prior
from .device import (
    divide,
    exp_scaled,
    expm1,
    expm1_minus_x,
    kl_gradients,
    load_rows,
    load_tile,
    store_rows,
    store_tile,
    tile,
)
from .launch import launch_tiles, partial_sums, stride_of, sum_stages, tiling_of
from .noise import normal_tile

LEAST: tl.constexpr = tl.constexpr(LEAST_LOGVAR)
GREATEST: tl.constexpr = tl.constexpr(GREATEST_LOGVAR)


@triton.jit
def soft_clamped(x, BOUND: tl.constexpr, PTX: tl.constexpr):
    """(BOUND tanh(x / BOUND), its derivative); x as it is where BOUND is 0.

    tanh is computed by expm1, which is accurate near zero. Beyond 20 it is 1: the argument is cut
    there, because the exponential overflows.
    """
    if BOUND > 0:
        twice = x * (2.0 / BOUND)
        twice = tl.where(twice > 40.0, 40.0, tl.where(twice < -40.0, -40.0, twice))
        e = expm1(twice, exp_scaled(twice, 1.0, PTX))
        t = divide(e, e + 2.0, PTX)
        return BOUND * t, 1.0 - t * t
    else:
        return x, 1.0


@triton.jit
def gaussian(
    mean_ptr, spread_ptr, row, col, mean_stride, spread_stride, mask, FORM: tl.constexpr,
    SOFT_CLAMP: tl.constexpr, STD_OFFSET: tl.constexpr, ACC: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """(mu, logvar, dmu / dmean, dlogvar / dspread)."""
    mean = load_tile(mean_ptr, row, col, mean_stride, mask, ACC)
    spread = load_tile(spread_ptr, row, col, spread_stride, mask, ACC)
    if FORM == "clamped_logvar":
        # Comparisons, not tl.clamp: NaN stays NaN.
        logvar = tl.where(spread < LEAST, LEAST, tl.where(spread > GREATEST, GREATEST, spread))
        inside = (spread >= LEAST) & (spread <= GREATEST)
        return mean, logvar.to(ACC), 1.0, tl.where(inside, 1.0, 0.0).to(ACC)
    elif FORM == "std":
        return mean, 2.0 * tl.log(spread), 1.0, divide(2.0, spread, PTX)
    elif FORM == "variance":
        return mean, tl.log(spread), 1.0, divide(1.0, spread, PTX)
    else:
        mu, dmu = soft_clamped(mean, SOFT_CLAMP, PTX)
        log_std, slope = soft_clamped(spread, SOFT_CLAMP, PTX)
        if STD_OFFSET > 0:
            unshifted = exp_scaled(log_std, 1.0, PTX)
            std = unshifted + STD_OFFSET
            return mu, 2.0 * tl.log(std), dmu, 2.0 * slope * divide(unshifted, std, PTX)
        else:
            return mu, 2.0 * log_std, dmu, 2.0 * slope


@triton.jit
def posterior_kernel(
    mean_ptr,
    spread_ptr,
    prior_mean_ptr,
    prior_spread_ptr,
    eps_ptr,
    seed_ptr,
    z_ptr,
    kl_ptr,
    mean_stride,
    spread_stride,
    prior_mean_stride,
    prior_spread_stride,
    eps_stride,
    rows,
    cols,
    col_tiles,
    FORM: tl.constexpr,
    SOFT_CLAMP: tl.constexpr,
    STD_OFFSET: tl.constexpr,
    ELEMENTWISE: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    row, _, col, cols, valid, mask = tile(rows, cols, col_tiles, False, VEC, BLOCK_ROWS, BLOCK_COLS)
    col_tile = tl.program_id(0) % col_tiles

    mu, logvar, _, _ = gaussian(
        mean_ptr, spread_ptr, row, col, mean_stride * VEC, spread_stride * VEC, mask,
        FORM, SOFT_CLAMP, STD_OFFSET, ACC, PTX,
    )  # fmt: skip
    std = exp_scaled(logvar, 0.5, PTX)
    if z_ptr is not None:
        if eps_ptr is not None:
            eps = load_tile(eps_ptr, row, col, eps_stride * VEC, mask, ACC)
        else:
            eps = normal_tile(tl.load(seed_ptr), row, col_tile, 0, BLOCK_ROWS, BLOCK_COLS, PTX)
        store_tile(z_ptr, row, col, cols, mask, mu + std * eps.to(ACC))

    if prior_mean_ptr is not None:
        prior_mu, prior_logvar, _, _ = gaussian(
            prior_mean_ptr, prior_spread_ptr, row, col, prior_mean_stride * VEC,
            prior_spread_stride * VEC, mask, FORM, SOFT_CLAMP, STD_OFFSET, ACC, PTX,
        )  # fmt: skip
        root = exp_scaled(prior_logvar, -0.5, PTX)
        distance, logvar_ratio, ratio = (mu - prior_mu) * root, logvar - prior_logvar, std * root
    else:
        distance, logvar_ratio, ratio = mu, logvar, std
    kl = 0.5 * (distance * distance + expm1_minus_x(logvar_ratio, ratio * ratio))
    if ELEMENTWISE:
        store_tile(kl_ptr, row, col, cols, mask, kl)
    else:
        # The padding of a tile loads as zeros: in some forms that is not N(0, 1), whose KL is 0.
        store_rows(kl_ptr, tl.sum(tl.where(mask, kl, 0.0), axis=1), row, valid, rows, col_tiles)


@triton.jit
def posterior_backward_kernel(
    mean_ptr,
    spread_ptr,
    prior_mean_ptr,
    prior_spread_ptr,
    eps_ptr,
    seed_ptr,
    dz_ptr,
    dkl_ptr,
    dmean_ptr,
    dspread_ptr,
    dprior_mean_ptr,
    dprior_spread_ptr,
    mean_stride,
    spread_stride,
    prior_mean_stride,
    prior_spread_stride,
    eps_stride,
    dz_stride,
    dmean_stride,
    dspread_stride,
    dprior_mean_stride,
    dprior_spread_stride,
    dkl_stride,
    rows,
    cols,
    col_tiles,
    FORM: tl.constexpr,
    SOFT_CLAMP: tl.constexpr,
    STD_OFFSET: tl.constexpr,
    ELEMENTWISE: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    row, _, col, cols, valid, mask = tile(rows, cols, col_tiles, False, VEC, BLOCK_ROWS, BLOCK_COLS)
    col_tile = tl.program_id(0) % col_tiles

    mu, logvar, mu_slope, logvar_slope = gaussian(
        mean_ptr, spread_ptr, row, col, mean_stride * VEC, spread_stride * VEC, mask,
        FORM, SOFT_CLAMP, STD_OFFSET, ACC, PTX,
    )  # fmt: skip
    std = exp_scaled(logvar, 0.5, PTX)
    dmu = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    dlogvar = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    if dz_ptr is not None:
        dz = load_tile(dz_ptr, row, col, dz_stride * VEC, mask, ACC)
        if eps_ptr is not None:
            eps = load_tile(eps_ptr, row, col, eps_stride * VEC, mask, ACC)
        else:
            eps = normal_tile(tl.load(seed_ptr), row, col_tile, 0, BLOCK_ROWS, BLOCK_COLS, PTX)
        dmu += dz
        dlogvar += 0.5 * std * (dz * eps.to(ACC))

    if dkl_ptr is not None:
        if ELEMENTWISE:
            dkl = load_tile(dkl_ptr, row, col, dkl_stride, mask, ACC)
        else:
            dkl = load_rows(dkl_ptr, row, valid, dkl_stride, ACC)
        if prior_mean_ptr is not None:
            prior_mu, prior_logvar, prior_mu_slope, prior_logvar_slope = gaussian(
                prior_mean_ptr, prior_spread_ptr, row, col, prior_mean_stride * VEC,
                prior_spread_stride * VEC, mask, FORM, SOFT_CLAMP, STD_OFFSET, ACC, PTX,
            )  # fmt: skip
            root = exp_scaled(prior_logvar, -0.5, PTX)
            distance, logvar_ratio = (mu - prior_mu) * root, logvar - prior_logvar
            ratio = std * root
            dkl_dmu, dkl_dlogvar = kl_gradients(dkl, distance, logvar_ratio, ratio * ratio, root)
            if dprior_mean_ptr is not None:
                dprior_mean = -dkl_dmu * prior_mu_slope
                store_tile(dprior_mean_ptr, row, col, dprior_mean_stride * VEC, mask, dprior_mean)
            if dprior_spread_ptr is not None:
                dprior_logvar = -dkl_dlogvar - 0.5 * dkl * (distance * distance)
                dprior_spread = dprior_logvar * prior_logvar_slope
                store_tile(
                    dprior_spread_ptr, row, col, dprior_spread_stride * VEC, mask, dprior_spread
                )
        else:
            dkl_dmu, dkl_dlogvar = kl_gradients(dkl, mu, logvar, std * std, 1.0)
        dmu += dkl_dmu
        dlogvar += dkl_dlogvar

    if dmean_ptr is not None:
        store_tile(dmean_ptr, row, col, dmean_stride * VEC, mask, dmu * mu_slope)
    if dspread_ptr is not None:
        store_tile(dspread_ptr, row, col, dspread_stride * VEC, mask, dlogvar * logvar_slope)


def operands_of(q, q_spread, prior, prior_spread):
    """Means and spreads of q and of the prior, with contiguous columns."""
    return [*halves(as_rows(q), as_rows(q_spread)), *halves(as_rows(prior), as_rows(prior_spread))]


def launch_posterior(
    inputs, form, soft_clamp, std_offset, *, elementwise=False, noise=None, seed=None
):
    """[z, the KL]; z is None without noise and without a seed."""
    operands, noise = operands_of(*inputs), as_rows(noise)
    mean, sampled = operands[0], noise is not None or seed is not None
    tiling = tiling_of(*mean.shape, *operands, noise)
    z = empty_like_rows(mean, sampled)
    if elementwise:
        kl = mean.new_empty(mean.shape, dtype=tiling.acc)
    else:
        kl = partial_sums(mean, tiling, "rows")
    launch_tiles(
        posterior_kernel,
        tiling,
        [*operands, noise, seed, z, kl],
        [*operands, noise],
        FORM=form,
        SOFT_CLAMP=soft_clamp,
        STD_OFFSET=std_offset,
        ELEMENTWISE=elementwise,
    )
    return [z, kl if elementwise else sum_stages(kl, tiling.col_tiles)]


def launch_posterior_backward(
    dz, dkl, inputs, noise, seed, form, soft_clamp, std_offset, needs, *, elementwise=False
):
    """The wanted gradients; either of ``dz`` and ``dkl`` may be None."""
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    if dkl is None:
        gradients = zeroed_prior(gradients)
    operands, dz, noise = operands_of(*inputs), as_rows(dz), as_rows(noise)
    if elementwise:
        dkl = as_rows(dkl)
    pairs = zip(inputs[1::2], (gradients[:2], gradients[2:]), strict=True)
    written = [g for spread, pair in pairs for g in (halves(*pair) if spread is None else pair)]
    tiling = tiling_of(*operands[0].shape, *operands, dz, noise, *written)
    launch_tiles(
        posterior_backward_kernel,
        tiling,
        [*operands, noise, seed, dz, dkl, *written],
        [*operands, noise, dz, *written],
        [stride_of(dkl)],
        FORM=form,
        SOFT_CLAMP=soft_clamp,
        STD_OFFSET=std_offset,
        ELEMENTWISE=elementwise,
    )
    return [g for g in gradients if g is not None]


def posterior_kl(q, q_spread, prior, prior_spread, form, soft_clamp, std_offset, elementwise):
    inputs = q, q_spread, prior, prior_spread
    return launch_posterior(inputs, form, soft_clamp, std_offset, elementwise=elementwise)[1]


def posterior_kl_backward(
    dkl, q, q_spread, prior, prior_spread, form, soft_clamp, std_offset, elementwise, needs
):
    inputs, options = (q, q_spread, prior, prior_spread), (form, soft_clamp, std_offset)
    return launch_posterior_backward(
        None, dkl, inputs, None, None, *options, needs, elementwise=elementwise
    )


def posterior_sample_kl(
    q, q_spread, prior, prior_spread, noise, seed, form, soft_clamp, std_offset, keep_noise
):
    """Noise is never kept: drawing it again costs no more than reading it."""
    inputs = q, q_spread, prior, prior_spread
    return launch_posterior(inputs, form, soft_clamp, std_offset, noise=noise, seed=seed)


def posterior_sample_kl_backward(
    dz, dkl, q, q_spread, prior, prior_spread, noise, seed, form, soft_clamp, std_offset,
    keep_noise, kept, needs,
):  # fmt: skip
    inputs, options = (q, q_spread, prior, prior_spread), (form, soft_clamp, std_offset)
    return launch_posterior_backward(dz, dkl, inputs, noise, seed, *options, needs)
