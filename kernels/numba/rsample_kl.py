"""One reparameterised sample, z = mu + exp(logvar / 2) eps, and the KL to the prior.

Backward draws the same eps again from the seed, at 0.5 ns each: no noise is stored.
"""

import numpy as np
import torch

from ..rows import accumulator, empty_like_rows
from .compiler import elementwise, kernel
from .device import fill, in_units_of_prior
from .gaussian_kl import kl_gradients, kl_prior_gradients, kl_terms
from .launch import launch
from .memory import BLOCK, add_rows, load, operand, present, store, target, tiles, workspace
from .noise import draw, noise_buffers


@elementwise
def sample(mu, std, eps, z):
    real = z.dtype.type
    for i in range(z.size):
        z[i] = mu[i] + std[i] * real(eps[i])


@elementwise
def add_sample_gradients(dz, std, eps, dmu, dlogvar):
    real = dmu.dtype.type
    for i in range(dmu.size):
        dmu[i] += dz[i]
        dlogvar[i] += real(0.5) * std[i] * (dz[i] * real(eps[i]))


@kernel
def rsample_kl_kernel(
    lo, hi, cols, scratch, seed, mu_ptr, logvar_ptr, prior_mu_ptr, prior_logvar_ptr, z_ptr, kl_ptr
):
    scratch = workspace(scratch)
    noise, partial = noise_buffers(scratch), np.empty(BLOCK)
    for tile in tiles(lo, hi, cols):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        std, distance, logvar_ratio, ratio, _ = in_units_of_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, tile, scratch[4:]
        )
        z, kl = target(z_ptr, tile, scratch[2]), scratch[3][: mu.size]
        sample(mu, std, draw(seed, 0, tile, noise), z)
        store(z_ptr, tile, z)
        kl_terms(distance, logvar_ratio, ratio, kl)
        add_rows(kl, tile, cols, 0.5, partial, kl_ptr)


@kernel
def rsample_kl_backward_kernel(
    lo, hi, cols, scratch, seed, mu_ptr, logvar_ptr, prior_mu_ptr, prior_logvar_ptr, dz_ptr,
    dkl_ptr, dmu_ptr, dlogvar_ptr, dprior_mu_ptr, dprior_logvar_ptr,
):  # fmt: skip
    scratch = workspace(scratch)
    noise = noise_buffers(scratch)
    for tile in tiles(lo, hi, cols):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        std, distance, logvar_ratio, ratio, root = in_units_of_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, tile, scratch[7:]
        )
        dmu, dlogvar = target(dmu_ptr, tile, scratch[2]), target(dlogvar_ptr, tile, scratch[3])
        if present(dkl_ptr):
            dkl = load(dkl_ptr, tile, scratch[4])
            kl_gradients(dkl, distance, logvar_ratio, ratio, root, dmu, dlogvar)
            if present(dprior_mu_ptr) or present(dprior_logvar_ptr):
                dprior_mu = target(dprior_mu_ptr, tile, scratch[5])
                dprior_logvar = target(dprior_logvar_ptr, tile, scratch[6])
                kl_prior_gradients(dkl, distance, dmu, dlogvar, dprior_mu, dprior_logvar)
                store(dprior_mu_ptr, tile, dprior_mu)
                store(dprior_logvar_ptr, tile, dprior_logvar)
        else:
            fill(dmu, 0.0)
            fill(dlogvar, 0.0)
        if present(dz_ptr):
            dz = load(dz_ptr, tile, scratch[4])
            add_sample_gradients(dz, std, draw(seed, 0, tile, noise), dmu, dlogvar)
        store(dmu_ptr, tile, dmu)
        store(dlogvar_ptr, tile, dlogvar)


def rsample_kl(mu, logvar, prior_mu, prior_logvar, seed):
    """z [rows, cols] and the KL [rows] of mu, logvar, prior_mu and prior_logvar, or None."""
    inputs = mu, logvar, prior_mu, prior_logvar
    acc = accumulator(*inputs)
    z, kl = empty_like_rows(mu), torch.empty(mu.shape[0], dtype=acc)
    launch(
        rsample_kl_kernel,
        acc,
        *mu.shape,
        seed.item(),
        *map(operand, (*inputs, z, kl)),
        cost=1.0,
    )
    return z, kl


def rsample_kl_backward(dz, dkl, mu, logvar, prior_mu, prior_logvar, seed, needs):
    """The wanted gradients, from dz [rows, cols] and dkl [rows]; either may be None."""
    inputs = mu, logvar, prior_mu, prior_logvar
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    if dkl is None:  # the prior is in the KL alone, and the kernel leaves its gradients be
        gradients[2:] = [g if g is None else g.zero_() for g in gradients[2:]]
    launch(
        rsample_kl_backward_kernel,
        accumulator(*inputs),
        *mu.shape,
        seed.item(),
        *map(operand, (*inputs, dz, dkl, *gradients)),
        cost=1.2,
    )
    return [g for g in gradients if g is not None]
