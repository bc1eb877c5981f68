"""K reparameterised samples, z = mu + exp(logvar / 2) eps, and log p(z) - log q(z) of each.

A program reads mu and logvar of its tile once for all its samples. Backward draws the same eps
again from the seed and sums over the samples in registers. Of size [samples, rows, cols] only z and
its gradient are stored.

The log ratio is computed from eps. With u = eps + delta the sample in units of the prior, it is
0.5 sum [log (q variance / prior variance) - delta (delta + 2 eps)]: nothing cancels where q is
close to the prior. With the improper prior p(z) = 1 it is -log q(z).
"""

import triton
import triton.language as tl

from ..rows import as_rows
from .device import (
    exp_scaled,
    expm1,
    in_units_of_prior,
    load_rows,
    load_tile,
    store_tile,
    tile,
)
from .launch import divide_up, in_stages, launch_tiles, sum_stages, tiling_of
from .noise import normal_tile

# Programs that fill a GPU: 132 SMs x 8. Where there are fewer tiles, programs share the samples.
PROGRAMS = 1056
# The fewest draws of a backward program: its partial sums are that much smaller than dz.
LEAST_SUMMED = 8
# Elements of a tile. A 2048-element tile would save one instruction in 24, but its accumulators
# need 250 registers a thread.
LARGEST = 1024


@triton.jit
def relative_to_prior(
    mu, logvar, std, prior_mu_ptr, prior_logvar_ptr, row, col, mu_stride, logvar_stride, mask,
    IMPROPER_PRIOR: tl.constexpr, ACC: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """(distance, growth, ratio, root, constant), with delta = distance + growth eps.

    In units of the prior's standard deviation, ``ratio`` is that of q and ``root`` is 1.
    ``constant`` [BLOCK_ROWS] is the part of the log ratio that all samples share. With the improper
    prior u is 0. Past the last column delta is 0.
    """
    if IMPROPER_PRIOR:
        LOG_2PI: tl.constexpr = 1.8378770664093454836
        zero = tl.zeros(std.shape, ACC)
        constant = 0.5 * tl.sum(tl.where(mask, logvar + LOG_2PI, 0.0), axis=1)
        return zero, tl.where(mask, zero - 1.0, 0.0), zero, zero, constant
    else:
        distance, logvar_ratio, root = in_units_of_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, row, col, mu_stride, logvar_stride,
            mask, ACC, PTX,
        )  # fmt: skip
        ratio = std * root
        growth = expm1(0.5 * logvar_ratio, ratio)
        return distance, growth, ratio, root, 0.5 * tl.sum(logvar_ratio, axis=1)


@triton.jit
def draws_of_program(draws, share, SHARED: tl.constexpr):
    """(first draw, end) of this program. Without SHARED the compiler knows a loop over one draw."""
    if SHARED:
        start = tl.program_id(1) * share
        return start, tl.minimum(start + share, draws)
    else:
        return 0, draws


@triton.jit
def write_sample(
    z_ptr, log_ratio_ptr, sample, eps, mu, std, distance, growth, constant, row, col, col_tile,
    samples, rows, cols, mask,
):  # fmt: skip
    sample_row = row + tl.full((), sample, tl.int64) * rows
    store_tile(z_ptr, sample_row, col, cols, mask, mu + std * eps)
    if log_ratio_ptr is not None:
        delta = distance + growth * eps
        log_ratio = constant - 0.5 * tl.sum(delta * (delta + 2.0 * eps), axis=1)
        offset = col_tile.to(tl.int64) * samples * rows + sample_row
        tl.store(log_ratio_ptr + offset, log_ratio, mask=row < rows)


@triton.jit
def rsample_kernel(
    mu_ptr,
    logvar_ptr,
    prior_mu_ptr,
    prior_logvar_ptr,
    seed_ptr,
    z_ptr,
    log_ratio_ptr,
    mu_stride,
    logvar_stride,
    prior_mu_stride,
    prior_logvar_stride,
    first_draw,  # of the noise stream, for the first sample
    draws,  # samples, or pairs of them
    share,  # draws of a program
    rows,
    cols,
    col_tiles,
    SHARED: tl.constexpr,  # whether programs of the grid's second dimension share the draws
    IMPROPER_PRIOR: tl.constexpr,
    ANTITHETIC: tl.constexpr,  # a draw makes two samples, of eps and of -eps
    VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    row, _, col, cols, _, mask = tile(rows, cols, col_tiles, False, VEC, BLOCK_ROWS, BLOCK_COLS)
    col_tile = tl.program_id(0) % col_tiles

    mu = load_tile(mu_ptr, row, col, mu_stride * VEC, mask, ACC)
    logvar = load_tile(logvar_ptr, row, col, logvar_stride * VEC, mask, ACC)
    std = exp_scaled(logvar, 0.5, PTX)
    if log_ratio_ptr is not None:
        distance, growth, _, _, constant = relative_to_prior(
            mu, logvar, std, prior_mu_ptr, prior_logvar_ptr, row, col,
            prior_mu_stride * VEC, prior_logvar_stride * VEC, mask, IMPROPER_PRIOR, ACC, PTX,
        )  # fmt: skip
    else:
        distance, growth, constant = mu, std, mu  # not used

    seed = tl.load(seed_ptr)
    start, end = draws_of_program(draws, share, SHARED)
    SIDES: tl.constexpr = 2 if ANTITHETIC else 1
    samples = draws * SIDES
    for draw in range(start, end):
        eps = normal_tile(seed, row, col_tile, first_draw + draw, BLOCK_ROWS, BLOCK_COLS, PTX).to(
            ACC
        )
        for side in tl.static_range(SIDES):
            write_sample(
                z_ptr, log_ratio_ptr, SIDES * draw + side, -eps if side else eps, mu, std,
                distance, growth, constant, row, col, col_tile, samples, rows, cols, mask,
            )  # fmt: skip


@triton.jit
def sample_gradients(
    dz_ptr, dlog_ratio_ptr, total, sample, eps, inverse_std, distance, growth, ratio, root,
    row, col, rows, dz_stride, dlog_ratio_stride, dlog_ratio_row_stride, mask,
    GRADIENT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The share of one sample in (dmu, 2 dlogvar / std, 2 dlogvar, dprior_mu, 2 dprior_logvar).

    q receives the gradient at z and, with "total", that of its own density. "path" leaves the
    second out; "dreg" multiplies the first by the normalised weight once more.
    """
    zero = tl.zeros(eps.shape, ACC)
    dmu, dstd, dlogvar, dprior_mu, dprior_logvar = zero, zero, zero, zero, zero
    weight = tl.full((eps.shape[0], 1), 1.0, ACC)
    dlog_ratio = weight
    if dlog_ratio_ptr is not None:
        offset = tl.full((), sample, tl.int64) * dlog_ratio_stride
        dlog_ratio = load_rows(dlog_ratio_ptr + offset, row, row < rows, dlog_ratio_row_stride, ACC)
        delta = distance + growth * eps
        u = distance + ratio * eps  # eps + delta, which would cancel for a wide prior
        dprior_mu = dlog_ratio * u * root
        dprior_logvar = dlog_ratio * (u * u - 1.0)
        if GRADIENT == "dreg":
            # Where all weights are zero, no sample counts: 0 / 1.
            weight = dlog_ratio / tl.where(total == 0.0, 1.0, total)
            dlog_ratio *= weight
        if GRADIENT == "total":
            dmu = -dlog_ratio * u * root
            dlogvar = dlog_ratio * (1.0 - u * ratio * eps)
        else:
            excess = delta + growth * u  # u ratio - eps, where nothing cancels
            dmu = -dlog_ratio * excess * inverse_std
            dlogvar = -dlog_ratio * excess * eps
    if dz_ptr is not None:
        sample_row = row + tl.full((), sample, tl.int64) * rows
        dz = load_tile(dz_ptr, sample_row, col, dz_stride, mask, ACC) * weight
        dmu += dz
        dstd = dz * eps
    return dmu, dstd, dlogvar, dprior_mu, dprior_logvar


@triton.jit
def rsample_backward_kernel(
    mu_ptr,
    logvar_ptr,
    prior_mu_ptr,
    prior_logvar_ptr,
    seed_ptr,
    dz_ptr,
    dlog_ratio_ptr,
    total_ptr,
    dmu_ptr,
    dlogvar_ptr,
    dprior_mu_ptr,
    dprior_logvar_ptr,
    mu_stride,
    logvar_stride,
    prior_mu_stride,
    prior_logvar_stride,
    dz_stride,
    dlog_ratio_stride,
    dlog_ratio_row_stride,
    first_draw,
    draws,
    share,
    rows,
    cols,
    col_tiles,
    GRADIENT: tl.constexpr,
    SHARED: tl.constexpr,
    IMPROPER_PRIOR: tl.constexpr,
    ANTITHETIC: tl.constexpr,
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
    if dlog_ratio_ptr is not None:
        mu = load_tile(mu_ptr, row, col, mu_stride * VEC, mask, ACC)
        distance, growth, ratio, root, _ = relative_to_prior(
            mu, logvar, std, prior_mu_ptr, prior_logvar_ptr, row, col,
            prior_mu_stride * VEC, prior_logvar_stride * VEC, mask, IMPROPER_PRIOR, ACC, PTX,
        )  # fmt: skip
    else:
        distance, growth, ratio, root = std, std, std, std  # not used
    inverse_std = exp_scaled(logvar, -0.5, PTX) if GRADIENT != "total" else std
    total = load_rows(total_ptr, row, valid, 1, ACC) if GRADIENT == "dreg" else std

    seed = tl.load(seed_ptr)
    zero = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    dmu, dstd, dlogvar, dprior_mu, dprior_logvar = zero, zero, zero, zero, zero
    SIDES: tl.constexpr = 2 if ANTITHETIC else 1
    start, end = draws_of_program(draws, share, SHARED)
    for draw in range(start, end):
        eps = normal_tile(seed, row, col_tile, first_draw + draw, BLOCK_ROWS, BLOCK_COLS, PTX).to(
            ACC
        )
        for side in tl.static_range(SIDES):
            a, b, c, d, e = sample_gradients(
                dz_ptr, dlog_ratio_ptr, total, SIDES * draw + side, -eps if side else eps,
                inverse_std, distance, growth, ratio, root, row, col, rows, dz_stride * VEC,
                dlog_ratio_stride, dlog_ratio_row_stride, mask, GRADIENT, ACC,
            )  # fmt: skip
            dmu += a
            dstd += b
            dlogvar += c
            dprior_mu += d
            dprior_logvar += e

    # One partial sum per share, [shares, rows, cols].
    row_out = row + tl.program_id(1).to(tl.int64) * rows
    if dmu_ptr is not None:
        store_tile(dmu_ptr, row_out, col, cols, mask, dmu)
    if dlogvar_ptr is not None:
        store_tile(dlogvar_ptr, row_out, col, cols, mask, 0.5 * (std * dstd + dlogvar))
    if dprior_mu_ptr is not None:
        store_tile(dprior_mu_ptr, row_out, col, cols, mask, dprior_mu)
    if dprior_logvar_ptr is not None:
        store_tile(dprior_logvar_ptr, row_out, col, cols, mask, 0.5 * dprior_logvar)


def shared_out(draws, programs, least=1):
    """The draws of each program: all of them, unless there are too few tiles to fill a GPU."""
    return max(divide_up(draws, divide_up(PROGRAMS, max(programs, 1))), least)


def launch_rsample(
    inputs, seed, samples, *, first_draw=0, improper_prior=False, antithetic=False, with_log_ratio
):
    """Launch on (mu, logvar, prior_mu, prior_logvar), each [rows, cols], or None for no prior.

    Returns z [samples, rows, cols], or [rows, cols] where ``samples`` is None, and the log ratio
    [samples, rows], or None without ``with_log_ratio``.
    """
    inputs = [as_rows(t) for t in inputs]
    rows, cols = inputs[0].shape
    # A view of [1, rows, cols] would not do: autograd lets nobody write into such a result.
    z = inputs[0].new_empty((rows, cols) if samples is None else (samples, rows, cols))
    samples = 1 if samples is None else samples
    tiling = tiling_of(rows, cols, *inputs, largest=LARGEST if samples > 1 else None)
    log_ratio = None
    if with_log_ratio:
        log_ratio = in_stages(tiling.col_tiles, (samples, rows), tiling.acc, z.device)
    draws = samples // 2 if antithetic else samples
    share = shared_out(draws, tiling.programs)
    launch_tiles(
        rsample_kernel,
        tiling,
        [*inputs, seed, z, log_ratio],
        inputs,
        [first_draw, draws, share],
        programs=divide_up(draws, share),
        SHARED=share < draws,
        IMPROPER_PRIOR=improper_prior,
        ANTITHETIC=antithetic,
    )
    return z, sum_stages(log_ratio, tiling.col_tiles) if with_log_ratio else None


def launch_rsample_backward(
    dz,
    dlog_ratio,
    inputs,
    seed,
    needs,
    *,
    samples,
    first_draw=0,
    gradient="total",
    improper_prior=False,
    antithetic=False,
):
    """The wanted gradients, from dz [samples, rows, cols] and dlog_ratio [samples, rows].

    Either may be None. Without dlog_ratio mu may be None too: the gradient of a sample does
    not depend on it.
    """
    inputs = [as_rows(t) for t in inputs]
    mu, logvar, prior_mu, prior_logvar = inputs
    outputs = (logvar if mu is None else mu, logvar, prior_mu, prior_logvar)
    rows, cols = logvar.shape
    dz = None if dz is None else as_rows(dz.reshape(samples * rows, cols))
    total = dlog_ratio.sum(0) if gradient == "dreg" and dlog_ratio is not None else None
    sums = samples > 1 or dlog_ratio is not None
    tiling = tiling_of(rows, cols, *inputs, dz, largest=LARGEST if sums else None)
    draws = samples // 2 if antithetic else samples
    share = shared_out(draws, tiling.programs, LEAST_SUMMED)
    shares = divide_up(draws, share)
    gradients = []
    for tensor, needed in zip(outputs, needs, strict=True):
        dtype = tensor.dtype if needed and shares == 1 else tiling.acc
        empty = in_stages(shares, (rows, cols), dtype, seed.device) if needed else None
        gradients.append(empty)
    launch_tiles(
        rsample_backward_kernel,
        tiling,
        [*inputs, seed, dz, dlog_ratio, total, *gradients],
        [*inputs, dz],
        [*((0, 0) if dlog_ratio is None else dlog_ratio.stride()), first_draw, draws, share],
        programs=shares,
        GRADIENT=gradient if dlog_ratio is not None else "total",
        SHARED=shares > 1,
        IMPROPER_PRIOR=improper_prior,
        ANTITHETIC=antithetic,
    )
    return [
        sum_stages(g, shares).to(t.dtype)
        for g, t in zip(gradients, outputs, strict=True)
        if g is not None
    ]


def gaussian_rsample(mu, logvar, seed, samples, keep_noise):
    """Noise is never kept: drawing it again costs no more than reading it."""
    q = mu, logvar, None, None
    return [launch_rsample(q, seed, samples, with_log_ratio=False)[0]]


def gaussian_rsample_backward(dz, logvar, seed, samples, noise, needs):
    inputs, needs = (None, logvar, None, None), [*needs, False, False]
    samples = 1 if samples is None else samples
    return launch_rsample_backward(dz, None, inputs, seed, needs, samples=samples)


def rsample_log_ratio(
    mu,
    logvar,
    prior_mu,
    prior_logvar,
    seed,
    first_draw,
    samples,
    gradient,
    improper_prior,
    antithetic,
):
    """``gradient`` is for backward."""
    inputs = mu, logvar, prior_mu, prior_logvar
    options = {"first_draw": first_draw, "improper_prior": improper_prior, "antithetic": antithetic}
    return launch_rsample(inputs, seed, samples, **options, with_log_ratio=True)


def rsample_log_ratio_backward(
    dz, dlog_ratio, mu, logvar, prior_mu, prior_logvar, seed, first_draw, samples, gradient,
    improper_prior, antithetic, needs,
):  # fmt: skip
    inputs = mu, logvar, prior_mu, prior_logvar
    options = {"first_draw": first_draw, "improper_prior": improper_prior, "antithetic": antithetic}
    return launch_rsample_backward(
        dz, dlog_ratio, inputs, seed, needs, samples=samples, gradient=gradient, **options
    )
