"""One function for each operation: checked arguments in, the op or the reference out.

``shape`` is what the latent arguments broadcast to, [..., D] or with ``event_dims`` for D, or that
of a likelihood's values, [B] or [K, B].
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ...kernels import library, ops
from ..reference import noise, on_rows, reference, textbook
from . import layouts
from .choice import (
    all_known,
    default_backend,
    left_to_compiler,
    left_to_torch,
    noise_is_kept,
    ordered_by_compiler,
    plain_on_cpu,
    use_kernels,
    where_it_fits,
)
from .layouts import (
    accumulates_in_float64,
    as_rows,
    floating,
    latent_rows,
    latent_shape,
    likelihood_data,
    likelihood_rows,
    of_examples,
    reshaped,
    tensor_or_none,
    whole_prior,
)
from .likelihoods import LIKELIHOODS
from .types import Gradient, Implementation, Parametrisation, Reduction, Shape

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
    if not use_kernels(impl, z, mu, logvar, log_weights):
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
    return reshaped(kl, shape[:-1])


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
    return reshaped(z, shape), reshaped(kl, shape[:-1])


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


def negative_log_likelihood(
    shape: Shape,
    recon: Tensor,
    x: Tensor,
    parameters: Sequence[Any] = (),
    *,
    likelihood: str,
    impl: Implementation,
) -> Tensor:
    """-log p(x|z) of each example, or of every sample of it.

    ``parameters`` are the values of those that the likelihood's record names.
    """
    record = LIKELIHOODS[likelihood]
    x = likelihood_data(x, recon, record)
    given = [tensor_or_none(value) for value in parameters]
    learned = bool(given) and given[0] is not None
    fits = not left_to_torch(impl, recon, likelihood, learned)
    fits = fits and not (record.left_to_compiler and left_to_compiler(impl, recon))
    if not use_kernels(impl, recon, x, *given, fits=fits):
        options = (all_known(x, recon),) if record.is_categorical else parameters
        return getattr(reference, f"{likelihood}_nll")(recon, x, *options)
    recon, x, *rest = likelihood_rows(recon, x, parameters, record)
    op, options = ops.likelihood_op(likelihood, *rest)
    nll = op(recon, x, *options)
    if nll.numel() != math.prod(shape):  # one number for each event
        nll = nll.view(math.prod(shape), -1).sum(-1)
    return reshaped(nll, shape)


def behind_mask(
    mask: Tensor | None, recon: Tensor, x: Tensor, parameters: Any, likelihood: str
) -> tuple[Tensor, Tensor, Any]:
    """(recon, x, parameters) whose events outside of the mask have a likelihood of 1.

    They are replaced and not multiplied by 0, so that no NaN is read, and no gradient passes.
    """
    if mask is None:
        return recon, x, parameters
    record = LIKELIHOODS[likelihood]
    shown, hidden = mask, recon.new_full((), record.hidden)
    if record.is_categorical:  # certainly class 0
        shown, hidden = mask.unsqueeze(-1), recon.new_full(recon.shape[-1:], record.hidden)
        hidden[0] = 0.0
    recon, x = torch.where(shown, recon, hidden), torch.where(mask, x, x.new_zeros(()))
    if record.hidden_width is not None:
        parameters = _parameters_behind_mask(mask, recon, parameters, record.hidden_width)
    return recon, x, parameters


def behind_mask_of_softmax(
    mask: Tensor | None, logits: Tensor, x: Tensor, parameters: Any
) -> tuple[Tensor, Any]:
    """(x, parameters) of negative binomials that are 0 for certain outside of the mask.

    They are so at an inverse dispersion of 0 whatever their mean is. So the logits stay as they
    are, and with them the shares of the other events.
    """
    if mask is None:
        return x, parameters
    x = torch.where(mask, x, x.new_zeros(()))
    return x, _parameters_behind_mask(mask, logits, parameters, -1e4)


def _parameters_behind_mask(
    mask: Tensor, recon: Tensor, parameters: Any, hidden_width: float
) -> tuple[Any, ...]:
    (wide,) = reference.accumulate(recon)
    width, *others = parameters
    width = width if isinstance(width, Tensor) else wide.new_tensor(width)
    others = [t if t is None else torch.where(mask, t, t.new_zeros(())) for t in others]
    return torch.where(mask, width, wide.new_tensor(hidden_width)), *others


def warn_of_data(likelihood: str, nll: Tensor) -> None:
    """Warn where a Bernoulli's x cannot be in [0, 1], as far as a look makes nobody wait.

    A look at the result costs less than one at x, and sees every x whose loss falls below zero.
    """
    if LIKELIHOODS[likelihood].data != "unit" or nll.numel() == 0 or not plain_on_cpu((nll,)):
        return
    least = (nll if nll.dim() == 0 else nll.detach().amin()).item()
    if least < 0:
        warnings.warn(
            f"a Bernoulli has a negative log-likelihood of {least:.6g} nats here, which only data "
            "outside [0, 1] can have: scale x, as by x / 255 for grey values of 0 to 255",
            stacklevel=3,
        )


def negative_binomial_nll_terms(
    log_mean: Tensor,
    x: Tensor,
    log_theta: Tensor,
    zero_logits: Tensor | None,
    *,
    impl: Implementation,
) -> Tensor:
    """The nll of each element of log_mean [..., G]; the others broadcast to it."""
    if not use_kernels(impl, log_mean, x, log_theta, zero_logits):
        return reference.negative_binomial_nll_terms(log_mean, x, log_theta, zero_logits)
    shape = log_mean.shape
    m, x, z = as_rows(shape, log_mean, floating(x, log_mean), zero_logits)
    (a,) = as_rows(shape, log_theta)
    if log_theta.numel() == shape[-1] == log_theta.shape[-1]:  # one for all rows
        a = log_theta.reshape(1, -1)
    return reshaped(ops.negative_binomial_nll(m, x, a, z, 0.0, True), shape)


def softmax_negative_binomial_nll(
    shape: Shape,
    logits: Tensor,
    x: Tensor,
    log_theta: float | Tensor,
    log_library: Tensor,
    zero_logits: Tensor | None,
    *,
    scale: float | None = None,
    impl: Implementation,
) -> Tensor:
    """-log p of each example; with ``scale``, their sum times it.

    The sum's gradients come from the forward pass, except in float16 and under torch.compile, as
    ``_gradient_in_forward`` says.
    """
    record = LIKELIHOODS["negative_binomial"]
    given = tensor_or_none(log_theta), log_library, zero_logits
    x = likelihood_data(x, logits, record)
    if not use_kernels(impl, logits, x, *given):
        nll = reference.softmax_negative_binomial_nll(
            logits, x, log_theta, log_library, zero_logits
        )
        return nll if scale is None else nll.sum() * scale
    parameters = log_theta, zero_logits
    rows, x, width, value, zeros = likelihood_rows(logits, x, parameters, record)
    library = layouts.parameter_rows(log_library, logits, x, rows.shape)
    operands = rows, x, width, library, zeros, value
    in_forward = logits.dtype != torch.float16 and not torch.compiler.is_compiling()
    if scale is not None and in_forward:
        return ops.softmax_negative_binomial_loss(*operands, scale)
    nll = reshaped(ops.softmax_negative_binomial_nll(*operands), shape)
    return nll if scale is None else nll.sum() * scale


def discretized_mix_logistic_nll(
    params: Tensor,
    x: Tensor,
    half_bin: float,
    right_edge: float,
    guard: float,
    *,
    scale: float | None = None,
    impl: Implementation,
) -> Tensor:
    """-log p of each pixel [B, P]; with ``scale``, their sum times it.

    The sum's gradient comes from the forward pass, except in float16 and under torch.compile, as
    ``_gradient_in_forward`` says.
    """
    bins = half_bin, right_edge, guard
    params, x = params.flatten(2), x.flatten(2)
    kernels = use_kernels(impl, params, x, fits=x.shape[1] == 3)
    in_forward = params.dtype != torch.float16 and not torch.compiler.is_compiling()
    if kernels and scale is not None and in_forward:
        return ops.discretized_mix_logistic_loss(params, x, *bins, scale)
    function = ops if kernels else reference
    nll = function.discretized_mix_logistic_nll(params, x, *bins)
    return nll if scale is None else nll.sum() * scale


def elbo_loss(
    shape: Shape,
    recon: Tensor,
    x: Tensor,
    parameters: Sequence[Any],
    kl: Any,
    *,
    likelihood: str,
    beta: float | Tensor,
    reduction: Reduction,
    impl: Implementation,
) -> Any:
    """(loss, nll, kl), reduced; a ``kl`` of None is no term of the loss."""
    given = [tensor_or_none(value) for value in (*parameters, beta)]
    if reduction != "none" and _gradient_in_forward(impl, recon, x, kl, *given):
        batch, record = x.shape[0], LIKELIHOODS[likelihood]
        scale = 1.0 if reduction == "sum" else 1.0 / batch if batch else math.nan
        x = likelihood_data(x, recon, record)
        operands = likelihood_rows(recon, x, parameters, record)
        options: dict[str, Any] = {"likelihood": likelihood, "scale": scale}
        if not isinstance(beta, Tensor):
            return ops.elbo_loss(*operands, kl=kl, beta=float(beta), **options)
        nll, *_ = ops.elbo_loss(*operands, kl=None, beta=1.0, **options)
        kl = getattr(kl.to(nll.dtype), reduction)()
        return weighted_loss(nll, kl, beta), nll, kl
    nll = negative_log_likelihood(shape, recon, x, parameters, likelihood=likelihood, impl=impl)
    if nll.dim() > 1:
        nll = nll.flatten(0, -2).mean(0)
    if kl is not None and kl.dtype != nll.dtype:
        nll, kl = reference.accumulate(nll, kl)
    loss = nll if kl is None else weighted_loss(nll, kl, beta)
    if reduction == "none":
        return loss, nll, kl
    return [p if p is None else getattr(p, reduction)() for p in (loss, nll, kl)]


def weighted_loss(nll: Tensor, kl: Tensor, beta: float | Tensor) -> Tensor:
    """nll + beta kl, in their dtype."""
    if isinstance(beta, Tensor):
        return nll + beta.to(nll.dtype) * kl
    if torch.compiler.is_compiling():  # for every alpha it would compile anew
        return nll + beta * kl
    return torch.add(nll, kl, alpha=beta)


def _gradient_in_forward(
    impl: Implementation, recon: Tensor, x: Tensor, kl: Tensor | None, *others: Any
) -> bool:
    """Whether the likelihood's gradient can be had in the forward pass.

    Not in float16, whose range 1/B times a gradient may leave before the loss scale is in; nor
    where the KL is in float64 and the likelihood's sum is not; nor under torch.compile, which fuses
    the factor's multiplication and the reduction itself. ``others`` are the likelihood's parameters
    and, last, beta.
    """
    if recon.dtype == torch.float16 or torch.compiler.is_compiling():
        return False
    if kl is not None and kl.dtype == torch.float64:
        *parameters, _ = others
        if not accumulates_in_float64(recon, x, *parameters):
            return False
    return use_kernels(impl, recon, x, kl, *others)


def importance_weights(
    log_weights: Tensor, alpha: float, *, impl: Implementation
) -> tuple[Tensor, Tensor, Tensor]:
    """(bound, weights, ess)."""
    if not use_kernels(impl, log_weights) or ordered_by_compiler(alpha):
        return reference.importance_weights(log_weights, alpha)
    shape = log_weights.shape[1:]
    flat = reshaped(log_weights, (len(log_weights), math.prod(shape)))
    bound, weights, ess, _ = ops.importance_weights(flat, None, float(alpha))
    return (
        reshaped(bound, shape),
        reshaped(weights, log_weights.shape),
        reshaped(ess, shape),
    )


def importance_bound(
    log_ratio: Tensor, nll: Tensor, alpha: float, *, with_weights: bool, impl: Implementation
) -> Any:
    """(bound, weights, ess, log weights) of log_ratio - nll [K, B]; the bound has a gradient.

    Weights and ess may be None where nobody wants them.
    """
    if use_kernels(impl, nll, log_ratio) and not ordered_by_compiler(alpha):
        return ops.importance_weights(log_ratio, nll, float(alpha))
    log_weights = log_ratio - nll
    bound, weights, ess = reference.importance_bound(log_weights, alpha), None, None
    if with_weights:
        _, weights, ess = reference.importance_weights(log_weights.detach(), alpha)
    return bound, weights, ess, log_weights


def elbo_loss_on_rows(
    recon: Tensor,
    x: Tensor,
    width: Tensor | None,
    zero_logits: Tensor | None,
    width_value: float,
    kl: Tensor | None,
    likelihood: str,
    beta: float,
    scale: float,
    needs: Any,
) -> Any:
    """The op of a whole loss in PyTorch, as ``on_rows`` has the others."""
    op, options = ops.likelihood_op(likelihood, width, width_value, zero_logits)
    return on_rows.elbo_loss(op.function.twin(recon, x, *options), len(x), kl, beta, scale)


TWINS: dict[Any, Any] = {
    ops.gaussian_kl.function: reference.gaussian_kl,
    ops.gaussian_rsample.function: on_rows.rsample,
    ops.rsample_kl.function: on_rows.rsample_kl,
    ops.rsample_log_ratio.function: on_rows.rsample_log_ratio,
    ops.posterior_kl.function: reference.posterior_kl,
    ops.posterior_sample_kl.function: on_rows.posterior_sample_kl,
    ops.mixture_log_prob.function: reference.mixture_log_prob,
    ops.marginals_log_prob.function: reference.marginals_log_prob,
    ops.kl_decomposition.function: reference.kl_decomposition,
    ops.discretized_mix_logistic_nll.function: reference.discretized_mix_logistic_nll,
    ops.softmax_negative_binomial_nll.function: on_rows.softmax_negative_binomial_nll,
    ops.SoftmaxNegativeBinomialLossFunction: on_rows.softmax_negative_binomial_loss,
    ops.DiscretizedMixLogisticLossFunction: on_rows.discretized_mix_logistic_loss,
    ops.BalancedKLFunction: reference.balanced_kl,
    ops.ImportanceWeightsFunction: on_rows.importance_weights,
    ops.ELBOLossFunction: elbo_loss_on_rows,
}
for name in LIKELIHOODS:
    op, _ = ops.likelihood_op(name)
    TWINS[op.function] = getattr(on_rows, f"{op.__name__}")
for function, twin in TWINS.items():
    function.twin = staticmethod(twin)
