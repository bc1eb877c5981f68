"""A sample and the KL of Gaussians as networks put them out: means, and something for the spread.

The forms of the spread are described in ``../triton/posterior.py``. Here every form is turned into
a mean and a log variance where it is loaded, and the gradients of those into its own where they are
stored. Between the two lies rsample_kl's code.
"""

import torch

from ..rows import GREATEST_LOGVAR, LEAST_LOGVAR, accumulator, empty_like_rows, zeroed_prior
from .compiler import elementwise, helper, kernel
from .device import exp, exp_scaled, expm1_minus_x_given, fill, log, tanh
from .gaussian_kl import (
    in_units_of_prior,
    kl_gradients,
    kl_to_prior,
    standard_kl,
    standard_kl_gradients,
)
from .gaussian_rsample import sample
from .launch import launch
from .memory import load, operand, operands, present, store, target, tiles, workspace
from .noise import NOISE_BLOCK, draw, noise_buffers
from .rsample_kl import add_sample_gradients, scaled
from .sums import pieces_of_sums

CLAMPED_LOGVAR, LOG_STD, STD, VARIANCE = range(4)
FORMS = {"clamped_logvar": CLAMPED_LOGVAR, "log_std": LOG_STD, "std": STD, "variance": VARIANCE}


@elementwise
def clamped(logvar, result):
    real = result.dtype.type
    for i in range(result.size):
        x = logvar[i]
        x = real(LEAST_LOGVAR) if x < real(LEAST_LOGVAR) else x
        result[i] = real(GREATEST_LOGVAR) if x > real(GREATEST_LOGVAR) else x


@elementwise
def clamped_gradients(logvar, dclamped, dlogvar):
    real = dlogvar.dtype.type
    for i in range(dlogvar.size):
        x = logvar[i]
        inside = (x >= real(LEAST_LOGVAR)) & (x <= real(GREATEST_LOGVAR))
        dlogvar[i] = dclamped[i] if inside else real(0.0)


@elementwise
def times(x, factor, result):
    real = result.dtype.type
    for i in range(result.size):
        result[i] = real(factor) * x[i]


@elementwise
def soft_clamped(x, bound, result):
    real = result.dtype.type
    for i in range(result.size):
        result[i] = real(bound) * tanh(x[i] / real(bound))


@elementwise
def soft_clamped_gradients(x, bound, dclamped, dx):
    real = dx.dtype.type
    for i in range(dx.size):
        t = tanh(x[i] / real(bound))
        dx[i] = dclamped[i] * (real(1.0) - t * t)


@elementwise
def logvar_of(log_std, offset, logvar):
    real = logvar.dtype.type
    for i in range(logvar.size):
        logvar[i] = real(2.0) * log(exp(log_std[i]) + real(offset))


@elementwise
def log_std_gradients(log_std, offset, dlogvar, dlog_std):
    real = dlog_std.dtype.type
    for i in range(dlog_std.size):
        std = exp(log_std[i])
        dlog_std[i] = real(2.0) * dlogvar[i] * (std / (std + real(offset)))


@elementwise
def log_times(x, factor, result):
    real = result.dtype.type
    for i in range(result.size):
        result[i] = real(factor) * log(x[i])


@elementwise
def log_gradients(x, factor, dlog, dx):
    real = dx.dtype.type
    for i in range(dx.size):
        dx[i] = real(factor) * dlog[i] / x[i]


@helper
def gaussian(mean_ptr, spread_ptr, form, soft_clamp, std_offset, tile, scratch):
    """(mu, logvar) of a tile."""
    mu, spread = load(mean_ptr, tile, scratch[0]), load(spread_ptr, tile, scratch[1])
    logvar = scratch[2][: mu.size]
    if form == CLAMPED_LOGVAR:
        clamped(spread, logvar)
        return mu, logvar
    if form != LOG_STD:
        log_times(spread, 2.0 if form == STD else 1.0, logvar)
        return mu, logvar
    if soft_clamp > 0.0:
        soft_mu, soft_spread = scratch[3][: mu.size], scratch[4][: mu.size]
        soft_clamped(mu, soft_clamp, soft_mu)
        soft_clamped(spread, soft_clamp, soft_spread)
        mu, spread = soft_mu, soft_spread
    if std_offset > 0.0:
        logvar_of(spread, std_offset, logvar)
    else:
        times(spread, 2.0, logvar)
    return mu, logvar


@helper
def write_gradients(
    dmu, dlogvar, mean_ptr, spread_ptr, dmean_ptr, dspread_ptr, form, soft_clamp, std_offset, tile,
    scratch,
):  # fmt: skip
    """From those of mu and logvar."""
    spread, dspread = load(spread_ptr, tile, scratch[0]), target(dspread_ptr, tile, scratch[1])
    if form == CLAMPED_LOGVAR:
        clamped_gradients(spread, dlogvar, dspread)
    elif form != LOG_STD:
        log_gradients(spread, 2.0 if form == STD else 1.0, dlogvar, dspread)
    elif soft_clamp > 0.0:
        soft, dsoft = scratch[2][: dmu.size], scratch[3][: dmu.size]
        soft_clamped(spread, soft_clamp, soft)
        log_std_gradients(soft, std_offset, dlogvar, dsoft)
        soft_clamped_gradients(spread, soft_clamp, dsoft, dspread)
    elif std_offset > 0.0:
        log_std_gradients(spread, std_offset, dlogvar, dspread)
    else:
        times(dlogvar, 2.0, dspread)
    store(dspread_ptr, tile, dspread)
    if present(dmean_ptr):
        dmean = target(dmean_ptr, tile, scratch[1])
        if soft_clamp > 0.0:
            soft_clamped_gradients(load(mean_ptr, tile, scratch[0]), soft_clamp, dmu, dmean)
        else:
            times(dmu, 1.0, dmean)
        store(dmean_ptr, tile, dmean)


@elementwise
def kl_of_elements(mu, logvar, prior_mu, prior_logvar, kl):
    real = kl.dtype.type
    for i in range(kl.size):
        distance, logvar_ratio, ratio, _ = in_units_of_prior(
            mu[i], logvar[i], prior_mu[i], prior_logvar[i]
        )
        kl[i] = real(0.5) * (distance * distance + expm1_minus_x_given(logvar_ratio, ratio))


@kernel
def posterior_kernel(
    queue, step, rows, cols, scratch, seed, form, soft_clamp, std_offset, elementwise, mean_ptr,
    spread_ptr, prior_mean_ptr, prior_spread_ptr, eps_ptr, z_ptr, kl_ptr, noise_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    buffers, pieces = noise_buffers(scratch), pieces_of_sums(queue)
    options = form, soft_clamp, std_offset
    for tile in tiles(queue, step, rows, cols, NOISE_BLOCK):
        mu, logvar = gaussian(mean_ptr, spread_ptr, *options, tile, scratch[0:])
        if present(z_ptr):
            noise, z = target(noise_ptr, tile, scratch[5]), target(z_ptr, tile, scratch[6])
            std = scratch[7][: mu.size]
            exp_scaled(logvar, 0.5, std)
            if present(eps_ptr):
                sample(mu, std, load(eps_ptr, tile, scratch[8]), noise, z)
            else:
                sample(mu, std, draw(seed, 0, tile, buffers), noise, z)
            store(z_ptr, tile, z)
        if not present(prior_mean_ptr) and not elementwise:
            standard_kl((mu, logvar), tile, cols, 0.5, pieces, kl_ptr, scratch[5])
            continue
        if present(prior_mean_ptr):
            prior = gaussian(prior_mean_ptr, prior_spread_ptr, *options, tile, scratch[9:])
        else:
            prior = scratch[9][: mu.size], scratch[10][: mu.size]
            fill(prior[0], 0.0)
            fill(prior[1], 0.0)
        if elementwise:
            kl = target(kl_ptr, tile, scratch[5])
            kl_of_elements(mu, logvar, *prior, kl)
            store(kl_ptr, tile, kl)
        else:
            q_and_prior = mu, logvar, prior[0], prior[1]
            kl_to_prior(q_and_prior, tile, cols, 0.5, pieces, kl_ptr, scratch[5])


@kernel
def posterior_backward_kernel(
    queue, step, rows, cols, scratch, seed, form, soft_clamp, std_offset, mean_ptr, spread_ptr,
    prior_mean_ptr, prior_spread_ptr, eps_ptr, noise_ptr, dz_ptr, dkl_ptr, dmean_ptr, dspread_ptr,
    dprior_mean_ptr, dprior_spread_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    buffers = noise_buffers(scratch)
    options = form, soft_clamp, std_offset
    for tile in tiles(queue, step, rows, cols, NOISE_BLOCK):
        mu, logvar = gaussian(mean_ptr, spread_ptr, *options, tile, scratch[0:])
        size = mu.size
        dmu, dlogvar = scratch[5][:size], scratch[6][:size]
        if not present(dkl_ptr):
            fill(dmu, 0.0)
            fill(dlogvar, 0.0)
        elif present(prior_mean_ptr):
            dkl = load(dkl_ptr, tile, scratch[7])
            prior = gaussian(prior_mean_ptr, prior_spread_ptr, *options, tile, scratch[8:])
            dprior_mu, dprior_logvar = scratch[13][:size], scratch[14][:size]
            kl_gradients(dkl, mu, logvar, *prior, dmu, dlogvar, dprior_mu, dprior_logvar)
            if present(dprior_mean_ptr) or present(dprior_spread_ptr):
                write_gradients(
                    dprior_mu, dprior_logvar, prior_mean_ptr, prior_spread_ptr, dprior_mean_ptr,
                    dprior_spread_ptr, *options, tile, scratch[7:],
                )  # fmt: skip
        else:
            standard_kl_gradients(load(dkl_ptr, tile, scratch[7]), mu, logvar, dmu, dlogvar)
        if present(dz_ptr):
            dz, noise = load(dz_ptr, tile, scratch[7]), scratch[8][:size]
            if present(noise_ptr):
                noise = load(noise_ptr, tile, noise)
            else:
                std = scratch[9][:size]
                exp_scaled(logvar, 0.5, std)
                if present(eps_ptr):
                    scaled(load(eps_ptr, tile, scratch[10]), std, noise)
                else:
                    scaled(draw(seed, 0, tile, buffers), std, noise)
            add_sample_gradients(dz, noise, dmu, dlogvar)
        write_gradients(
            dmu, dlogvar, mean_ptr, spread_ptr, dmean_ptr, dspread_ptr, *options, tile, scratch[7:]
        )


def latents(mean, spread):
    """[rows, cols] of the means, which may be the first half of the columns."""
    rows, cols = mean.shape
    return (rows, cols) if spread is not None else (rows, cols // 2)


def launch_posterior(
    q, q_spread, prior, prior_spread, form, soft_clamp, std_offset, *, outputs, elementwise=False,
    noise=None, seed=None,
):  # fmt: skip
    """Launch with outputs (z, the KL, the noise to be kept), of which some may be None."""
    launch(
        posterior_kernel,
        accumulator(q, q_spread, prior, prior_spread),
        *latents(q, q_spread),
        0 if seed is None else seed.item(),
        FORMS[form],
        soft_clamp,
        std_offset,
        elementwise,
        *operands(q, q_spread),
        *operands(prior, prior_spread),
        *map(operand, (noise, *outputs)),
        cost=0.4 if outputs[0] is None or noise is not None else 1.0,
        tile=NOISE_BLOCK,
        sums=len(q),
    )


def launch_posterior_backward(
    dz, dkl, inputs, noise, seed, kept, form, soft_clamp, std_offset, needs
):
    """The wanted gradients; either of ``dz`` and ``dkl`` may be None."""
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    if dkl is None:
        gradients = zeroed_prior(gradients)
    q, q_spread, prior, prior_spread = inputs
    launch(
        posterior_backward_kernel,
        accumulator(*inputs),
        *latents(q, q_spread),
        0 if seed is None else seed.item(),
        FORMS[form],
        soft_clamp,
        std_offset,
        *operands(q, q_spread),
        *operands(prior, prior_spread),
        *map(operand, (noise, kept, dz, dkl)),
        *gradient_operands(gradients[:2], q_spread),
        *gradient_operands(gradients[2:], prior_spread),
        cost=0.6 if seed is None or kept is not None else 1.3,
        tile=NOISE_BLOCK,
    )
    return [g for g in gradients if g is not None]


def gradient_operands(gradients, spread):
    """Operands of the gradients in mean and spread, or of the halves of one tensor."""
    return operands(*gradients) if spread is None else map(operand, gradients)


def posterior_kl(q, q_spread, prior, prior_spread, form, soft_clamp, std_offset, elementwise):
    """The KL of each row, or of each element."""
    inputs = q, q_spread, prior, prior_spread
    rows, cols = latents(q, q_spread)
    kl = torch.empty(
        (rows, cols) if elementwise else rows, dtype=accumulator(*inputs), device="cpu"
    )
    launch_posterior(
        *inputs, form, soft_clamp, std_offset, elementwise=elementwise, outputs=(None, kl, None)
    )
    return kl


def posterior_kl_backward(
    dkl, q, q_spread, prior, prior_spread, form, soft_clamp, std_offset, elementwise, needs
):
    inputs = q, q_spread, prior, prior_spread
    options = form, soft_clamp, std_offset
    return launch_posterior_backward(None, dkl, inputs, None, None, None, *options, needs)


def posterior_sample_kl(
    q, q_spread, prior, prior_spread, noise, seed, form, soft_clamp, std_offset, keep_noise
):
    """[z [rows, cols], the KL [rows], and the noise if it is to be kept]."""
    inputs = q, q_spread, prior, prior_spread
    acc, shape = accumulator(*inputs), latents(q, q_spread)
    results = [
        torch.empty(shape, dtype=q.dtype, device="cpu"),
        torch.empty(shape[0], dtype=acc, device="cpu"),
    ]
    if keep_noise:
        results.append(torch.empty(shape, dtype=acc, device="cpu"))
    outputs = results if keep_noise else (*results, None)
    launch_posterior(*inputs, form, soft_clamp, std_offset, noise=noise, seed=seed, outputs=outputs)
    return results


def posterior_sample_kl_backward(
    dz, dkl, q, q_spread, prior, prior_spread, noise, seed, form, soft_clamp, std_offset,
    keep_noise, kept, needs,
):  # fmt: skip
    inputs = q, q_spread, prior, prior_spread
    options = form, soft_clamp, std_offset
    return launch_posterior_backward(dz, dkl, inputs, noise, seed, kept, *options, needs)
