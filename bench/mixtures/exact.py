"""The answers in float64, written anew.

Log densities of all pairs by the expanded square, a matrix product: float64 has the digits for it,
and nothing is of the size of all pairs and latents.
"""

import math

import torch
from torch.utils.checkpoint import checkpoint

from ..harness.oracle import log_density

LOG_2PI = math.log(2 * math.pi)


def log_densities(z, mu, logvar):
    """log N(z_b; mu_k, exp logvar_k), [B, K]."""
    precision = torch.exp(-logvar)
    squares = z**2 @ precision.T - 2 * (z @ (mu * precision).T) + (mu**2 * precision).sum(-1)
    return -0.5 * (squares + logvar.sum(-1) + z.shape[1] * LOG_2PI)


def log_mean(log_densities, weights):
    """log of the sum over k with weights that add up to 1, [K] or [B, K]."""
    greatest = log_densities.detach().amax(1, keepdim=True)
    densities = torch.exp(log_densities - greatest)
    return (densities * weights).sum(1).log() + greatest.squeeze(1)


def mixture(z, mu, logvar, weights=None):
    weights = z.new_full((len(mu),), 1 / len(mu)) if weights is None else weights
    return log_mean(log_densities(z, mu, logvar), weights)


def marginals(z, mu, logvar, weights=None):
    """sum_d log q(z_d), a latent at a time: backward computes its pairs again."""
    latents = zip(*(t.split(1, 1) for t in (z, mu, logvar)), strict=True)
    return sum(checkpoint(mixture, *one, weights, use_reentrant=False) for one in latents)


def decomposition(z, own, components, weights=None):
    """Mutual information, total correlation and dimension-wise KL (Chen et al. 2018, eq. 2)."""
    joint, product = mixture(z, *components, weights), marginals(z, *components, weights)
    zero = torch.zeros_like(z)
    return log_density(z, *own) - joint, joint - product, product - log_density(z, zero, zero)


def aggregate(z, mu, logvar, all_mu, all_logvar):
    return decomposition(z, (mu, logvar), (all_mu, all_logvar))


def stratified(z, mu, logvar, dataset_size):
    """Weights by counting: q(z_i|x_i) is one of N; one other of the B - 1 makes the sum 1."""
    batch = len(z)
    weights = torch.full((batch, batch), 1 / (batch - 1), dtype=z.dtype, device=z.device)
    for i in range(batch):
        weights[i, i] = 1 / dataset_size
        weights[i, (i + 1) % batch] = 1 - 1 / dataset_size - (batch - 2) / (batch - 1)
    return decomposition(z, (mu, logvar), (mu, logvar), weights)
