"""What the weights and the posteriors of a pass say of its quality."""

import torch
from torch import Tensor

from . import validate
from .dispatch import Implementation
from .functional import gaussian_kl
from .reference import effective_size, normalised


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum_k w_k)^2 / sum_k w_k^2, of log weights [K, ...]: in [1, K], or 0 if all w_k are.

    Its share of K tends to 1 / (1 + chi^2(p(z|x) || q)). Kong, Liu & Wong 1994.

    >>> effective_sample_size(torch.zeros(10, 3))
    tensor([10.0000, 10.0000, 10.0000])
    """
    return effective_size(normalised(log_weights))


def pareto_k(log_weights: Tensor) -> Tensor:
    """The shape k of the generalised Pareto tail of the weights [K, ...]: [...].

    Under 0.5 the weights have a finite variance, over 0.7 importance sampling with them is not
    to be trusted at any practical K. Fitted to the largest min(K / 5, 3 sqrt K) weights, by the
    posterior mean of Zhang & Stephens (2009) with the weak prior of PSIS. NaN where the tail is
    shorter than 5, so K < 25, or a quarter of it equals its threshold, as with equal weights.
    Vehtari et al., "Pareto smoothed importance sampling", JMLR 2024.
    """
    samples = log_weights.shape[0]
    tail = min(samples // 5, int(3 * samples**0.5)) if samples >= 25 else 0
    if tail < 5:
        return log_weights.new_full(log_weights.shape[1:], torch.nan)
    ordered = (log_weights - log_weights.max(0).values).double().sort(0).values
    cutoff = ordered[-tail - 1].exp()
    return _fit_generalised_pareto(ordered[-tail:].exp() - cutoff).to(log_weights.dtype)


def _fit_generalised_pareto(excess):
    """k of sorted excesses [n, ...] over a threshold."""
    n = excess.shape[0]
    points = 30 + int(n**0.5)
    quartile = excess[int(n / 4 + 0.5) - 1]
    index = torch.arange(1, points + 1, dtype=excess.dtype, device=excess.device)
    index = index.view(-1, *(1,) * (excess.dim() - 1))
    theta = 1 / excess[-1] + (1 - (points / (index - 0.5)).sqrt()) / (3 * quartile)
    k = torch.log1p(-theta.unsqueeze(1) * excess).mean(1)  # [points, ...]
    profile = n * (torch.log(-theta / k) - k - 1)
    weights = torch.softmax(profile, 0)
    theta = (weights * theta).sum(0)
    k = torch.log1p(-theta * excess).mean(0)
    return (n * k + 5) / (n + 10)  # as of ten more observations with k = 0.5


def kl_per_dimension(mu: Tensor, logvar: Tensor, *, impl: Implementation = "auto") -> Tensor:
    """KL(q_d || N(0, 1)) of each latent dimension, [..., D]: a collapsed one is near zero."""
    return gaussian_kl(mu.unsqueeze(-1), logvar.unsqueeze(-1), impl=impl)


def active_units(mu: Tensor, threshold: float = 0.01) -> Tensor:
    """Which latents are in use: Var over the data of E_q[z_d] > threshold, [D] of bool.

    ``mu`` [N, D] over a data set. Burda et al. 2016, section 5.2.

    >>> active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    tensor([False,  True])
    """
    validate.tensors(mu=mu)
    if mu.dim() != 2 or mu.shape[0] < 2:
        raise ValueError(f"expected mu [N, D] with N >= 2, got mu {tuple(mu.shape)}")
    return mu.var(0) > threshold
