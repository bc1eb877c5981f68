"""The local KL of scvi-tools' VAE, and the likelihoods of SCVI, SCANVI, TOTALVI and PEAKVI."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from ..dispatch import likelihood_calls, validate
from ..dispatch.types import Implementation
from ..reference.reference import accumulate
from .terms import kl_of_normals
from .torch_nn import binary_cross_entropy_rows, in_torch_dtype


def scvi_kl_local(
    qz_m: Tensor | Normal,
    qz_v: Tensor | None = None,
    kl_weight: Tensor | float = 1.0,
    *,
    pz_m: Tensor | Normal | None = None,
    pz_v: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    r"""The weighted local KL of scvi-tools' VAE, of each cell, from means and **variances**.

    .. math:: w\, KL(N(m, v) \| N(m_p, v_p))
              = \tfrac{w}{2} \sum_d \big[(m - m_p)^2 / v_p + v / v_p - 1 - \log (v / v_p)\big]

    Its beta is ``kl_weight``, which scvi-tools warms up to 1. Equivalent PyTorch::

        kl_weight * kl_divergence(Normal(qz_m, qz_v.sqrt()), Normal(0, 1)).sum(-1)

    The one line: ``weighted_kl_local = scvi_kl_local(qz_m, qz_v, kl_weight)``. In scvi-tools 1.x,
    which has distributions, it is ``scvi_kl_local(qz, kl_weight=kl_weight, pz_m=pz)``. The loss of
    a cell adds ``-px.log_prob(x).sum(-1)``. The KL of the library size is the same function with
    ``pz_m`` and ``pz_v``, without a weight.

    Args:
        qz_m, qz_v: mean and variance of q, ``[..., D]``; or ``qz_m`` alone, as a ``Normal``.
        kl_weight: a number, or a tensor that broadcasts with the result.
        pz_m, pz_v: mean and variance of the prior, None for 0 and 1; or ``pz_m`` alone, as a
            ``Normal``.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``[...]`` in nats, in the inputs' dtype; differentiable in every tensor.

    Raises:
        ValueError: on CPU tensors, a variance that is not positive, as in ``Normal``. On CUDA and
            under ``torch.compile`` variances are not checked, to avoid a device sync: the KL is
            then inf or NaN. Also a variance together with a ``Normal``, which has its own.

    Lopez et al., "Deep generative modeling for single-cell transcriptomics", Nature Methods
    2018; Kingma & Welling 2014, appendix B.

    >>> scvi_kl_local(torch.ones(3, 2), torch.ones(3, 2), kl_weight=0.5)
    tensor([0.5000, 0.5000, 0.5000])
    """
    form = "std" if isinstance(qz_m, Normal) and pz_v is None else "variance"
    q = _mean_and_spread(form, qz_m=qz_m, qz_v=qz_v)
    if q[1] is None:
        raise TypeError("qz_v, the variance, is needed beside a tensor of means")
    prior = _mean_and_spread(form, pz_m=pz_m, pz_v=pz_v)
    kl, _ = kl_of_normals(q, prior, form, impl, names=("qz_m", "qz_v", "pz_m", "pz_v"))
    return kl_weight * in_torch_dtype(kl, q[0])


def _mean_and_spread(form, **named):
    """(mean, spread) from a mean and a variance, or from a Normal in the mean's place.

    Either may be None.
    """
    (name, mean), (variance_name, variance) = named.items()
    if isinstance(mean, Normal):
        if variance is not None:
            raise ValueError(f"{variance_name} goes with a tensor, but {name} is a Normal")
        return mean.loc, mean.scale if form == "std" else accumulate(mean.scale)[0].square()
    if variance is not None:
        validate.tensors(**named)
        _positive(**{variance_name: variance})
    return mean, variance


def _positive(**variances):
    """Check on a CPU that variances are positive, which NaN is not."""
    for name, variance in variances.items():
        if variance is None or variance.device.type != "cpu" or torch.compiler.is_compiling():
            continue
        if not (variance > 0).all():
            raise ValueError(f"{name} must be a positive variance, and is 0, negative or NaN")


def scvi_log_nb_positive(
    x: Tensor,
    mu: Tensor,
    theta: Tensor,
    eps: float = 1e-8,
    log_fn: object = None,
    lgamma_fn: object = None,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``log_nb_positive`` of scvi-tools: the negative binomial's log-likelihood of each count.

    .. math:: \log \frac{\Gamma(x + \theta)}{\Gamma(\theta) \, x!}
              + \theta \log \frac{\theta}{\theta + \mu + \epsilon}
              + x \log \frac{\mu + \epsilon}{\theta + \mu + \epsilon}

    The original loses digits at a large theta: in float32 a cell of 4,000 genes is off by 7 nats at
    theta = 1e4. This one does not. Two lines change SCVI and its family over::

        import scvi.distributions._negative_binomial as nb
        nb.log_nb_positive, nb.log_zinb_positive = scvi_log_nb_positive, scvi_log_zinb_positive

    Equivalent PyTorch, up to rounding: the original. It also adds epsilon to theta in one place,
    which changes the result by at most epsilon; this is left out.

    Args:
        x: counts, broadcast with the others to ``[..., G]``.
        mu: means, positive.
        theta: inverse dispersions, positive: ``[G]`` for one per gene.
        eps: what the original adds to means.
        log_fn, lgamma_fn: the original's functions, accepted and not used.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``[..., G]`` in nats, in the dtype of ``mu``; differentiable in ``mu`` and ``theta``.

    Raises:
        ValueError, TypeError: as :func:`fused_elbo.negative_binomial_nll`.

    Lopez et al., "Deep generative modeling for single-cell transcriptomics", Nature Methods 2018.

    >>> scvi_log_nb_positive(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(2))
    tensor([[-0.6931, -0.6931]])
    """
    return _log_prob(x, mu, theta, None, eps, impl)


def scvi_log_zinb_positive(
    x: Tensor,
    mu: Tensor,
    theta: Tensor,
    pi: Tensor,
    eps: float = 1e-8,
    log_fn: object = None,
    lgamma_fn: object = None,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``log_zinb_positive`` of scvi-tools: the zero-inflated log-likelihood of each count.

    .. math:: \log \big(\sigma(\pi) [x = 0] + (1 - \sigma(\pi)) \, \mathrm{NB}(x; \mu, \theta)\big)

    Equivalent PyTorch, up to rounding: the original, as in :func:`scvi_log_nb_positive`, which has
    the two lines that change a model over.

    Args:
        x, mu, theta, eps, log_fn, lgamma_fn, impl: as in :func:`scvi_log_nb_positive`.
        pi: the logits of the inflation, the model's dropout.

    Returns:
        ``[..., G]`` in nats, in the dtype of ``mu``; differentiable in all but x.

    Raises:
        ValueError, TypeError: as :func:`fused_elbo.negative_binomial_nll`.

    Lopez et al., "Deep generative modeling for single-cell transcriptomics", Nature Methods 2018.

    >>> one = torch.ones(1, 2)
    >>> scvi_log_zinb_positive(0 * one, one, torch.ones(2), 0 * one)
    tensor([[-0.2877, -0.2877]])
    """
    return _log_prob(x, mu, theta, pi, eps, impl)


def scvi_log_mixture_nb(
    x: Tensor,
    mu_1: Tensor,
    mu_2: Tensor,
    theta_1: Tensor,
    theta_2: Tensor | None,
    pi_logits: Tensor,
    eps: float = 1e-8,
    log_fn: object = None,
    lgamma_fn: object = None,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``log_mixture_nb`` of scvi-tools: TOTALVI's proteins, background and foreground.

    .. math:: \log \big(\sigma(\pi) \, \mathrm{NB}(x; \mu_1, \theta_1)
              + (1 - \sigma(\pi)) \, \mathrm{NB}(x; \mu_2, \theta_2)\big)

    Equivalent PyTorch, up to rounding: the original, as in :func:`scvi_log_nb_positive`. TOTALVI
    needs a third line: ``nb.log_mixture_nb = scvi_log_mixture_nb``.

    Args:
        x, eps, log_fn, lgamma_fn, impl: as in :func:`scvi_log_nb_positive`.
        mu_1, theta_1: the first component.
        mu_2, theta_2: the second component; ``theta_2`` of None means ``theta_1``.
        pi_logits: the logits of the first component's weight.

    Returns:
        ``[..., G]`` in nats, in the dtype of ``mu_1``; differentiable in all but x.

    Raises:
        ValueError, TypeError: as :func:`fused_elbo.negative_binomial_nll`.

    Gayoso et al., "Joint probabilistic modeling of single-cell multi-omic data with totalVI",
    Nature Methods 2021.

    >>> one = torch.ones(1, 2)
    >>> scvi_log_mixture_nb(0 * one, one, one, one, None, 0 * one)
    tensor([[-0.6931, -0.6931]])
    """
    # As in the original, eps is 1e-8, whatever is passed, where each component has its own theta.
    own = 1e-8 if theta_2 is not None else eps
    first = _log_prob(x, mu_1, theta_1, None, own, impl)
    second = _log_prob(x, mu_2, theta_1 if theta_2 is None else theta_2, None, own, impl)
    return torch.logaddexp(first, second - pi_logits) - F.softplus(-pi_logits)


def scvi_peakvi_reconstruction_loss(
    p: Tensor, d: Tensor | float, f: Tensor | float, x: Tensor, *, impl: Implementation = "auto"
) -> Tensor:
    r"""``get_reconstruction_loss`` of PEAKVI's module: open or not, summed over a cell's regions.

    .. math:: -\sum_i \big[[x_i > 0] \log (p_i d f_i) + [x_i = 0] \log (1 - p_i d f_i)\big]

    with logarithms of at least -100, as torch has it. Equivalent PyTorch::

        torch.nn.BCELoss(reduction="none")(p * d * f, (x > 0).float()).sum(-1)

    The line, for a model of yours: ``model.module.get_reconstruction_loss =
    scvi_peakvi_reconstruction_loss``.

    Args:
        p: probabilities of being open, ``[B, G]``.
        d: the cell's factor, a tensor that broadcasts to it, or 1.
        f: the region's factor, the same.
        x: counts ``[B, G]``.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``[B]`` in nats, in the dtype of ``p``; differentiable in ``p``, ``d`` and ``f``.

    Raises:
        ValueError, TypeError: as :func:`fused_elbo.compat.binary_cross_entropy`.

    Ashuach et al., "PeakVI: a deep generative model for single-cell chromatin accessibility
    analysis", Cell Reports Methods 2022.

    >>> p = torch.full((1, 2), 0.5)
    >>> scvi_peakvi_reconstruction_loss(p, torch.ones(1, 1), torch.ones(2), torch.ones(1, 2))
    tensor([1.3863])
    """
    recon = p * d * f
    return binary_cross_entropy_rows(recon, (x > 0).to(recon.dtype), impl=impl)


def _log_prob(x, mu, theta, pi, eps, impl):
    """The log probability of each element. ``eps`` keeps the logarithm of the mean finite."""
    validate.tensors(mu=mu, theta=theta, pi=pi)
    validate.dense("x", x, validate.DATA["counts"])
    validate.same_device(mu=mu, x=x)
    named = {"x": x, "mu": mu, "theta": theta, "pi": pi}
    shape = validate.broadcast(0, **named)
    log_mean = torch.log(mu + eps).expand(shape)
    log_theta = torch.log(theta)
    if not shape:
        log_mean, log_theta = log_mean.reshape(1), log_theta.reshape(1)
    nll = likelihood_calls.negative_binomial_nll_terms(log_mean, x, log_theta, pi, impl=impl)
    return in_torch_dtype(-nll.reshape(shape), mu)
