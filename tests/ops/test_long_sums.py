"""Sums over many latents in float32 on CPUs: they round no more than torch's pairwise ones."""

import math

import pytest
import torch

from fused_elbo.kernels import ops

pytestmark = [pytest.mark.kernels, pytest.mark.numba]
LOG_2PI = math.log(2 * math.pi)


def log_density(z, mu, logvar):
    return -0.5 * ((z - mu) ** 2 * torch.exp(-logvar) + logvar + LOG_2PI)


def mixture(z, mu, logvar):
    joint = log_density(z[:, None], mu, logvar).sum(-1)
    return [torch.logsumexp(joint, 1) - math.log(len(mu))]


def marginals(z, mu, logvar):
    each = torch.logsumexp(log_density(z[:, None], mu, logvar), 1) - math.log(len(mu))
    return [each.sum(-1)]


def terms(z, mu, logvar):
    (joint,), (of_each,) = mixture(z, mu, logvar), marginals(z, mu, logvar)
    own, prior = log_density(z, mu, logvar).sum(-1), log_density(z, 0 * mu, 0 * logvar).sum(-1)
    return [own - joint, joint - of_each, of_each - prior]


CASES = {
    "mixture_log_prob": (mixture, ops.mixture_log_prob, None),
    "marginals_log_prob": (marginals, ops.marginals_log_prob, None),
    "kl_decomposition": (terms, ops.kl_decomposition, None, None, None),
}


@pytest.mark.parametrize("cols", [1500, 5000])
@pytest.mark.parametrize("name", CASES)
def test_no_larger_error_than_eager(name, cols):
    eager, op, *rest = CASES[name]
    generator = torch.Generator().manual_seed(0)
    eps, mu, logvar = torch.randn(3, 64, cols, generator=generator)
    logvar *= 0.3
    z = mu + torch.exp(0.5 * logvar) * eps
    found = op(z, mu, logvar, *rest)
    found = [found] if isinstance(found, torch.Tensor) else found
    exact = eager(z.double(), mu.double(), logvar.double())
    for f, u, e in zip(found, eager(z, mu, logvar), exact, strict=True):
        error, usual = ((t - e).square().mean().sqrt() for t in (f, u))
        assert error <= usual
