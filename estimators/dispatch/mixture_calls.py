"""Mixtures, as priors and as the aggregate posterior: checked arguments in, op or reference out."""

from typing import Any

import torch
from torch import Tensor

from ...kernels import ops
from ..reference import reference
from .choice import few_means, use_kernels
from .layouts import as_rows, reshaped
from .sample_calls import rsample_log_ratio
from .types import Implementation, Shape


def mixture_log_prob(
    shape: Shape,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    *,
    impl: Implementation,
) -> Tensor:
    """``shape`` [K, D] is that of the components."""
    mu, logvar = mu.expand(shape), logvar.expand(shape)
    if log_weights is not None:
        (log_weights,) = reference.accumulate(log_weights)
        log_weights = torch.log_softmax(log_weights, 0)
    fits = not few_means(impl, mu)
    if not use_kernels(impl, z, mu, logvar, log_weights, fits=fits):
        return reference.mixture_log_prob(z, mu, logvar, log_weights)
    (flat,) = as_rows(z.shape, z)
    return reshaped(ops.mixture_log_prob(flat, mu, logvar, log_weights), z.shape[:-1])


def aggregate_log_probs(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: tuple[Tensor | None, Tensor | None],
    *,
    impl: Implementation,
) -> tuple[Tensor, Tensor]:
    """(log q(z), sum_d log q(z_d)) of components [K, D], with weights for either."""
    if not use_kernels(impl, z, mu, logvar, *log_weights):
        return reference.aggregate_log_probs(z, mu, logvar, None, log_weights)
    joint, marginals = log_weights
    return (
        ops.mixture_log_prob(z, mu, logvar, joint),
        ops.marginals_log_prob(z, mu, logvar, marginals),
    )


def kl_decomposition(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    all_mu: Tensor | None = None,
    all_logvar: Tensor | None = None,
    stratified_of: int | None = None,
    *,
    impl: Implementation,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms; components [K, D] that are None are q of these examples."""
    q = z, mu, logvar, all_mu, all_logvar
    if not use_kernels(impl, *q):
        return reference.kl_decomposition(*q, stratified_of)
    return ops.kl_decomposition(*q, stratified_of)


def rsample_log_ratio_to_mixture(
    shape: Shape,
    mu: Tensor,
    logvar: Tensor,
    mixture: Any,
    num_samples: int,
    *,
    impl: Implementation,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The same for a prior (mu, logvar, log_weights) of components [K, D]."""
    z, minus_log_q = rsample_log_ratio(
        shape, mu, logvar, None, None, num_samples, impl=impl, improper_prior=True, **options
    )
    return z, minus_log_q + log_prior(z, mixture, impl=impl)


def log_prior(z: Tensor, mixture: Any, *, impl: Implementation) -> Tensor:
    """log p(z): a function of z like the decoder's, whatever the gradient of q."""
    components = torch.broadcast_shapes(mixture.mu.shape, mixture.logvar.shape)
    return mixture_log_prob(components, z, *mixture, impl=impl)
