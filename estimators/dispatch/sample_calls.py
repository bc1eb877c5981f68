"""Samples, alone or with their KL or log ratio: checked arguments in, the op or the reference out.

``shape`` is what the latent arguments broadcast to: [..., D], or with ``event_dims`` for D.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from ...kernels import library, ops
from ..reference import noise, reference, textbook
from . import layouts
from .choice import default_backend, noise_is_kept, use_kernels
from .layouts import as_rows, latent_rows, latent_shape, of_examples, reshaped, whole_prior
from .types import Gradient, Implementation, Parametrisation, Shape

# Normals below which torch.randn itself takes no longer than a kernel that draws the same.
FEW_NORMALS = 1024


def torch_normals(
    shape: Shape, like: Tensor, generator: Generator | None = None, *, impl: Implementation
) -> Tensor:
    """Normals of torch.randn, to rounding; on a CPU a kernel draws them faster than torch."""
    wanted = impl != "reference" and like.dtype == torch.float32
    backend = default_backend(like) if wanted else None
    randn = None if backend is None else torch_randn(backend)
    # Sizes last: export guards what is compared.
    if randn is None or math.prod(shape) < FEW_NORMALS:
        return reference.standard_normal(shape, like, generator)
    return randn(shape, generator or torch.default_generator)


def torch_randn(backend: Any) -> Callable[..., Tensor] | None:
    """A backend's function for torch's normals, or None."""
    module = backend.torch_normals
    return None if module is None else library.launcher(backend, module, "randn")


def gaussian_rsample(
    shape: Shape,
    mu: Tensor,
    logvar: Tensor,
    num_samples: int | None,
    *,
    generator: Generator | None,
    impl: Implementation,
) -> Tensor:
    if not use_kernels(impl, mu, logvar):
        return reference.gaussian_rsample(mu, logvar, num_samples, generator=generator)
    seed = noise.draw_seed(mu.device, generator)
    keep_noise = num_samples is None and noise_is_kept(mu, logvar)
    z = ops.gaussian_rsample(*as_rows(shape, mu, logvar), seed, num_samples, keep_noise)
    return reshaped(z, shape if num_samples is None else (num_samples, *shape))


def sampler(
    mu: Tensor, samples: int, shape: Shape, *, impl: Implementation
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of mu and logvar: z [samples..., D] of ``shape``, at one noise for all calls."""
    # On a CPU, keep the samples of torch.distributions: torch.randn for the same seed.
    if use_kernels(impl, mu) and (impl != "auto" or mu.device.type != "cpu"):
        seed = noise.draw_seed(mu.device)

        def draw_again(mu: Tensor, logvar: Tensor) -> Tensor:
            q = (t.reshape(-1, t.shape[-1]) for t in (mu, logvar))
            return ops.gaussian_rsample(*q, seed, samples, False).view(shape)

        return draw_again
    # Backward needs this noise in any case.
    (wide,) = reference.accumulate(mu)
    eps = torch_normals(shape, wide, impl=impl)

    def draw(mu: Tensor, logvar: Tensor) -> Tensor:
        wide_mu, wide_logvar = reference.accumulate(mu, logvar)
        return textbook.gaussian_sample(wide_mu, wide_logvar, eps).to(mu.dtype)

    return draw


def rsample_kl(
    shape: Shape,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    *,
    event_dims: int = 1,
    generator: Generator | None,
    impl: Implementation,
) -> tuple[Tensor, Tensor]:
    if event_dims != 1:
        q = mu, logvar, prior_mu, prior_logvar
        flat, order, q = layouts.flatten(shape, event_dims, *q)
        z, kl = rsample_kl(flat, *q, generator=generator, impl=impl)
        return layouts.restore(z, shape, order), layouts.summed(kl, shape, order, event_dims)
    if not use_kernels(impl, mu, logvar, prior_mu, prior_logvar):
        return reference.rsample_kl(mu, logvar, prior_mu, prior_logvar, generator=generator)
    seed = noise.draw_seed(mu.device, generator)
    q = as_rows(shape, mu, logvar, *whole_prior(prior_mu, prior_logvar))
    z, kl = ops.rsample_kl(*q, seed, noise_is_kept(mu, logvar))
    if len(shape) == 2:
        return z, kl
    return reshaped(z, shape), reshaped(kl, shape[:-1])


def posterior_sample_kl(
    q: Tensor,
    q_spread: Tensor | None,
    prior: Tensor | None,
    prior_spread: Tensor | None,
    parametrisation: Parametrisation,
    *,
    eps: Tensor | None = None,
    generator: Generator | None = None,
    impl: Implementation,
) -> tuple[Tensor, Tensor]:
    """(z, the KL [B]) at the noise ``eps``, which by default the kernel or the reference draws."""
    operands = q, q_spread, prior, prior_spread
    shape = latent_shape(q, q_spread)
    if not use_kernels(impl, *operands, eps):
        if eps is None:
            (wide,) = reference.accumulate(q)
            eps = reference.standard_normal(shape, wide, generator)
        return reference.posterior_sample_kl(*operands, eps, *parametrisation)
    flat, back = latent_rows(shape, *operands, eps)
    seed = noise.draw_seed(q.device, generator) if eps is None else None
    keep_noise = eps is None and noise_is_kept(q, q if q_spread is None else q_spread)
    z, kl = ops.posterior_sample_kl(*flat, seed, *parametrisation, keep_noise)
    return back(z), of_examples(kl, len(q))


def rsample_log_ratio(
    shape: Shape,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    num_samples: int,
    *,
    event_dims: int = 1,
    gradient: Gradient,
    antithetic: bool,
    generator: Generator | None,
    impl: Implementation,
    improper_prior: bool = False,
    draw_eps: Callable[[], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``draw_eps()`` is the reference's noise [K, ..., D], by default its own.

    ``improper_prior`` is for the prior p(z) = 1: the log ratio is -log q(z|x).
    """
    q = mu, logvar, prior_mu, prior_logvar
    if event_dims != 1:
        options: dict[str, Any] = {
            "gradient": gradient,
            "antithetic": antithetic,
            "generator": generator,
        }
        options |= {"num_samples": num_samples, "impl": impl}
        flat, order, q = layouts.flatten(shape, event_dims, *q)
        z, log_ratio = rsample_log_ratio(flat, *q, **options)
        log_ratio = layouts.summed(log_ratio, shape, order, event_dims, num_samples)
        return layouts.restore(z, shape, order, num_samples), log_ratio
    if use_kernels(impl, *q):
        seed = noise.draw_seed(mu.device, generator)
        return _kernel_samples(shape, q, num_samples, seed, 0, gradient, improper_prior, antithetic)
    if draw_eps is not None:
        return reference.log_ratio_at(
            draw_eps(), *q, gradient=gradient, improper_prior=improper_prior
        )
    options = {
        "gradient": gradient,
        "antithetic": antithetic,
        "generator": generator,
        "improper_prior": improper_prior,
    }
    return reference.rsample_log_ratio(mu, logvar, num_samples, prior_mu, prior_logvar, **options)


def samples_of_stream(
    shape: Shape,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    num_samples: int,
    *,
    seed: Tensor,
    first_sample: int,
    gradient: Gradient,
    antithetic: bool,
    impl: Implementation,
    improper_prior: bool = False,
) -> tuple[Tensor, Tensor]:
    """rsample_log_ratio for samples ``first_sample``, ... of the kernels' noise stream.

    The reference draws from ``noise.stream``, so that chunks of samples are those of one call.
    """
    q = mu, logvar, prior_mu, prior_logvar
    if use_kernels(impl, *q):
        options = gradient, improper_prior, antithetic
        return _kernel_samples(shape, q, num_samples, seed, first_sample, *options)
    sides = 1 + antithetic
    sizes = num_samples // sides, math.prod(shape[:-1]), shape[-1]
    eps = noise.stream(seed, *sizes, first_draw=first_sample // sides).view(sizes[0], *shape)
    eps = reference.with_antithetic(eps) if antithetic else eps
    return reference.log_ratio_at(eps, *q, gradient=gradient, improper_prior=improper_prior)


def _kernel_samples(
    shape: Shape,
    q: Any,
    num_samples: int,
    seed: Tensor,
    first_sample: int,
    gradient: Gradient,
    improper_prior: bool,
    antithetic: bool,
) -> tuple[Tensor, Tensor]:
    mu, logvar, *prior = q
    first_draw = first_sample // 2 if antithetic else first_sample
    options = seed, first_draw, num_samples, gradient, improper_prior, antithetic
    z, log_ratio = ops.rsample_log_ratio(
        *as_rows(shape, mu, logvar, *whole_prior(*prior)), *options
    )
    return z.view(num_samples, *shape), log_ratio.view(num_samples, *shape[:-1])
