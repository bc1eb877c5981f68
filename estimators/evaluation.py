"""Evaluation: what is reported of a test log-likelihood, with many samples in little memory."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from . import diagnostics
from .bounds import estimate
from .dispatch import validate
from .dispatch.types import Implementation
from .mixtures import Mixture
from .reference import reference

TRUSTED = 0.7  # the largest k of weights that are to be trusted (Vehtari et al. 2024)


class LogLikelihood(NamedTuple):
    """Estimates of log p(x) from K importance weights, in nats per example, [...].

    ``bound`` is one, in expectation: E[bound] <= log p(x), tight as K grows. ``smoothed`` is an
    estimate with less variance and no bound. Neither is to be trusted where ``pareto_k`` is over
    0.7; the standard error, from the same weights, is then too small as well. Printed, it says so
    of the mean over examples.
    """

    bound: Tensor  # IWAE's: log (1/K) sum_k w_k
    standard_error: Tensor  # of the bound, over the importance weights; NaN at K = 1
    ess: Tensor  # effective sample size, in [1, K], or 0 where all weights are
    smoothed: Tensor | None  # log of the mean of Pareto-smoothed weights; None without arviz-stats
    pareto_k: Tensor | None  # shape of the weights' tail; None without arviz-stats
    num_samples: int

    def __str__(self):
        examples = self.bound.numel()
        error = self.standard_error.square().sum().sqrt() / examples
        lines = [
            f"log p(x), nats per example, mean over {examples}:",
            f"  lower bound (in expectation)  {self.bound.mean():.3f} "
            f"+- {error:.3f} over the weights, K = {self.num_samples}",
            f"  effective samples             {self.ess.mean():.1f}, least {self.ess.min():.1f}",
        ]
        if self.smoothed is None or self.pareto_k is None:
            lines.append("  Pareto smoothing              needs arviz-stats")
        else:
            trusted = self.pareto_k <= TRUSTED  # NaN is not
            lines += [
                f"  Pareto-smoothed, no bound     {self.smoothed.mean():.3f}",
                f"  Pareto k over {TRUSTED} or unknown  {(~trusted).sum()} of {examples}",
            ]
        return "\n".join(lines)


@torch.no_grad()
def log_likelihood_bound(
    mu: Tensor,
    logvar: Tensor,
    num_samples: int = 5000,
    *,
    log_likelihood: Callable[..., Tensor] | None = None,
    log_joint: Callable[..., Tensor] | None = None,
    data: Tensor | None = None,
    batch_size: int | None = None,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    prior: Mixture | None = None,
    chunk_size: int = 100,
    generator: Generator | None = None,
    impl: Implementation = "auto",
    progress: Callable[[list[int]], Iterable[int]] | None = None,
) -> LogLikelihood:
    """IWAE's bound of log p(x) for each example, and how far to trust it, from K samples.

    log (1/K) sum_k w_k, the usual test log-likelihood of a VAE at K = 5,000 (Burda et al. 2016),
    with its standard error sqrt((K / ESS - 1) / (K - 1)) over the weights (the delta method's),
    their effective sample size, and Pareto's k and smoothed estimate (Vehtari et al. 2024).

    The model sees ``chunk_size`` samples of ``batch_size`` examples at a time. Of each sample its
    weight is kept: 8 bytes per sample and example of a batch.

    Args:
        mu, logvar, prior_mu, prior_logvar, prior, generator, impl: as in
            :func:`fused_elbo.estimators.bounds.estimate`.
        num_samples: K.
        log_likelihood, log_joint: as there; with ``data`` a function of z and x, the batch.
        data: x ``[N, ...]`` for mu ``[N, ..., D]``, to be taken in batches.
        batch_size: examples at a time; all of them if None.
        chunk_size: samples at a time.
        progress: wraps the list of chunk sizes, over all batches, as ``rich.progress.track`` and
            ``tqdm`` do: give one of them where it takes long.

    Returns:
        :class:`LogLikelihood`: ``(bound, standard_error, ess, smoothed, pareto_k, num_samples)``,
        of which ``bound`` alone is one.

    Raises:
        ValueError: ``data`` of another length than mu, ``batch_size`` without data; otherwise as
            :func:`fused_elbo.estimators.bounds.estimate`.

    >>> mu, logvar = torch.zeros(2, 1), torch.zeros(2, 1)
    >>> log_likelihood_bound(mu, logvar, log_likelihood=lambda z: 0 * z.sum(-1)).bound
    tensor([0., 0.])
    """
    num_samples = validate.count("num_samples", num_samples)
    chunk_size = validate.count("chunk_size", chunk_size)
    validate.tensors(mu=mu, logvar=logvar, prior_mu=prior_mu, prior_logvar=prior_logvar)
    shape = validate.broadcast(mu=mu, logvar=logvar)
    validate.within(shape, prior_mu=prior_mu, prior_logvar=prior_logvar)
    batches = _batches(shape, data, batch_size)
    chunks = [chunk_size] * (num_samples // chunk_size)
    if num_samples % chunk_size:
        chunks.append(num_samples % chunk_size)
    sizes = chunks * len(batches)
    q_and_p = mu, logvar, prior_mu, prior_logvar
    whole: list[Any] = [t if t is None else t.expand(shape) for t in q_and_p]
    parts, log_weights = [], []
    for step, size in enumerate(progress(sizes) if progress else sizes):
        rows = batches[step // len(chunks)]
        of_batch: list[Any] = [t if t is None else t[rows] for t in whole]
        drawn = estimate(
            "iwae",
            of_batch[0],
            of_batch[1],
            size,
            log_likelihood=_of_batch(log_likelihood, data, rows),
            log_joint=_of_batch(log_joint, data, rows),
            prior_mu=of_batch[2],
            prior_logvar=of_batch[3],
            prior=prior,
            generator=generator,
            impl=impl,
        )
        log_weights.append(drawn.log_weights)
        if (step + 1) % len(chunks) == 0:
            parts.append(_summary(torch.cat(log_weights)))
            log_weights = []
    if len(parts) == 1:
        return parts[0]
    *columns, _ = zip(*parts, strict=True)
    whole = [None if c[0] is None else torch.cat(c) for c in columns]
    return LogLikelihood._make([*whole, num_samples])


def _batches(shape, data, batch_size):
    """Indices of the examples of each batch."""
    if data is not None and (len(shape) < 2 or len(data) != shape[0]):
        raise ValueError(
            f"expected data [N, ...] for mu [N, ..., D], got {validate.describe({'data': data})} "
            f"for {tuple(shape)}"
        )
    if batch_size is None:
        return [...]
    batch_size = validate.count("batch_size", batch_size)
    if data is None:
        raise ValueError("batch_size needs data: log_likelihood(z, x) then gets z and x of a batch")
    return [slice(start, start + batch_size) for start in range(0, shape[0], batch_size)] or [...]


def _of_batch(target, data, rows):
    return target if target is None or data is None else lambda z: target(z, data[rows])


def _summary(log_weights):
    """All that is said of log weights [K, ...]."""
    samples = len(log_weights)
    # In float64: a sum over 5,000 weights should not cost digits of the bound.
    wide = reference.in_float64(log_weights)
    bound = torch.logsumexp(wide, 0) - math.log(samples)
    ess = diagnostics.effective_sample_size(wide)
    variance = (samples / ess - 1).clamp(min=0.0) / (samples - 1) if samples > 1 else ess * math.nan
    smoothed, k = diagnostics.pareto_smoothed(wide) if diagnostics.HAS_ARVIZ else (None, None)
    values: Any = bound, variance.sqrt(), ess, smoothed, k
    values = (t if t is None else t.to(log_weights) for t in values)
    return LogLikelihood._make([*values, samples])
