"""The public operations: check the arguments, once, and hand them to ``dispatch``."""

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor

from .dispatch import calls, validate
from .dispatch.likelihoods import LIKELIHOODS
from .dispatch.types import Implementation

Gradient: TypeAlias = Literal["total", "path", "dreg"]
GRADIENTS = ("total", "path", "dreg")


class Mixture(NamedTuple):
    """A prior of K diagonal Gaussians, as :func:`mixture_log_prob` takes them."""

    mu: Tensor  # [K, D]
    logvar: Tensor  # [K, D]; the two are broadcast together
    log_weights: Tensor | None = None  # [K], normalised where they are used; None is equal weights


def gaussian_log_prob(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    event_dims: int = 1,
    impl: Implementation = "auto",
) -> Tensor:
    r"""Log-density of a diagonal Gaussian, summed over its last dimensions, in nats.

    .. math:: -\tfrac12 \sum_d \big[(x_d - \mu_d)^2 e^{-\ell_d} + \ell_d + \log 2\pi\big]

    Equivalent PyTorch::

        torch.distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(x).sum(-1)

    Args:
        x, mu, logvar: ``[..., D]``, broadcast together; ``logvar`` is the log variance.
            float16, bfloat16, float32 or float64; each may have its own, and is read in it.
        event_dims: how many last dimensions stand for D, and are summed over. Of ``[B, C, H, W]``
            3 gives a number an example, ``[B]``, 2 one a channel, ``[B, C]``, 0 one a latent. What
            is dense in another order of these dimensions, as channels_last is, is read as it lies.
        impl: ``"auto"`` (kernels on CUDA and CPU tensors, else the reference), ``"triton"``
            (for CUDA), ``"numba"`` (for CPUs) or ``"reference"``.

    Returns:
        ``[...]`` in float32, or float64 if any input is; differentiable in every argument
        (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError: shapes that do not broadcast, have fewer than ``event_dims`` dimensions, or no
            latents in them; a negative ``event_dims``; devices differ.
        TypeError: a dtype that is not floating; a sparse or nested tensor; an ``event_dims`` that
            is no int.
        RuntimeError: ``impl="triton"`` or ``"numba"`` where its kernels cannot run; on CUDA,
            without ``impl="reference"``, a second derivative, vmap or forward mode.

    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix C.2.

    >>> gaussian_log_prob(torch.zeros(1, 2), torch.zeros(2), torch.zeros(2))
    tensor([-1.8379])
    """
    validate.tensors(x=x, mu=mu, logvar=logvar)
    shape = validate.broadcast(event_dims, x=x, mu=mu, logvar=logvar)
    return calls.gaussian_log_prob(shape, x, mu, logvar, event_dims=event_dims, impl=impl)


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    event_dims: int = 1,
    impl: Implementation = "auto",
) -> Tensor:
    r"""KL divergence of diagonal Gaussians, summed over their last dimensions, in nats.

    .. math:: KL(q \| p) = \tfrac12 \sum_d \big[(\mu_d - m_d)^2 e^{-s_d}
              + e^{\ell_d - s_d} - 1 - (\ell_d - s_d)\big]

    with the prior's mean m and log variance s, both 0 by default: the standard normal.
    Accurate near q = p, where the usual float32 formula cancels, and never negative.

    Equivalent PyTorch::

        kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(-1)

    Args:
        mu, logvar: of q, ``[..., D]``, broadcast together.
        prior_mu, prior_logvar: of the prior; broadcast with q; None means 0.
        event_dims: as in :func:`gaussian_log_prob`.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[...]`` in float32, or float64 if any input is; differentiable in every argument
        (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix B.

    >>> gaussian_kl(torch.ones(1, 2), torch.zeros(1, 2))
    tensor([1.])
    >>> gaussian_kl(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), event_dims=2)
    tensor([[8., 8.]])
    """
    named = {"mu": mu, "logvar": logvar, "prior_mu": prior_mu, "prior_logvar": prior_logvar}
    validate.tensors(**named)
    shape = validate.broadcast(event_dims, **named)
    return calls.gaussian_kl(
        shape, mu, logvar, prior_mu, prior_logvar, event_dims=event_dims, impl=impl
    )


def gaussian_rsample(
    mu: Tensor,
    logvar: Tensor,
    num_samples: int | None = None,
    *,
    generator: Generator | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    r"""Reparameterised samples of a diagonal Gaussian.

    .. math:: z = \mu + e^{\ell / 2} \odot \epsilon, \qquad \epsilon \sim N(0, I)

    Equivalent PyTorch::

        mu + (0.5 * logvar).exp() * torch.randn_like(mu)

    The kernels store no noise: backward draws it again from a seed (but on a CPU, of one sample,
    where to read it is faster). It depends on the element's position and the seed alone, and is
    the same on a CPU and on a GPU, to rounding.
    The seed is 64 bits from torch's generator: ``torch.manual_seed`` or ``generator`` govern the
    noise, but after the same call of it a CPU and a GPU give other seeds. The reference draws
    other samples, those of ``torch.randn``; so does ``"auto"`` on a CPU where the reference
    stands in, as under ``torch.compile`` and ``vmap``.

    Args:
        mu, logvar: ``[..., D]``, broadcast together.
        num_samples: None for one sample, K >= 1 for K with a leading dimension.
        generator: a ``torch.Generator`` on the device of ``mu``; torch's default if None. In
            ``torch.utils.checkpoint`` leave it None: the recomputation starts torch's own
            generators from where they were, no other, and so would draw other noise.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        z ``[..., D]``, or ``[K, ..., D]``, in the dtype of ``mu``; differentiable in ``mu`` and
        ``logvar`` (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError: also for ``num_samples < 1``.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, eq. 10.

    >>> gaussian_rsample(torch.zeros(3, 2), torch.zeros(3, 2), num_samples=5).shape
    torch.Size([5, 3, 2])
    """
    validate.tensors(mu=mu, logvar=logvar)
    shape = validate.broadcast(mu=mu, logvar=logvar)
    if num_samples is not None:
        num_samples = validate.count("num_samples", num_samples)
    return calls.gaussian_rsample(shape, mu, logvar, num_samples, generator=generator, impl=impl)


def rsample_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    event_dims: int = 1,
    prior: Mixture | None = None,
    gradient: Literal["total", "path"] = "total",
    generator: Generator | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    r"""One reparameterised sample and the KL to the prior, in one pass over mu and logvar.

    The encoder's half of a VAE's loss: give ``z`` to the decoder and ``kl`` to
    :func:`elbo_loss`. Equivalent PyTorch::

        gaussian_rsample(mu, logvar), gaussian_kl(mu, logvar, prior_mu, prior_logvar)

    The KL to a mixture has no closed form. For one, ``kl`` is the estimate from this z::

        gaussian_log_prob(z, mu, logvar) - mixture_log_prob(z, *prior)

    Its mean over z is the KL, its gradient's mean the KL's; but it is noisy, and may be negative.

    Args:
        mu, logvar: of q, ``[..., D]``, broadcast together.
        prior_mu, prior_logvar: of the prior; broadcast to the shape of q; None means 0.
        prior: instead of them a :class:`Mixture`, such as a VampPrior: mu and logvar of q at K
            pseudo-inputs. Its parameters get their gradients.
        gradient: of the estimate, for a mixture: ``"total"``, or ``"path"``, which leaves out the
            score of q ("sticking the landing"), as in :func:`rsample_log_ratio`.
        event_dims: as in :func:`gaussian_log_prob`. z has the layout of mu, and the noise its
            order: latents that are channels_last get other samples than contiguous ones, as they
            do from ``torch.randn_like``. 1 with a :class:`Mixture`.
        generator: as in :func:`gaussian_rsample`.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``(z, kl)``: z ``[..., D]`` in the dtype of ``mu``; kl ``[...]`` in nats, in float32,
        or float64 if any input is. Differentiable in every argument (by the kernels on CUDA
        once, else any number of times).

    Raises:
        ValueError: also for ``gradient="path"`` without a mixture, a ``prior`` beside ``prior_mu``
            or ``prior_logvar``, and components of other latents.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, eq. 10 and appendix B; for
    mixtures eq. 6, and Tomczak & Welling, "VAE with a VampPrior", AISTATS 2018, eq. 9.

    >>> z, kl = rsample_kl(torch.zeros(3, 2), torch.zeros(3, 2))
    >>> z.shape, kl
    (torch.Size([3, 2]), tensor([0., 0., 0.]))
    """
    validate.tensors(mu=mu, logvar=logvar, prior_mu=prior_mu, prior_logvar=prior_logvar)
    shape = validate.broadcast(event_dims, mu=mu, logvar=logvar)
    validate.within(shape, prior_mu=prior_mu, prior_logvar=prior_logvar)
    if gradient != "total":
        validate.choice("gradient", gradient, ("total", "path"))
        if prior is None:
            raise ValueError(
                "gradient='path' needs a mixture as prior: a KL in closed form has no score of q"
            )
    if prior is not None:
        check_prior(prior, mu, logvar, prior_mu, prior_logvar, event_dims)
        options = {"gradient": gradient, "antithetic": False, "generator": generator, "impl": impl}
        z, log_ratio = calls.rsample_log_ratio_to_mixture(shape, mu, logvar, prior, 1, **options)
        return z.squeeze(0), -log_ratio.squeeze(0)
    return calls.rsample_kl(
        shape, mu, logvar, prior_mu, prior_logvar,
        event_dims=event_dims, generator=generator, impl=impl,
    )  # fmt: skip


def check_components(z, mu, logvar, log_weights, *, name="z", prefix=""):
    """The shape [K, D] of components for ``z`` [..., D], the argument ``name``."""
    shape = validate.broadcast(**{prefix + "mu": mu, prefix + "logvar": logvar})
    named = {prefix + "mu": mu, prefix + "logvar": logvar}
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(f"expected components [K, D] with K >= 1, got {validate.describe(named)}")
    if z.dim() == 0 or z.shape[-1] != shape[1]:
        raise ValueError(
            f"expected {name} [..., D] and components [K, D] of one D, "
            f"got {validate.describe({name: z, **named})}"
        )
    if log_weights is not None and log_weights.shape != shape[:1]:
        weights = {prefix + "log_weights": log_weights}
        raise ValueError(
            f"expected {prefix}log_weights [K], a number a component, "
            f"got {validate.describe(weights | named)}"
        )
    return shape


def rsample_log_ratio(
    mu: Tensor,
    logvar: Tensor,
    num_samples: int,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    event_dims: int = 1,
    prior: Mixture | None = None,
    gradient: Gradient = "total",
    antithetic: bool = False,
    generator: Generator | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    r"""K reparameterised samples and log p(z) - log q(z|x) of each, in one pass.

    ``gradient`` must fit the bound that trains q: ``"total"`` fits all, ``"path"`` the ELBO alone,
    ``"dreg"`` IWAE's bound alone. :func:`iwae_loss` refuses a log ratio that does not fit, but sees
    only one that comes as it is returned here: what you compute from it has no such check.

    .. math:: z_k = \mu + e^{\ell / 2} \odot \epsilon_k, \qquad
              \log p(z_k) - \log q(z_k \mid x)
              = \tfrac12 \sum_d \big[\epsilon_{kd}^2 - (z_{kd} - m_d)^2 e^{-s_d} + \ell_d - s_d\big]

    The encoder's half of an importance-weighted bound: give z to the decoder and the log
    ratio to :func:`iwae_loss`. mu and logvar are read once for all K samples, and backward
    sums over them without storing noise. Equivalent PyTorch::

        q, p = Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)
        z = q.rsample((num_samples,))
        log_ratio = (p.log_prob(z) - q.log_prob(z)).sum(-1)

    Args:
        mu, logvar: of q, ``[..., D]``, broadcast together.
        num_samples: K >= 1.
        prior_mu, prior_logvar: of the prior; broadcast to the shape of q; None means 0.
        event_dims: as in :func:`rsample_kl`; 1 with a :class:`Mixture`.
        prior: instead of them a :class:`Mixture`, such as a VampPrior: mu and logvar of q at K
            pseudo-inputs. Its parameters get their gradients, the same for all ``gradient``.
        gradient: what reaches mu and logvar. ``"total"``: the gradient of the values.
            ``"path"``: what flows through z alone, the score of q left out (Roeder et al.
            2017, "sticking the landing"): right for a mean over log weights, so for
            :func:`iwae_loss` with ``alpha=1``, or one sample. ``"dreg"``: that of ``"path"`` and
            of z, multiplied by the normalised importance weight once more (Tucker et al. 2019):
            right for :func:`iwae_loss` with ``alpha=0``, with less variance. It reads the
            weights off the gradient that reaches the log ratio, so the loss must use the log
            ratio, and that gradient must be a multiple of the weights. The prior's and the
            decoder's gradients are the same for all three.
        antithetic: draw pairs, samples 2k and 2k + 1, from eps and -eps; not with ``"dreg"``.
        generator: as in :func:`gaussian_rsample`.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``(z, log_ratio)``: z ``[K, ..., D]`` in the dtype of ``mu``; log_ratio ``[K, ...]`` in
        nats, in float32, or float64 if any input is. Differentiable in every tensor (by the
        kernels on CUDA once, else any number of times).

    Raises:
        ValueError: also for ``num_samples < 1``, an odd one with ``antithetic``, an unknown
            ``gradient``, and ``"dreg"`` with ``antithetic``, which is biased.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, eq. 8 and 13.

    >>> z, log_ratio = rsample_log_ratio(torch.zeros(3, 2), torch.zeros(3, 2), 5)
    >>> z.shape, log_ratio.abs().max()
    (torch.Size([5, 3, 2]), tensor(0.))
    """
    q = mu, logvar, prior_mu, prior_logvar
    shape, num_samples = check_samples(*q, num_samples, gradient, antithetic, event_dims)
    options = {"gradient": gradient, "antithetic": antithetic, "generator": generator, "impl": impl}
    if prior is None:
        z, log_ratio = calls.rsample_log_ratio(
            shape, *q, num_samples, event_dims=event_dims, **options
        )
    else:
        check_prior(prior, *q, event_dims)
        z, log_ratio = calls.rsample_log_ratio_to_mixture(
            shape, mu, logvar, prior, num_samples, **options
        )
    log_ratio.gradient_of_q = gradient  # type: ignore[attr-defined]  # for check_gradient
    return z, log_ratio


def check_prior(prior, mu, logvar, prior_mu, prior_logvar, event_dims=1):
    """A mixture that is the prior of q."""
    if not isinstance(prior, Mixture):
        raise TypeError(f"prior must be a Mixture, got {type(prior).__name__}")
    if prior_mu is not None or prior_logvar is not None:
        raise ValueError("expected a prior or prior_mu and prior_logvar, got both")
    if event_dims != 1:
        raise ValueError(
            f"event_dims must be 1 with a Mixture as prior, whose components are [K, D], got "
            f"{event_dims}: flatten mu and logvar"
        )
    named = {f"prior.{name}": tensor for name, tensor in prior._asdict().items()}
    validate.tensors(mu=mu, **named)
    check_components(torch.broadcast_tensors(mu, logvar)[0], *prior, name="mu", prefix="prior.")


def check_gradient(gradient, alpha, num_samples):
    """Whether ``gradient`` is that of the bound of order ``alpha``: of one sample all are."""
    alone = {"path": 1, "dreg": 0}.get(gradient, alpha)
    if alpha != alone and num_samples > 1:
        right = {0: "'dreg' or 'total'", 1: "'path' or 'total'"}.get(alpha, "'total'")
        raise ValueError(
            f"gradient={gradient!r} is biased at alpha={alpha} with {num_samples} samples, it "
            f"needs alpha={alone}; for this alpha draw with gradient={right}"
        )


def check_samples(
    mu, logvar, prior_mu, prior_logvar, num_samples, gradient, antithetic, event_dims=1
):
    """The arguments of rsample_log_ratio; returns the shape of q, and ``num_samples``."""
    validate.tensors(mu=mu, logvar=logvar, prior_mu=prior_mu, prior_logvar=prior_logvar)
    shape = validate.broadcast(event_dims, mu=mu, logvar=logvar)
    validate.within(shape, prior_mu=prior_mu, prior_logvar=prior_logvar)
    num_samples = validate.count("num_samples", num_samples)
    validate.choice("gradient", gradient, GRADIENTS)
    if antithetic and num_samples % 2:
        raise ValueError(f"antithetic sampling needs an even num_samples, got {num_samples}")
    if antithetic and gradient == "dreg":
        raise ValueError("gradient='dreg' needs independent samples, and antithetic=True is given")
    return shape, num_samples


def nll_of_examples(likelihood, recon, x, *parameters, mask=None, impl) -> Tensor:
    """-log p(x|z) of each example, of arguments under the names of the likelihood's function."""
    record = LIKELIHOODS[likelihood]
    shape = validate.likelihood(
        likelihood, recon, x, parameters, name=record.recon, x_name=record.x
    )
    validate.mask(mask, x, record.x)
    recon, x, parameters = calls.behind_mask(mask, recon, x, parameters, likelihood)
    return calls.negative_log_likelihood(
        shape, recon, x, parameters, likelihood=likelihood, impl=impl
    )


def gaussian_nll(
    recon: Tensor,
    x: Tensor,
    recon_logvar: float | Tensor = 0.0,
    *,
    mask: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    r"""Gaussian negative log-likelihood of each example, in nats.

    .. math:: \tfrac12 \sum_i \big[(x_i - r_i)^2 e^{-\ell_i} + \ell_i + \log 2\pi\big]

    over all event dimensions i. With ``recon_logvar=0.0`` it is half the squared error plus
    a constant, which is kept: the value is a log-likelihood.

    Equivalent PyTorch::

        F.gaussian_nll_loss(recon, x, recon_logvar.exp(), full=True, reduction="none").sum(...)

    Args:
        recon: the decoder's mean, ``[B, ...]``, or ``[K, B, ...]`` for K samples of z.
        x: the data ``[B, ...]``, floating or integer; not copied for the samples.
        recon_logvar: log variance of the decoder's noise: a float (fixed), a scalar tensor
            (one learned sigma), or a tensor that broadcasts to ``recon``.
        mask: bool, broadcast to ``x``: where it is False an event is left out, counts 0 and has a
            gradient of exactly 0, even if there is NaN. Padding, missing pixels. It costs a copy of
            ``recon`` and ``x``, and makes a width a tensor of that size.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[B]`` or ``[K, B]`` in float32, or float64 if any input is; differentiable in every
        tensor (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError: also where ``recon`` is neither of the shape of ``x`` nor samples of it:
            nothing else is broadcast.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix C.2.

    >>> gaussian_nll(torch.zeros(1, 2), torch.ones(1, 2))
    tensor([2.8379])
    """
    return nll_of_examples("gaussian", recon, x, recon_logvar, mask=mask, impl=impl)


def bernoulli_nll(
    logits: Tensor, x: Tensor, *, mask: Tensor | None = None, impl: Implementation = "auto"
) -> Tensor:
    r"""Bernoulli negative log-likelihood of each example from logits, in nats.

    .. math:: \sum_i \big[\log(1 + e^{a_i}) - x_i a_i\big]

    over all event dimensions i, for logits a. ``x`` may be anything in [0, 1] (or beyond:
    the formula is linear in it), as with the usual binary cross-entropy on grey values.

    Equivalent PyTorch::

        F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)

    Args:
        logits: the decoder's output before any sigmoid, ``[B, ...]``, or ``[K, B, ...]`` for
            K samples of z.
        x: the data ``[B, ...]``, floating or bool; not copied for the samples. Grey values of 0 to
            255 need ``x.float() / 255``. On a CPU a negative result, which only data outside
            [0, 1] have, is a warning.
        mask: as in :func:`gaussian_nll`.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[B]`` or ``[K, B]`` in float32, or float64 if any input is; differentiable in both
        arguments (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError: also where ``logits`` is neither of the shape of ``x`` nor samples of it:
            nothing else is broadcast.
        TypeError: also an integer ``x``.
        RuntimeError: as :func:`gaussian_log_prob`.

    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix C.1.

    >>> bernoulli_nll(torch.zeros(1, 2), torch.ones(1, 2))
    tensor([1.3863])
    """
    nll = nll_of_examples("bernoulli", logits, x, mask=mask, impl=impl)
    calls.warn_of_data("bernoulli", nll)
    return nll


def laplace_nll(
    recon: Tensor,
    x: Tensor,
    log_scale: float | Tensor = 0.0,
    *,
    mask: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    r"""Laplace negative log-likelihood of each example, in nats: L1 with its normaliser.

    .. math:: \sum_i \big[|x_i - r_i| \, e^{-s_i} + s_i + \log 2\big]

    over all event dimensions i. With ``log_scale=0.0`` it is the absolute error plus a constant,
    which is kept: the value is a log-likelihood. The autoencoders of latent diffusion have it with
    one learned log scale, a scalar Parameter, and without the log 2.

    Equivalent PyTorch::

        -torch.distributions.Laplace(recon, log_scale.exp()).log_prob(x).flatten(1).sum(1)

    Args:
        recon: the decoder's median, ``[B, ...]``, or ``[K, B, ...]`` for K samples of z.
        x: the data ``[B, ...]``, floating or integer; not copied for the samples.
        log_scale: s, a float (fixed), a scalar tensor (one learned scale), or a tensor that
            broadcasts to ``recon``.
        mask: as in :func:`gaussian_nll`.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[B]`` or ``[K, B]`` in float32, or float64 if any input is; differentiable in every
        tensor (by the kernels on CUDA once, else any number of times). Where ``recon`` is x its
        gradient is 0.

    Raises:
        ValueError: also where ``recon`` is neither of the shape of ``x`` nor samples of it:
            nothing else is broadcast.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Rombach et al., "High-resolution image synthesis with latent diffusion models", CVPR 2022,
    appendix G: the loss of its autoencoders, but for the perceptual term.

    >>> laplace_nll(torch.zeros(1, 2), torch.ones(1, 2))
    tensor([3.3863])
    """
    return nll_of_examples("laplace", recon, x, log_scale, mask=mask, impl=impl)


def poisson_nll(
    log_rate: Tensor, x: Tensor, *, mask: Tensor | None = None, impl: Implementation = "auto"
) -> Tensor:
    r"""Poisson negative log-likelihood of each example from log rates, in nats.

    .. math:: \sum_i \big[e^{a_i} - x_i a_i + \log x_i!\big]

    over all event dimensions i, for log rates a and counts x. No host waits for the device to look
    at counts: a negative one makes its example NaN, and of a fractional one the factorial is
    :math:`\Gamma(x + 1)`.

    Equivalent PyTorch, whose own ``full=True`` approximates log x!::

        nll = F.poisson_nll_loss(log_rate, x, reduction="none") + torch.lgamma(x + 1)
        nll.flatten(1).sum(1)

    Args:
        log_rate: the decoder's output, ``[B, ...]``, or ``[K, B, ...]`` for K samples of z.
        x: the counts ``[B, ...]``, floating or integer, without gradient; not copied for the
            samples.
        mask: as in :func:`gaussian_nll`.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[B]`` or ``[K, B]`` in float32, or float64 if any input is; differentiable in
        ``log_rate`` (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError: also where ``log_rate`` is neither of the shape of ``x`` nor samples of it, or
            ``x`` requires a gradient.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Gopalan, Hofman & Blei, "Scalable recommendation with Poisson factorization", UAI 2015;
    scvi-tools' ``gene_likelihood="poisson"``.

    >>> poisson_nll(torch.zeros(1, 2), torch.tensor([[0, 3]]))
    tensor([3.7918])
    """
    return nll_of_examples("poisson", log_rate, x, mask=mask, impl=impl)


def categorical_nll(
    logits: Tensor, target: Tensor, *, mask: Tensor | None = None, impl: Implementation = "auto"
) -> Tensor:
    r"""Categorical negative log-likelihood of each example, in nats.

    .. math:: \sum_i \Big[\log \sum_c e^{a_{ic}} - a_{i t_i}\Big]

    over all events i, for logits a of C classes, the last dimension, and classes t: the words of a
    text, the colours of pixels. No host waits for the device to look at classes: one outside
    [0, C) makes its example NaN, and none is left out.

    Equivalent PyTorch::

        nll = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
        nll.view(target.shape).flatten(1).sum(1)

    Args:
        logits: the decoder's output before any softmax, ``[B, ..., C]``, or ``[K, B, ..., C]`` for
            K samples of z. F.cross_entropy would have the classes second.
        target: the classes ``[B, ...]``, integer; not copied for the samples.
        mask: as in :func:`gaussian_nll`.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[B]`` or ``[K, B]`` in float32, or float64 for float64 logits; differentiable in
        ``logits`` (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError: also where ``logits`` but for their classes are neither of the shape of
            ``target`` nor samples of it.
        TypeError: also a ``target`` that is not integer.
        RuntimeError: as :func:`gaussian_log_prob`.

    Bowman et al., "Generating sentences from a continuous space", CoNLL 2016.

    >>> categorical_nll(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]))
    tensor([2.7726])
    """
    return nll_of_examples("categorical", logits, target, mask=mask, impl=impl)


class ImportanceWeights(NamedTuple):
    """A bound, the weights that are its gradient, and their effective sample size."""

    bound: Tensor  # [...]
    weights: Tensor  # [K, ...], of sum 1 over K
    ess: Tensor  # [...], in [1, K], or 0 where all weights are


def importance_weights(
    log_weights: Tensor, alpha: float = 0.0, *, impl: Implementation = "auto"
) -> ImportanceWeights:
    r"""The importance-weighted bound of K log weights, in nats, and the normalised weights.

    Not checked here: log weights made of a log ratio that :func:`rsample_log_ratio` returned for
    ``gradient="dreg"`` need alpha = 0, for ``"path"`` alpha = 1; else q's gradient is biased.

    .. math:: \tfrac1a \log \tfrac1K \sum_k w_k^a, \qquad
              v_k = w_k^a \big/ \textstyle\sum_j w_j^a, \qquad
              \mathrm{ESS} = 1 \big/ \textstyle\sum_k v_k^2, \qquad a = 1 - \alpha

    alpha = 0 is IWAE's bound, alpha = 1 (the limit) the ELBO, others Renyi's.
    Equivalent PyTorch, for alpha = 0::

        torch.logsumexp(log_weights, 0) - math.log(K), torch.softmax(log_weights, 0)

    except where all weights of an example are 0: there the bound is -inf, and the weights, and
    so the gradients, are 0 instead of NaN.

    Args:
        log_weights: log w_k = log p(x, z_k) - log q(z_k|x), ``[K, ...]``.
        alpha: the order of Renyi's bound.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``(bound, weights, ess)``, in float32, or float64 if any input is. The bound is
        differentiable (by the kernels on CUDA once, else any number of times); the others are
        detached.

    Raises:
        ValueError: ``log_weights`` without samples, or an ``alpha`` that is not finite.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Burda et al. 2016, eq. 8; Li & Turner, "Renyi divergence variational inference", NeurIPS
    2016, eq. 7; Kong, Liu & Wong 1994 (ESS).

    >>> bound, weights, ess = importance_weights(torch.zeros(4, 1))
    >>> bound, ess
    (tensor([0.]), tensor([4.]))
    """
    validate.tensors(log_weights=log_weights)
    if log_weights.dim() == 0 or log_weights.shape[0] == 0:
        shape = tuple(log_weights.shape)
        raise ValueError(f"expected log_weights [K, ...] with K >= 1, got {shape}")
    alpha = validate.number("alpha", alpha, -validate.FINITE, validate.FINITE)
    return ImportanceWeights(*calls.importance_weights(log_weights, alpha, impl=impl))
