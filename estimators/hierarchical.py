"""Two learned Gaussians, as a level of a hierarchical VAE or a step of a world model has them."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .dispatch import gaussian_calls, sample_calls, validate
from .dispatch.types import Implementation, Parametrisation


class BalancedKL(NamedTuple):
    """The result of :func:`balanced_kl`: one value with two gradients."""

    dyn: Tensor  # trains the prior
    rep: Tensor  # trains the posterior


def rsample_kl_log_std(
    mu: Tensor,
    log_std: Tensor,
    prior_mu: Tensor | None = None,
    prior_log_std: Tensor | None = None,
    *,
    soft_clamp: float = 0.0,
    std_offset: float = 0.0,
    generator: Generator | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    r"""One reparameterised sample and the KL of each example, from log **standard deviations**.

    A level of a hierarchical VAE: q and p are both learned, latents have any number of dimensions,
    and the KL is summed over all of them but the first. With :math:`\sigma = e^s`:

    .. math:: z = \mu + \sigma \epsilon, \qquad
              KL = \sum_i \Big[s'_i - s_i - \tfrac12
              + \frac{\sigma_i^2 + (\mu_i - \mu'_i)^2}{2 \sigma_i'^2}\Big]

    where a prime marks the prior. One pass over the four tensors, and no tensor of the KL's terms.
    Equivalent PyTorch, as in VDVAE::

        z = mu + log_std.exp() * torch.randn_like(mu)
        kl = kl_divergence(Normal(mu, log_std.exp()), Normal(prior_mu, prior_log_std.exp()))
        z, kl.flatten(1).sum(1)

    NVAE has ``soft_clamp=5.0, std_offset=0.01``: means and log standard deviations of both first
    become c tanh(x / c), and then :math:`\sigma = e^s +` ``std_offset``.

    Args:
        mu, log_std: of q, ``[B, ...]`` of one shape, such as ``[B, C, H, W]``. channels_last
            tensors, and slices of channels, are read as they lie; of the former the same seed
            draws other samples.
        prior_mu, prior_log_std: of the prior; broadcast to the shape of q; None means 0.
        soft_clamp: c, or 0 for none.
        std_offset: what is added to the standard deviations.
        generator: as in :func:`gaussian_rsample`.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``(z, kl)``: z of the shape and dtype of ``mu``; kl ``[B]`` in nats, in float32, or float64
        if any input is. Differentiable in every tensor (by the kernels on CUDA once, else any
        number of times).

    Raises:
        ValueError: shapes that do not fit; a ``soft_clamp`` or ``std_offset`` below 0.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Child, "Very deep VAEs", ICLR 2021 (VDVAE); Vahdat & Kautz, "NVAE", NeurIPS 2020.

    >>> z, kl = rsample_kl_log_std(torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4))
    >>> z.shape, kl
    (torch.Size([3, 2, 4, 4]), tensor([0., 0., 0.]))
    """
    validate.tensors(mu=mu, log_std=log_std, prior_mu=prior_mu, prior_log_std=prior_log_std)
    if mu.dim() < 2 or mu.shape != log_std.shape or 0 in mu.shape[1:]:
        named = validate.describe({"mu": mu, "log_std": log_std})
        raise ValueError(f"expected mu and log_std [B, ...] of one shape, not empty, got {named}")
    validate.within(mu.shape, prior_mu=prior_mu, prior_log_std=prior_log_std)
    soft_clamp = validate.number("soft_clamp", soft_clamp, 0.0, validate.FINITE)
    std_offset = validate.number("std_offset", std_offset, 0.0, validate.FINITE)
    if prior_mu is not None or prior_log_std is not None or std_offset > 0:
        zero = torch.zeros((), dtype=mu.dtype, device=mu.device)
        whole = (zero if t is None else t for t in (prior_mu, prior_log_std))
        # An expansion to the same shape would be a node of the graph.
        prior_mu, prior_log_std = (t if t.shape == mu.shape else t.expand(mu.shape) for t in whole)
    parametrisation = Parametrisation("log_std", float(soft_clamp), float(std_offset))
    return sample_calls.posterior_sample_kl(
        mu, log_std, prior_mu, prior_log_std, parametrisation, generator=generator, impl=impl
    )


def balanced_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    *,
    free_nats: float = 1.0,
    impl: Implementation = "auto",
) -> BalancedKL:
    r"""The KL of posterior and prior for KL balancing: once computed, with a gradient for either.

    .. math:: \mathrm{dyn} = \max(F, KL(\mathrm{sg}(q) \| p)), \qquad
              \mathrm{rep} = \max(F, KL(q \| \mathrm{sg}(p)))

    with sg, which stops gradients, and F free nats: an example whose KL is below them has a
    gradient in neither. Dreamer's loss has ``0.5 * dyn + 0.1 * rep`` in its third version, and
    ``0.8 * dyn + 0.2 * rep`` in its second. Equivalent PyTorch::

        dyn = gaussian_kl(mu.detach(), logvar.detach(), prior_mu, prior_logvar)
        rep = gaussian_kl(mu, logvar, prior_mu.detach(), prior_logvar.detach())
        dyn.clamp_min(free_nats), rep.clamp_min(free_nats)

    Args:
        mu, logvar: of the posterior, ``[..., D]``, broadcast together. Of a standard deviation
            ``logvar`` is ``2 * std.log()``.
        prior_mu, prior_logvar: of the prior; broadcast to the shape of the posterior.
        free_nats: for the KL of an example, >= 0. (Dreamer's second version clips the mean over
            the batch: ``free_nats=0.0``, and ``clamp_min`` on the means.)
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``BalancedKL(dyn, rep)``: ``[...]`` each, in nats, in float32, or float64 if any input is.
        ``dyn`` has the gradients of the prior alone, ``rep`` those of the posterior alone.

    Raises:
        ValueError: shapes that do not broadcast, or D = 0; ``free_nats`` below 0.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Hafner et al., "Mastering Atari with discrete world models", ICLR 2021, algorithm 2; "Mastering
    diverse domains through world models", 2023, eq. 5.

    >>> one = torch.ones(3, 2, requires_grad=True)
    >>> dyn, rep = balanced_kl(one, torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2))
    >>> rep.sum().item(), dyn.requires_grad
    (3.0, False)
    """
    validate.tensors(mu=mu, logvar=logvar, prior_mu=prior_mu, prior_logvar=prior_logvar)
    shape = validate.broadcast(mu=mu, logvar=logvar)
    validate.within(shape, prior_mu=prior_mu, prior_logvar=prior_logvar)
    free_nats = float(validate.number("free_nats", free_nats, 0.0, validate.FINITE))
    operands = mu, logvar, prior_mu, prior_logvar
    return BalancedKL(*gaussian_calls.balanced_kl(shape, *operands, free_nats, impl=impl))
