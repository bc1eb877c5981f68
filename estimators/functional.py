"""The operations on Gaussians: densities, KL divergences and samples."""

from typing import Any, Literal

from torch import Generator, Tensor

from .dispatch import gaussian_calls, mixture_calls, sample_calls, validate
from .dispatch.types import GRADIENTS, Gradient, Implementation
from .mixtures import Mixture, check_prior


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
    return gaussian_calls.gaussian_log_prob(shape, x, mu, logvar, event_dims=event_dims, impl=impl)


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
    return gaussian_calls.gaussian_kl(
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
    stands in, as under ``vmap`` and in exported programs.

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
    return sample_calls.gaussian_rsample(
        shape, mu, logvar, num_samples, generator=generator, impl=impl
    )


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
        options: dict[str, Any] = {
            "gradient": gradient,
            "antithetic": False,
            "generator": generator,
            "impl": impl,
        }
        z, log_ratio = mixture_calls.rsample_log_ratio_to_mixture(
            shape, mu, logvar, prior, 1, **options
        )
        return z.squeeze(0), -log_ratio.squeeze(0)
    return sample_calls.rsample_kl(
        shape, mu, logvar, prior_mu, prior_logvar,
        event_dims=event_dims, generator=generator, impl=impl,
    )  # fmt: skip


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
    options: dict[str, Any] = {
        "gradient": gradient,
        "antithetic": antithetic,
        "generator": generator,
        "impl": impl,
    }
    if prior is None:
        z, log_ratio = sample_calls.rsample_log_ratio(
            shape, *q, num_samples, event_dims=event_dims, **options
        )
    else:
        check_prior(prior, *q, event_dims)
        z, log_ratio = mixture_calls.rsample_log_ratio_to_mixture(
            shape, mu, logvar, prior, num_samples, **options
        )
    log_ratio.gradient_of_q = gradient  # type: ignore[attr-defined]  # for check_gradient
    return z, log_ratio


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
