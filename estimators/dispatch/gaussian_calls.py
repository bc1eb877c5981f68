"""Log-densities and KL divergences of Gaussians: checked arguments in, the op or the reference out.

``shape`` is what the latent arguments broadcast to: [..., D], or with ``event_dims`` for D.
"""

from typing import Any

import torch
from torch import Tensor

from ...kernels import ops
from ..reference import reference
from . import layouts
from .choice import left_to_compiler, use_kernels, where_it_fits
from .layouts import as_rows, latent_rows, latent_shape, of_examples, reshaped, whole_prior
from .types import Implementation, Parametrisation, Shape


def gaussian_log_prob(
    shape: Shape,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    event_dims: int = 1,
    impl: Implementation,
) -> Tensor:
    if event_dims != 1:
        flat, order, tensors = layouts.flatten(shape, event_dims, x, mu, logvar)
        log_prob = gaussian_log_prob(flat, *tensors, impl=impl)
        return layouts.summed(log_prob, shape, order, event_dims)
    if not use_kernels(impl, x, mu, logvar, fits=not left_to_compiler(impl, x)):
        return reference.gaussian_log_prob(x, mu, logvar)
    mu, x, logvar = as_rows(shape, mu, x, logvar)
    return reshaped(ops.gaussian_nll(mu, x, logvar, 0.0, -1), shape[:-1])


def gaussian_kl(
    shape: Shape,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    *,
    event_dims: int = 1,
    impl: Implementation,
) -> Tensor:
    if event_dims != 1:
        q = mu, logvar, prior_mu, prior_logvar
        flat, order, q = layouts.flatten(shape, event_dims, *q)
        kl = gaussian_kl(flat, *q, impl=impl)
        return layouts.summed(kl, shape, order, event_dims)
    fits = not left_to_compiler(impl, mu)
    if not use_kernels(impl, mu, logvar, prior_mu, prior_logvar, fits=fits):
        return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar)
    kl = ops.gaussian_kl(*as_rows(shape, mu, logvar, *whole_prior(prior_mu, prior_logvar)))
    return kl if len(shape) == 2 else reshaped(kl, shape[:-1])


def balanced_kl(
    shape: Shape,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    free_nats: float,
    *,
    impl: Implementation,
) -> tuple[Tensor, Tensor]:
    """(dyn, rep)."""
    # Under torch.compile what torch differentiates in one graph.
    fits = not torch.compiler.is_compiling()
    if not use_kernels(where_it_fits(impl, fits), mu, logvar, prior_mu, prior_logvar, fits=fits):
        return reference.balanced_kl(mu, logvar, prior_mu, prior_logvar, free_nats)
    mu, logvar, prior_mu, prior_logvar = as_rows(shape, mu, logvar, prior_mu, prior_logvar)
    dyn, rep = ops.balanced_kl(mu, logvar, prior_mu, prior_logvar, free_nats)
    return reshaped(dyn, shape[:-1]), reshaped(rep, shape[:-1])


def normal_kl(
    shape: Shape,
    q: tuple[Tensor, Tensor],
    p: tuple[Tensor | None, Tensor | None],
    form: str,
    *,
    impl: Implementation,
) -> Tensor:
    """The KL [...] of latents [..., D]; either a mean and a spread, ``p`` two None for N(0, I)."""
    if not use_kernels(impl, *q, *p):
        pairs = [reference.gaussian_of(mean, spread, form) for mean, spread in (q, p)]
        return reference.gaussian_kl(*pairs[0], *pairs[1])
    return reshaped(ops.posterior_kl(*as_rows(shape, *q, *p), form, 0.0, 0.0, False), shape[:-1])


def posterior_kl(
    q: Tensor,
    q_spread: Tensor | None,
    prior: Tensor | None,
    prior_spread: Tensor | None,
    parametrisation: Parametrisation,
    *,
    elementwise: bool = False,
    impl: Implementation,
) -> Tensor:
    """The KL [B] of latents [B, C, ...], or of each of them; operands as the op has them."""
    operands = q, q_spread, prior, prior_spread
    if not use_kernels(impl, *operands):
        arguments: Any = (*operands, *parametrisation, elementwise)
        return reference.posterior_kl(*arguments)
    flat, back = latent_rows(latent_shape(q, q_spread), *operands)
    kl = ops.posterior_kl(*flat, *parametrisation, elementwise)
    return back(kl) if elementwise else of_examples(kl, len(q))
