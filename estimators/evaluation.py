"""Evaluation: a tight bound of the test log-likelihood, with many samples in little memory."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Generator, Tensor

from . import validate
from .bounds import estimate
from .dispatch import Implementation


@torch.no_grad()
def log_likelihood_bound(
    mu: Tensor,
    logvar: Tensor,
    num_samples: int = 5000,
    *,
    log_likelihood: Callable[[Tensor], Tensor] | None = None,
    log_joint: Callable[[Tensor], Tensor] | None = None,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    chunk_size: int = 100,
    generator: Generator | None = None,
    impl: Implementation = "auto",
    progress: Callable[[list[int]], Iterable[int]] | None = None,
) -> Tensor:
    """IWAE's bound of log p(x) for each example, [...], with K samples in chunks.

    log (1/K) sum_k w_k, accumulated over chunks of ``chunk_size`` samples, so that memory does
    not grow with K: the usual test log-likelihood of a VAE at K = 5,000 (Burda et al. 2016).
    Arguments as in :func:`fused_elbo.estimators.bounds.estimate`; ``progress`` wraps the
    list of chunk sizes, as ``rich.progress.track`` and ``tqdm`` do.

    >>> mu, logvar = torch.zeros(2, 1), torch.zeros(2, 1)
    >>> log_likelihood_bound(mu, logvar, log_likelihood=lambda z: 0 * z.sum(-1))
    tensor([0., 0.])
    """
    num_samples = validate.count("num_samples", num_samples)
    chunk_size = validate.count("chunk_size", chunk_size)
    sizes = [chunk_size] * (num_samples // chunk_size)
    if num_samples % chunk_size:
        sizes.append(num_samples % chunk_size)
    parts = []
    for size in progress(sizes) if progress else sizes:
        log_weights = estimate(
            "iwae",
            mu,
            logvar,
            size,
            log_likelihood=log_likelihood,
            log_joint=log_joint,
            prior_mu=prior_mu,
            prior_logvar=prior_logvar,
            generator=generator,
            impl=impl,
        ).log_weights
        # In float64: a sum over 5,000 weights should not cost digits of the bound.
        parts.append(torch.logsumexp(log_weights.double(), 0))
    total = torch.logsumexp(torch.stack(parts), 0)
    return (total - math.log(num_samples)).to(log_weights.dtype)
