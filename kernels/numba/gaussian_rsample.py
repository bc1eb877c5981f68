"""K reparameterised samples, z = mu + exp(logvar / 2) eps, and log p(z) - log q(z) of each.

A tile of mu and logvar is read once for all its samples. Backward draws the same eps again from
the seed and sums over the samples in buffers: neither noise nor anything else of size
[samples, rows, cols] is stored but z and its gradient. For a single sample without a log ratio,
std eps may be kept for backward, because reading it is faster than drawing it again.

The derivation of the log ratio is in ``../triton/gaussian_rsample.py``.
"""

import math

import torch

from ..rows import accumulator, empty_like_rows
from .compiler import elementwise, helper, kernel, multiply_add
from .device import exp_scaled, expm1_given, fill, scale, tile_in_units_of_prior
from .launch import launch
from .memory import (
    load,
    operand,
    present,
    sample_of,
    store,
    target,
    tiles,
    workspace,
)
from .noise import NOISE_BLOCK, draw, noise_buffers
from .sums import add_rows, pieces_of_sums

LOG_2PI = math.log(2 * math.pi)
TOTAL, PATH, DREG = range(3)
GRADIENTS = {"total": TOTAL, "path": PATH, "dreg": DREG}


@elementwise
def sample(mu, std, eps, noise, z):
    real = z.dtype.type
    for i in range(z.size):
        noise[i] = std[i] * real(eps[i])
        z[i] = multiply_add(std[i], real(eps[i]), mu[i])


@elementwise
def sample_of_side(mu, std, sign, eps, z):
    real = z.dtype.type
    for i in range(z.size):
        z[i] = multiply_add(std[i], real(sign) * real(eps[i]), mu[i])


@elementwise
def growth_of(logvar_ratio, ratio, growth):
    """growth in delta = distance + growth eps, from the std of q in units of the prior."""
    real = growth.dtype.type
    for i in range(growth.size):
        growth[i] = expm1_given(real(0.5) * logvar_ratio[i], ratio[i])


@elementwise
def plus(values, constant, result):
    real = result.dtype.type
    for i in range(result.size):
        result[i] = values[i] + real(constant)


@helper
def relative_to_prior(mu, logvar, prior_mu_ptr, prior_logvar_ptr, improper_prior, tile, scratch):
    """(std, distance, log of the ratio of variances, growth, ratio of stds, 1 / prior std).

    The improper prior has u = 0.
    """
    size = mu.size
    growth = scratch[7][:size]
    if not improper_prior:
        std, distance, logvar_ratio, ratio, root = tile_in_units_of_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, tile, scratch
        )
        growth_of(logvar_ratio, ratio, growth)
        return std, distance, logvar_ratio, growth, ratio, root
    std, zero, logvar_ratio = scratch[0][:size], scratch[1][:size], scratch[2][:size]
    exp_scaled(logvar, 0.5, std)
    fill(zero, 0.0)
    fill(growth, -1.0)
    plus(logvar, LOG_2PI, logvar_ratio)
    return std, zero, logvar_ratio, growth, zero, zero


@elementwise
def log_ratio_terms(distance, logvar_ratio, growth, sign, eps, log_ratio):
    real = log_ratio.dtype.type
    for i in range(log_ratio.size):
        noise = real(sign) * real(eps[i])
        delta = distance[i] + growth[i] * noise
        log_ratio[i] = logvar_ratio[i] - delta * (delta + real(2.0) * noise)


@elementwise
def add_total_gradients(
    dlog_ratio, sign, eps, distance, ratio, root, dmu, dlogvar, dprior_mu, dprior_logvar
):
    """Add the gradients of "total"; dlogvar and dprior_logvar are twice the gradients."""
    real = dmu.dtype.type
    for i in range(dmu.size):
        noise = real(sign) * real(eps[i])
        u = distance[i] + ratio[i] * noise  # eps + delta, which would cancel for a wide prior
        dz = dlog_ratio[i] * u * root[i]
        dmu[i] -= dz
        dlogvar[i] += dlog_ratio[i] * (real(1.0) - u * ratio[i] * noise)
        dprior_mu[i] += dz
        dprior_logvar[i] += dlog_ratio[i] * (u * u - real(1.0))


@elementwise
def add_path_gradients(
    dlog_ratio, weight, sign, eps, inverse_std, distance, growth, ratio, root,
    dmu, dlogvar, dprior_mu, dprior_logvar,
):  # fmt: skip
    """Add the gradients without that of q's own density, times ``weight``: 1, but for DReG."""
    real = dmu.dtype.type
    for i in range(dmu.size):
        noise = real(sign) * real(eps[i])
        delta = distance[i] + growth[i] * noise
        u = distance[i] + ratio[i] * noise
        excess = weight[i] * dlog_ratio[i] * (delta + growth[i] * u)  # u ratio - eps
        dmu[i] -= excess * inverse_std[i]
        dlogvar[i] -= excess * noise
        dprior_mu[i] += dlog_ratio[i] * u * root[i]
        dprior_logvar[i] += dlog_ratio[i] * (u * u - real(1.0))


@elementwise
def add_sample_gradients(dz, weight, sign, eps, std, dmu, dlogvar):
    real = dmu.dtype.type
    for i in range(dmu.size):
        weighted = dz[i] * weight[i]
        dmu[i] += weighted
        dlogvar[i] += std[i] * (weighted * (real(sign) * real(eps[i])))


@elementwise
def sample_gradients(dz, noise, dmu, dlogvar):
    real = dmu.dtype.type
    for i in range(dmu.size):
        dmu[i] = dz[i]
        dlogvar[i] = real(0.5) * (dz[i] * noise[i])


@elementwise
def half_times(factors, values):
    real = values.dtype.type
    for i in range(values.size):
        values[i] *= real(0.5) * factors[i]


@elementwise
def normalise(dlog_ratio, total, weight):
    """dlog_ratio / total; where all weights are 0, no sample counts: 0 / 1."""
    real = weight.dtype.type
    for i in range(weight.size):
        weight[i] = dlog_ratio[i] / (real(1.0) if total[i] == real(0.0) else total[i])


@kernel
def rsample_kernel(
    queue, step, rows, cols, scratch, seed, samples, mu_ptr, logvar_ptr, z_ptr, noise_ptr
):
    scratch = workspace(scratch, queue)
    buffers = noise_buffers(scratch)
    for tile in tiles(queue, step, rows, cols, NOISE_BLOCK):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        noise, std = target(noise_ptr, tile, scratch[2]), scratch[3][: mu.size]
        exp_scaled(logvar, 0.5, std)
        for k in range(samples):
            here = sample_of(tile, k, rows)
            z = target(z_ptr, here, scratch[4])
            sample(mu, std, draw(seed, k, tile, buffers), noise, z)
            store(z_ptr, here, z)


@kernel
def rsample_backward_kernel(
    queue, step, rows, cols, scratch, seed, samples, logvar_ptr, noise_ptr, dz_ptr, dmu_ptr,
    dlogvar_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    noise = noise_buffers(scratch)
    for tile in tiles(queue, step, rows, cols, NOISE_BLOCK):
        dmu, dlogvar = target(dmu_ptr, tile, scratch[3]), target(dlogvar_ptr, tile, scratch[4])
        if present(noise_ptr):
            dz = load(dz_ptr, tile, scratch[5])
            sample_gradients(dz, load(noise_ptr, tile, scratch[6]), dmu, dlogvar)
            store(dmu_ptr, tile, dmu)
            store(dlogvar_ptr, tile, dlogvar)
            continue
        logvar = load(logvar_ptr, tile, scratch[0])
        std, one = scratch[1][: logvar.size], scratch[2][: logvar.size]
        exp_scaled(logvar, 0.5, std)
        fill(one, 1.0)
        fill(dmu, 0.0)
        fill(dlogvar, 0.0)
        for k in range(samples):
            dz = load(dz_ptr, sample_of(tile, k, rows), scratch[5])
            # Only the sum over samples is multiplied by std: if that is infinite, products of
            # single samples would add up to inf - inf.
            add_sample_gradients(dz, one, 1.0, draw(seed, k, tile, noise), one, dmu, dlogvar)
        half_times(std, dlogvar)
        store(dmu_ptr, tile, dmu)
        store(dlogvar_ptr, tile, dlogvar)


@kernel
def rsample_log_ratio_kernel(
    queue, step, rows, cols, scratch, seed, first_draw, draws, sides, improper_prior, mu_ptr,
    logvar_ptr, prior_mu_ptr, prior_logvar_ptr, z_ptr, log_ratio_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    noise, pieces = noise_buffers(scratch), pieces_of_sums(queue)
    for tile in tiles(queue, step, rows, cols, NOISE_BLOCK):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        std, distance, logvar_ratio, growth, _, _ = relative_to_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, improper_prior, tile, scratch[4:]
        )
        for number in range(draws):
            eps = draw(seed, first_draw + number, tile, noise)
            for side in range(sides):
                sign, k = 1.0 - 2.0 * side, sides * number + side
                here = sample_of(tile, k, rows)
                z = target(z_ptr, here, scratch[2])
                sample_of_side(mu, std, sign, eps, z)
                store(z_ptr, here, z)
                log_ratio = scratch[3][: mu.size]
                log_ratio_terms(distance, logvar_ratio, growth, sign, eps, log_ratio)
                add_rows(log_ratio, here, cols, 0.5, pieces, log_ratio_ptr)


@kernel
def rsample_log_ratio_backward_kernel(
    queue, step, rows, cols, scratch, seed, first_draw, draws, sides, gradient, improper_prior,
    mu_ptr, logvar_ptr, prior_mu_ptr, prior_logvar_ptr, dz_ptr, dlog_ratio_ptr, total_ptr,
    dmu_ptr, dlogvar_ptr, dprior_mu_ptr, dprior_logvar_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    noise = noise_buffers(scratch)
    for tile in tiles(queue, step, rows, cols, NOISE_BLOCK):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        std, distance, _, growth, ratio, root = relative_to_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, improper_prior, tile, scratch[10:]
        )
        inverse_std, weight = scratch[2][: mu.size], scratch[3][: mu.size]
        if gradient != TOTAL:
            exp_scaled(logvar, -0.5, inverse_std)
        fill(weight, 1.0)
        dmu, dlogvar = target(dmu_ptr, tile, scratch[4]), target(dlogvar_ptr, tile, scratch[5])
        dprior_mu = target(dprior_mu_ptr, tile, scratch[6])
        dprior_logvar = target(dprior_logvar_ptr, tile, scratch[7])
        for output in (dmu, dlogvar, dprior_mu, dprior_logvar):
            fill(output, 0.0)
        for number in range(draws):
            eps = draw(seed, first_draw + number, tile, noise)
            for side in range(sides):
                sign, here = 1.0 - 2.0 * side, sample_of(tile, sides * number + side, rows)
                if present(dlog_ratio_ptr):
                    dlog_ratio = load(dlog_ratio_ptr, here, scratch[8])
                    if gradient == DREG:
                        normalise(dlog_ratio, load(total_ptr, tile, scratch[9]), weight)
                    if gradient == TOTAL:
                        add_total_gradients(
                            dlog_ratio, sign, eps, distance, ratio, root,
                            dmu, dlogvar, dprior_mu, dprior_logvar,
                        )  # fmt: skip
                    else:
                        add_path_gradients(
                            dlog_ratio, weight, sign, eps, inverse_std, distance, growth, ratio,
                            root, dmu, dlogvar, dprior_mu, dprior_logvar,
                        )  # fmt: skip
                if present(dz_ptr):
                    dz = load(dz_ptr, here, scratch[9])
                    add_sample_gradients(dz, weight, sign, eps, std, dmu, dlogvar)
        scale(dlogvar, 0.5)
        scale(dprior_logvar, 0.5)
        store(dmu_ptr, tile, dmu)
        store(dlogvar_ptr, tile, dlogvar)
        store(dprior_mu_ptr, tile, dprior_mu)
        store(dprior_logvar_ptr, tile, dprior_logvar)


def gaussian_rsample(mu, logvar, seed, samples, keep_noise):
    """[z], and the noise if it is kept, from mu and logvar."""
    rows, cols = mu.shape
    acc = accumulator(mu, logvar)
    z = empty_like_rows(mu) if samples is None else mu.new_empty(samples, rows, cols)
    samples = 1 if samples is None else samples
    noise = mu.new_empty(mu.shape, dtype=acc) if keep_noise else None
    launch(
        rsample_kernel,
        acc,
        rows,
        cols,
        seed.item(),
        samples,
        operand(mu),
        operand(logvar),
        operand(z if z.dim() == 2 else z.view(samples * rows, cols)),
        operand(noise),
        cost=samples,
        tile=NOISE_BLOCK,
    )
    return [z, noise] if keep_noise else [z]


def gaussian_rsample_backward(dz, logvar, seed, samples, noise, needs):
    """The wanted gradients, from dz in the shape of z; they do not depend on mu."""
    rows, cols = logvar.shape
    samples = 1 if samples is None else samples
    gradients = [empty_like_rows(logvar, needed) for needed in needs]
    dz = dz if dz.dim() == 2 else dz.reshape(samples * rows, cols)
    launch(
        rsample_backward_kernel,
        accumulator(logvar),
        rows,
        cols,
        seed.item(),
        samples,
        operand(logvar),
        operand(noise),
        operand(dz),
        *map(operand, gradients),
        cost=samples if noise is None else 0.3,
        tile=NOISE_BLOCK,
    )
    return [g for g in gradients if g is not None]


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
    """z [samples, rows, cols] and the log ratio [samples, rows].

    ``first_draw`` is where in the noise stream the samples begin, in draws: samples, or pairs.
    ``gradient`` says what backward does.
    """
    inputs = mu, logvar, prior_mu, prior_logvar
    log_ratio = torch.empty(samples, mu.shape[0], dtype=accumulator(*inputs), device="cpu")
    sides = 2 if antithetic else 1
    rows, cols = mu.shape
    z = mu.new_empty(samples, rows, cols)
    launch(
        rsample_log_ratio_kernel,
        log_ratio.dtype,
        rows,
        cols,
        seed.item(),
        first_draw,
        samples // sides,
        sides,
        improper_prior,
        *map(operand, inputs),
        operand(z.view(samples * rows, cols)),
        operand(log_ratio.view(-1)),
        cost=samples,
        tile=NOISE_BLOCK,
        sums=samples * rows,
    )
    return z, log_ratio


def rsample_log_ratio_backward(
    dz, dlog_ratio, mu, logvar, prior_mu, prior_logvar, seed, first_draw, samples, gradient,
    improper_prior, antithetic, needs,
):  # fmt: skip
    """The wanted gradients, from dz [samples, rows, cols] and dlog_ratio [samples, rows], or None.

    Into q the gradient at z flows, and in "total" that of q's own density too; "path" leaves
    that one out, and "dreg" multiplies what "path" has by the normalised weight once more.
    """
    inputs = mu, logvar, prior_mu, prior_logvar
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    rows, cols = mu.shape
    sides = 2 if antithetic else 1
    total = None
    if dlog_ratio is None:
        gradient = "total"
    else:
        total = dlog_ratio.sum(0) if gradient == "dreg" else None
        dlog_ratio = dlog_ratio.reshape(-1)
    dz = None if dz is None else dz.reshape(samples * rows, cols)
    launch(
        rsample_log_ratio_backward_kernel,
        accumulator(*inputs),
        rows,
        cols,
        seed.item(),
        first_draw,
        samples // sides,
        sides,
        GRADIENTS[gradient],
        improper_prior,
        *map(operand, inputs),
        operand(dz),
        operand(dlog_ratio),
        operand(total),
        *map(operand, gradients),
        cost=samples,
        tile=NOISE_BLOCK,
    )
    return [g for g in gradients if g is not None]
