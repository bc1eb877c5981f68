"""The negative log-likelihood of each example, a function for each likelihood."""

from torch import Tensor

from .dispatch import likelihood_calls, masks, validate
from .dispatch.likelihoods import LIKELIHOODS
from .dispatch.types import Implementation


def nll_of_examples(likelihood, recon, x, *parameters, mask, impl) -> Tensor:
    """-log p(x|z) of each example, of arguments under the names of the likelihood's function."""
    record = LIKELIHOODS[likelihood]
    shape = validate.likelihood(
        likelihood, recon, x, parameters, name=record.recon, x_name=record.x
    )
    if mask is not None:
        validate.mask(mask, x, record.x)
        recon, x, parameters = masks.behind_mask(mask, recon, x, parameters, likelihood)
    return likelihood_calls.negative_log_likelihood(
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
            [0, 1] have, is a warning: the first 100 calls are looked at, then one of 100.
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
    likelihood_calls.warn_of_data("bernoulli", nll)
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
