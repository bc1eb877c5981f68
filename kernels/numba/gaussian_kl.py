"""KL between diagonal Gaussians, KL(N(mu, exp logvar) || N(prior_mu, exp prior_logvar)).

Row sums of 0.5 ((mu - prior_mu)^2 exp(-prior_logvar) + expm1(d) - d), with
d = logvar - prior_logvar; no prior means the standard one.
"""

import numpy as np
import torch

from ..rows import accumulator, empty_like_rows
from .compiler import elementwise, kernel
from .device import exp, expm1, expm1_minus_x, in_units_of_prior
from .launch import launch
from .memory import BLOCK, add_rows, load, operand, present, store, target, tiles, workspace


@elementwise
def kl_terms(distance, logvar_ratio, ratio, kl):
    for i in range(kl.size):
        kl[i] = distance[i] * distance[i] + expm1_minus_x(logvar_ratio[i], ratio[i] * ratio[i])


@elementwise
def kl_gradients(dkl, distance, logvar_ratio, ratio, root, dmu, dlogvar):
    real = dmu.dtype.type
    for i in range(dmu.size):
        dmu[i] = dkl[i] * (distance[i] * root[i])
        dlogvar[i] = real(0.5) * dkl[i] * expm1(logvar_ratio[i], ratio[i] * ratio[i])


@elementwise
def kl_prior_gradients(dkl, distance, dmu, dlogvar, dprior_mu, dprior_logvar):
    real = dmu.dtype.type
    for i in range(dmu.size):
        dprior_mu[i] = -dmu[i]
        dprior_logvar[i] = -dlogvar[i] - real(0.5) * dkl[i] * (distance[i] * distance[i])


# To the standard prior, which most have, in half the passes over a tile.
@elementwise
def standard_kl_terms(mu, logvar, kl):
    for i in range(kl.size):
        kl[i] = mu[i] * mu[i] + expm1_minus_x(logvar[i], exp(logvar[i]))


@elementwise
def standard_kl_gradients(dkl, mu, logvar, dmu, dlogvar):
    real = dmu.dtype.type
    for i in range(dmu.size):
        dmu[i] = dkl[i] * mu[i]
        dlogvar[i] = real(0.5) * dkl[i] * expm1(logvar[i], exp(logvar[i]))


@kernel
def gaussian_kl_kernel(
    lo, hi, cols, scratch, mu_ptr, logvar_ptr, prior_mu_ptr, prior_logvar_ptr, kl_ptr
):
    scratch = workspace(scratch)
    partial = np.empty(BLOCK)
    for tile in tiles(lo, hi, cols):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        kl = scratch[2][: mu.size]
        if present(prior_mu_ptr):
            _, distance, logvar_ratio, ratio, _ = in_units_of_prior(
                mu, logvar, prior_mu_ptr, prior_logvar_ptr, tile, scratch[3:]
            )
            kl_terms(distance, logvar_ratio, ratio, kl)
        else:
            standard_kl_terms(mu, logvar, kl)
        add_rows(kl, tile, cols, 0.5, partial, kl_ptr)


@kernel
def gaussian_kl_backward_kernel(
    lo, hi, cols, scratch, mu_ptr, logvar_ptr, prior_mu_ptr, prior_logvar_ptr, dkl_ptr,
    dmu_ptr, dlogvar_ptr, dprior_mu_ptr, dprior_logvar_ptr,
):  # fmt: skip
    scratch = workspace(scratch)
    for tile in tiles(lo, hi, cols):
        mu, logvar = load(mu_ptr, tile, scratch[0]), load(logvar_ptr, tile, scratch[1])
        dkl = load(dkl_ptr, tile, scratch[2])
        dmu, dlogvar = target(dmu_ptr, tile, scratch[3]), target(dlogvar_ptr, tile, scratch[4])
        if not present(prior_mu_ptr):
            standard_kl_gradients(dkl, mu, logvar, dmu, dlogvar)
            store(dmu_ptr, tile, dmu)
            store(dlogvar_ptr, tile, dlogvar)
            continue
        _, distance, logvar_ratio, ratio, root = in_units_of_prior(
            mu, logvar, prior_mu_ptr, prior_logvar_ptr, tile, scratch[7:]
        )
        kl_gradients(dkl, distance, logvar_ratio, ratio, root, dmu, dlogvar)
        store(dmu_ptr, tile, dmu)
        store(dlogvar_ptr, tile, dlogvar)
        if present(dprior_mu_ptr) or present(dprior_logvar_ptr):
            dprior_mu = target(dprior_mu_ptr, tile, scratch[5])
            dprior_logvar = target(dprior_logvar_ptr, tile, scratch[6])
            kl_prior_gradients(dkl, distance, dmu, dlogvar, dprior_mu, dprior_logvar)
            store(dprior_mu_ptr, tile, dprior_mu)
            store(dprior_logvar_ptr, tile, dprior_logvar)


def gaussian_kl(mu, logvar, prior_mu, prior_logvar):
    """The KL of each row of mu, logvar, prior_mu and prior_logvar, [rows, cols] or None."""
    inputs = mu, logvar, prior_mu, prior_logvar
    acc = accumulator(*inputs)
    kl = torch.empty(mu.shape[0], dtype=acc)
    launch(gaussian_kl_kernel, acc, *mu.shape, *map(operand, (*inputs, kl)), cost=0.4)
    return kl


def gaussian_kl_backward(dkl, mu, logvar, prior_mu, prior_logvar, needs):
    """The wanted gradients, from dkl [rows]."""
    inputs = mu, logvar, prior_mu, prior_logvar
    gradients = [empty_like_rows(t, n) for t, n in zip(inputs, needs, strict=True)]
    launch(
        gaussian_kl_backward_kernel,
        accumulator(*inputs),
        *mu.shape,
        *map(operand, (*inputs, dkl, *gradients)),
        cost=0.6,
    )
    return [g for g in gradients if g is not None]
