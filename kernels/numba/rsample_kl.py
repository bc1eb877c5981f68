"""One reparameterised sample, z = mu + exp(logvar / 2) eps, and the KL to the prior."""

from ..rows import accumulator, empty_like_rows, zeroed_prior
from .compiler import elementwise, kernel
from .device import exp_scaled, fill
from .gaussian_kl import add_kl, write_kl_gradients
from .gaussian_rsample import sample
from .launch import launch
from .memory import load, operand, present, store, target, tiles, workspace
from .noise import NOISE_BLOCK, draw, noise_buffers
from .sums import pieces_of_sums


@elementwise
def add_sample_gradients(dz, noise, dmu, dlogvar):
    real = dmu.dtype.type
    for i in range(dmu.size):
        dmu[i] += dz[i]
        dlogvar[i] += real(0.5) * (dz[i] * noise[i])


@elementwise
def scaled(eps, std, noise):
    real = noise.dtype.type
    for i in range(noise.size):
        noise[i] = std[i] * real(eps[i])


@kernel
def rsample_kl_kernel(
    queue, step, rows, cols, scratch, seed, mu_ptr, logvar_ptr, prior_mu_ptr, prior_logvar_ptr,
    z_ptr, kl_ptr, noise_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    buffers, pieces = noise_buffers(scratch), pieces_of_sums(queue)
    prior = prior_mu_ptr, prior_logvar_ptr
    for tile in tiles(queue, step, rows, cols, NOISE_BLOCK):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        noise, z = target(noise_ptr, tile, scratch[2]), target(z_ptr, tile, scratch[3])
        std = scratch[4][: mu.size]
        exp_scaled(logvar, 0.5, std)
        sample(mu, std, draw(seed, 0, tile, buffers), noise, z)
        store(z_ptr, tile, z)
        add_kl(mu, logvar, *prior, tile, cols, pieces, kl_ptr, scratch[5:])


@kernel
def rsample_kl_backward_kernel(
    queue, step, rows, cols, scratch, seed, mu_ptr, logvar_ptr, prior_mu_ptr, prior_logvar_ptr,
    noise_ptr, dz_ptr, dkl_ptr, dmu_ptr, dlogvar_ptr, dprior_mu_ptr, dprior_logvar_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    buffers = noise_buffers(scratch)
    prior, dprior = (prior_mu_ptr, prior_logvar_ptr), (dprior_mu_ptr, dprior_logvar_ptr)
    for tile in tiles(queue, step, rows, cols, NOISE_BLOCK):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        dmu, dlogvar = target(dmu_ptr, tile, scratch[2]), target(dlogvar_ptr, tile, scratch[3])
        if present(dkl_ptr):
            dkl = load(dkl_ptr, tile, scratch[4])
            write_kl_gradients(dkl, mu, logvar, *prior, tile, dmu, dlogvar, *dprior, scratch[5:])
        else:
            fill(dmu, 0.0)
            fill(dlogvar, 0.0)
        if present(dz_ptr):
            dz = load(dz_ptr, tile, scratch[4])
            if present(noise_ptr):
                add_sample_gradients(dz, load(noise_ptr, tile, scratch[5]), dmu, dlogvar)
            else:
                noise, std = scratch[5][: mu.size], scratch[6][: mu.size]
                exp_scaled(logvar, 0.5, std)
                scaled(draw(seed, 0, tile, buffers), std, noise)
                add_sample_gradients(dz, noise, dmu, dlogvar)
        store(dmu_ptr, tile, dmu)
        store(dlogvar_ptr, tile, dlogvar)


def rsample_kl(mu, logvar, prior_mu, prior_logvar, seed, keep_noise):
    """[z [rows, cols], the KL [rows]], and the noise if it is kept."""
    inputs = mu, logvar, prior_mu, prior_logvar
    acc = accumulator(*inputs)
    results = [empty_like_rows(mu), mu.new_empty(mu.shape[0], dtype=acc)]
    if keep_noise:
        results.append(mu.new_empty(mu.shape, dtype=acc))
    outputs = results if keep_noise else (*results, None)
    launch(
        rsample_kl_kernel,
        acc,
        *mu.shape,
        seed.item(),
        *map(operand, (*inputs, *outputs)),
        cost=1.0,
        tile=NOISE_BLOCK,
        sums=mu.shape[0],
    )
    return results


def rsample_kl_backward(dz, dkl, mu, logvar, prior_mu, prior_logvar, seed, noise, needs):
    """The wanted gradients, from dz [rows, cols] and dkl [rows]; either may be None."""
    inputs = mu, logvar, prior_mu, prior_logvar
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    if dkl is None:
        gradients = zeroed_prior(gradients)
    launch(
        rsample_kl_backward_kernel,
        accumulator(*inputs),
        *mu.shape,
        seed.item(),
        *map(operand, (*inputs, noise, dz, dkl, *gradients)),
        cost=0.5 if noise is not None else 1.2,
        tile=NOISE_BLOCK,
    )
    return [g for g in gradients if g is not None]
