"""Likelihoods of counts: of cells, of words, of what users took."""

import math
from typing import Any

from torch import Tensor

from .dispatch import likelihood_calls, masks, validate
from .dispatch.types import REDUCTIONS, Implementation, Reduction
from .likelihoods import nll_of_examples


def negative_binomial_nll(
    log_mean: Tensor,
    x: Tensor,
    log_theta: float | Tensor,
    *,
    zero_logits: Tensor | None = None,
    mask: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    r"""Negative binomial negative log-likelihood of each example, in nats, zero-inflated or not.

    .. math:: \sum_i \Big[\theta_i \log \frac{\theta_i + \mu_i}{\theta_i}
              + x_i \log \frac{\theta_i + \mu_i}{\mu_i}
              - \log \frac{\Gamma(x_i + \theta_i)}{\Gamma(\theta_i) \, x_i!}\Big]

    over all event dimensions i, for counts x of mean :math:`\mu = e^m` and variance
    :math:`\mu + \mu^2 / \theta`, with the inverse dispersion :math:`\theta = e^t`. With zero logits
    z the count is instead zero with probability :math:`\pi = \sigma(z)`: the likelihood is
    :math:`\pi \, [x = 0] + (1 - \pi) \, \mathrm{NB}(x)`.

    As theta grows it becomes :func:`poisson_nll`. Its digits hold at every count, mean and
    dispersion; the formula in PyTorch loses them where theta is large. Counts are not validated, to
    avoid a device sync: a negative count makes its example NaN; for fractional counts log x! is
    :math:`\log \Gamma(x + 1)`.

    Equivalent PyTorch, without zero inflation::

        theta, s = log_theta.exp(), log_mean - log_theta
        nll = theta * F.softplus(s) + x * F.softplus(-s)
        nll = nll + torch.lgamma(theta) + torch.lgamma(x + 1) - torch.lgamma(x + theta)
        nll.flatten(1).sum(1)

    Args:
        log_mean: the decoder's output, ``[B, ...]``, or ``[K, B, ...]`` for K samples of z.
        x: the counts ``[B, ...]``, floating or integer, without gradient; not copied for the
            samples.
        log_theta: t, a float (fixed), or a tensor that broadcasts to ``log_mean``: ``[G]`` for one
            dispersion per gene of ``log_mean [B, G]``. In torch.distributions ``exp(t)`` is
            ``total_count``; its ``logits`` are ``log_mean - t``.
        zero_logits: z, a tensor that broadcasts to ``log_mean``; None for no zero inflation.
        mask: as in :func:`gaussian_nll`.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[B]`` or ``[K, B]`` in float32, or float64 if any input is; differentiable in
        ``log_mean``, ``log_theta`` and ``zero_logits`` (by the kernels on CUDA once, else any
        number of times).

    Raises:
        ValueError: also where ``log_mean`` is neither of the shape of ``x`` nor samples of it, or
            ``x`` requires a gradient.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Lopez et al., "Deep generative modeling for single-cell transcriptomics", Nature Methods 2018;
    Loader, "Fast and accurate computation of binomial probabilities", 2000, for the digits.

    >>> negative_binomial_nll(torch.zeros(1, 2), torch.tensor([[0, 1]]), 0.0)
    tensor([2.0794])
    >>> negative_binomial_nll(
    ...     torch.zeros(1, 2), torch.tensor([[0, 1]]), 0.0, zero_logits=torch.zeros(2)
    ... )
    tensor([2.3671])
    """
    parameters = log_theta, zero_logits
    return nll_of_examples("negative_binomial", log_mean, x, *parameters, mask=mask, impl=impl)


def softmax_negative_binomial_nll(
    logits: Tensor,
    x: Tensor,
    log_theta: float | Tensor,
    log_library: Tensor,
    *,
    zero_logits: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
    impl: Implementation = "auto",
) -> Tensor:
    r""":func:`negative_binomial_nll` of means that share out a library, in nats.

    .. math:: \mu_i = e^{l} \, \frac{e^{a_i}}{\sum_j e^{a_j}}

    for logits a over all event dimensions i and the logarithm l of an example's library, the number
    of counts that are expected of it: the decoder of scVI and its family. No mean is stored, and
    the softmax has no tensor of its own. With ``reduction`` "mean" or "sum" the kernels compute all
    gradients in the forward pass already (except in float16 and under ``torch.compile``).

    Equivalent PyTorch, for ``[B, G]``::

        negative_binomial_nll(log_library + torch.log_softmax(logits, 1), x, log_theta)

    Args:
        logits: the decoder's output before its softmax, ``[B, ...]``, or ``[K, B, ...]`` for K
            samples of z.
        x, log_theta, zero_logits: as in :func:`negative_binomial_nll`.
        log_library: l, one number an example: ``[B]``, or with events of size 1, ``[B, 1]`` or
            ``[K, B, 1]`` for ``[B, G]``. Observed (``x.sum(1).log()``) or encoded.
        mask: as in :func:`gaussian_nll`, but the softmax is over all events: an event outside of
            the mask counts nothing and keeps its share of the library. Its logit is read, and has
            a gradient through the shares of the others.
        reduction: over all examples and samples: ``"none"``, ``"mean"`` or ``"sum"``.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[B]`` or ``[K, B]``, or a scalar, in float32, or float64 if any input is; differentiable
        in ``logits``, ``log_theta``, ``log_library`` and ``zero_logits`` (by the kernels on CUDA
        once, else any number of times).

    Raises:
        ValueError: also a ``log_library`` of another shape, or an unknown ``reduction``.
        TypeError, RuntimeError: as :func:`negative_binomial_nll`.

    Lopez et al., "Deep generative modeling for single-cell transcriptomics", Nature Methods 2018.

    >>> x, log_library = torch.tensor([[0, 2]]), torch.tensor([2.0]).log()
    >>> softmax_negative_binomial_nll(torch.zeros(1, 2), x, 0.0, log_library)
    tensor([2.7726])
    """
    validate.choice("reduction", reduction, REDUCTIONS)
    given = log_theta, zero_logits
    shape = validate.likelihood("negative_binomial", logits, x, given, name="logits")
    validate.tensors(logits=logits, log_library=log_library)
    if log_library.shape == x.shape[:1]:
        log_library = log_library.reshape(-1, *(1,) * (x.dim() - 1))
    elif log_library.dim() < x.dim() or any(s != 1 for s in log_library.shape[1 - x.dim() :]):
        shapes = validate.describe({"log_library": log_library, "x": x})
        raise ValueError(f"expected log_library [B], or [B, 1, ...], got {shapes}")
    validate.within(logits.shape, log_library=log_library)
    validate.mask(mask, x)
    x, (log_theta, zero_logits) = masks.behind_mask_of_softmax(mask, logits, x, given)
    options: dict[str, Any] = {"impl": impl}
    if reduction != "none":
        values = math.prod(shape)
        options["scale"] = 1.0 if reduction == "sum" else 1.0 / values if values else math.nan
    return likelihood_calls.softmax_negative_binomial_nll(
        shape, logits, x, log_theta, log_library, zero_logits, **options
    )


def multinomial_nll(
    logits: Tensor, counts: Tensor, *, mask: Tensor | None = None, impl: Implementation = "auto"
) -> Tensor:
    r"""Multinomial negative log-likelihood of each example, in nats.

    .. math:: n \log \sum_i e^{a_i} - \sum_i x_i a_i + \sum_i \log x_i! - \log n!,
              \qquad n = \sum_i x_i

    over all event dimensions i, for logits a and counts x: the words of a document, what a user
    took. All constants are kept, so that the value is a log-likelihood; code for recommenders
    leaves out the factorials. Where a count is zero its logit may be -inf. Counts are not
    validated, to avoid a device sync: a negative count makes its example NaN.

    Equivalent PyTorch::

        n = counts.sum(1)
        nll = torch.lgamma(counts + 1).sum(1) - torch.lgamma(n + 1)
        nll - (counts * torch.log_softmax(logits, 1)).sum(1)

    Args:
        logits: the decoder's output before any softmax, ``[B, ...]``, or ``[K, B, ...]`` for K
            samples of z. The softmax is over all of an example.
        counts: x, ``[B, ...]``, floating or integer, without gradient; not copied for the samples.
        mask: as in :func:`gaussian_nll`: the softmax is over the events that are left.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[B]`` or ``[K, B]`` in float32, or float64 if any input is; differentiable in ``logits``
        (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError: also where ``logits`` is neither of the shape of ``counts`` nor samples of it,
            or ``counts`` require a gradient.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Liang, Krishnan, Hoffman & Jebara, "Variational autoencoders for collaborative filtering", WWW
    2018, eq. 2.

    >>> multinomial_nll(torch.zeros(1, 2), torch.tensor([[1, 1]]))
    tensor([0.6931])
    """
    return nll_of_examples("multinomial", logits, counts, mask=mask, impl=impl)
