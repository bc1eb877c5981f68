"""Importance-weighted bounds: K samples of z for each example, all at once or in chunks."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from ..kernels.torch_state import surely_transforming
from .dispatch import (
    layouts,
    likelihood_calls,
    loss_calls,
    masks,
    mixture_calls,
    sample_calls,
    validate,
)
from .dispatch.likelihoods import LIKELIHOODS, NAMES, LikelihoodName
from .dispatch.types import REDUCTIONS, Gradient, Implementation, Reduction
from .functional import check_samples
from .mixtures import Mixture, check_prior
from .reference import noise


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
    return ImportanceWeights(*loss_calls.importance_weights(log_weights, alpha, impl=impl))


class IWAEParts(NamedTuple):
    """The loss, and what it weighs: all but the loss are detached."""

    loss: Tensor
    log_weights: Tensor  # [K, B]: log p(x, z_k) - log q(z_k|x)
    weights: Tensor  # [K, B], of sum 1 over K
    ess: Tensor  # [B]: the weights' effective sample size


@overload
def iwae_loss(
    recon: Tensor,
    x: Tensor,
    log_ratio: Tensor,
    *,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    alpha: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: Literal[False] = False,
    impl: Implementation = "auto",
) -> Tensor: ...


@overload
def iwae_loss(
    recon: Tensor,
    x: Tensor,
    log_ratio: Tensor,
    *,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    alpha: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: Literal[True],
    impl: Implementation = "auto",
) -> IWAEParts: ...


@overload
def iwae_loss(
    recon: Tensor,
    x: Tensor,
    log_ratio: Tensor,
    *,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    alpha: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: bool,
    impl: Implementation = "auto",
) -> Tensor | IWAEParts: ...


def iwae_loss(
    recon: Tensor,
    x: Tensor,
    log_ratio: Tensor,
    *,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    alpha: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: bool = False,
    impl: Implementation = "auto",
) -> Tensor | IWAEParts:
    r"""The loss of an importance-weighted autoencoder: minus its bound of log p(x), in nats.

    A ``log_ratio`` whose ``gradient`` would be biased at this alpha is an error, if it comes as
    :func:`rsample_log_ratio` returned it; after arithmetic or indexing that cannot be seen.

    .. math:: -\frac{1}{1 - \alpha} \log \frac1K \sum_k w_k^{1 - \alpha}, \qquad
              \log w_k = \log p(x \mid z_k) + \log p(z_k) - \log q(z_k \mid x)

    for each example. alpha = 0 is IWAE's bound, tighter as K grows; alpha = 1 the ELBO, with a
    KL by Monte Carlo; others Renyi's bound. A training step is as short as with one sample::

        z, log_ratio = rsample_log_ratio(*encoder(x), 64, gradient="dreg")
        loss = iwae_loss(decoder(z), x, log_ratio)

    Equivalent PyTorch, for the Bernoulli likelihood and alpha = 0::

        nll = F.binary_cross_entropy_with_logits(recon, x.expand_as(recon), reduction="none")
        log_weights = log_ratio - nll.flatten(2).sum(2)
        (math.log(K) - torch.logsumexp(log_weights, 0)).mean()

    Args:
        recon: the decoder's output for K samples of z, ``[K, B, ...]``, for ``"categorical"``
            ``[K, B, ..., C]``: what it means is as in :func:`elbo_loss`.
        x: the data ``[B, ...]``, not copied for the samples: floating or bool for ``"bernoulli"``,
            integer for ``"categorical"``, else floating or integer.
        log_ratio: log p(z) - log q(z|x), ``[K, B]``, as :func:`rsample_log_ratio` returns it.
            Its ``gradient`` decides which estimator trains q; with K > 1 ``"dreg"`` is for
            alpha = 0, ``"path"`` for alpha = 1.
        likelihood, recon_logvar, log_scale, log_theta, zero_logits: as in :func:`elbo_loss`.
        alpha: the order of Renyi's bound.
        mask: the events of the data that count, as in :func:`gaussian_nll`: the same ones for all
            samples.
        reduction: over examples: ``"mean"``, ``"sum"`` or ``"none"``.
        return_parts: return ``(loss, log_weights, weights, ess)``, a named tuple, all but the
            loss detached, ``[K, B]``, ``[K, B]`` and ``[B]``.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        A scalar, or ``[B]`` with ``reduction="none"``, in float32, or float64 if any
        input is; or the named tuple. Differentiable (by the kernels on CUDA once, else any number
        of times).

    Raises:
        ValueError: shapes that do not fit; an unknown ``likelihood``, ``reduction`` or
            ``impl``; ``recon_logvar`` with Bernoulli; an ``alpha`` that is not finite, or for
            which the log ratio's ``gradient`` is biased.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, eq. 8; Li &
    Turner, "Renyi divergence variational inference", NeurIPS 2016, eq. 7.

    >>> logits, x = torch.zeros(5, 4, 3), torch.ones(4, 3)
    >>> iwae_loss(logits, x, torch.zeros(5, 4))
    tensor(2.0794)
    """
    given = recon_logvar, log_scale, log_theta, zero_logits
    alpha, parameters = check_options(likelihood, given, alpha, reduction)
    shape = check_samples_of("recon", recon, x, log_ratio, parameters, likelihood)
    validate.mask(mask, x)
    check_gradient(getattr(log_ratio, "gradient_of_q", "total"), alpha, len(recon))
    recon, x, parameters = masks.behind_mask(mask, recon, x, parameters, likelihood)
    nll = likelihood_calls.negative_log_likelihood(
        shape, recon, x, parameters, likelihood=likelihood, impl=impl
    )
    likelihood_calls.warn_of_data(likelihood, nll)
    bound, weights, ess, log_weights = loss_calls.importance_bound(
        log_ratio, nll, alpha, with_weights=return_parts, impl=impl
    )
    loss = reduced(-bound, reduction)
    return IWAEParts(loss, log_weights.detach(), weights, ess) if return_parts else loss


@overload
def chunked_iwae_loss(
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    num_samples: int,
    *,
    chunk_size: int,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    prior: Mixture | None = None,
    gradient: Gradient = "total",
    antithetic: bool = False,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    alpha: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: Literal[False] = False,
    generator: Generator | None = None,
    impl: Implementation = "auto",
) -> Tensor: ...


@overload
def chunked_iwae_loss(
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    num_samples: int,
    *,
    chunk_size: int,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    prior: Mixture | None = None,
    gradient: Gradient = "total",
    antithetic: bool = False,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    alpha: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: Literal[True],
    generator: Generator | None = None,
    impl: Implementation = "auto",
) -> IWAEParts: ...


@overload
def chunked_iwae_loss(
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    num_samples: int,
    *,
    chunk_size: int,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    prior: Mixture | None = None,
    gradient: Gradient = "total",
    antithetic: bool = False,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    alpha: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: bool,
    generator: Generator | None = None,
    impl: Implementation = "auto",
) -> Tensor | IWAEParts: ...


def chunked_iwae_loss(
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    num_samples: int,
    *,
    chunk_size: int,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    prior: Mixture | None = None,
    gradient: Gradient = "total",
    antithetic: bool = False,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    alpha: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: bool = False,
    generator: Generator | None = None,
    impl: Implementation = "auto",
) -> Tensor | IWAEParts:
    """:func:`iwae_loss` where K samples through the decoder do not fit into memory.

    Draws ``num_samples`` samples, runs the decoder over ``chunk_size`` of them at a time, and
    keeps their log weights alone. Backward draws each chunk again and runs the decoder a second
    time, now for its gradients: the same loss and gradients as in one piece, to rounding,
    in the memory of a chunk, for the time of a second forward pass. On top come 4 bytes per
    sample and example, and 5 kB per chunk for the state of torch's random generator.
    The samples do not depend on ``chunk_size``. Equivalent::

        z, log_ratio = rsample_log_ratio(mu, logvar, num_samples, prior_mu, prior_logvar)
        iwae_loss(decoder(z), x, log_ratio)

    Args:
        decoder: from z ``[k, B, D]`` to recon ``[k, B, ...]``, for any k up to ``chunk_size``,
            each sample on its own (no batch normalisation over samples). It may draw random
            numbers from torch, as dropout does: they are the same the second time. (For that
            the generator's state is kept for each chunk, which a CUDA graph cannot capture.)
        x: the data ``[B, ...]``.
        mu, logvar: of q, ``[B, D]``, or ``[B, ...]`` as in :func:`elbo_loss`.
        num_samples: K.
        chunk_size: samples at a time, even with ``antithetic``.
        prior_mu, prior_logvar, prior, gradient, antithetic, generator: as in
            :func:`rsample_log_ratio`; but the reference too draws the kernels' noise here, at
            2.6 times the cost of ``torch.randn`` on a CPU.
        likelihood, recon_logvar, log_scale, log_theta, alpha, mask, reduction, return_parts, impl:
            as in :func:`iwae_loss`.
        zero_logits: as there, and the same for all samples.

    Returns:
        As :func:`iwae_loss`. With ``gradient="dreg"`` it is differentiable once, and
        ``torch.compile`` breaks the graph there.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`rsample_log_ratio` and
            :func:`iwae_loss`; with K > 1 ``gradient="dreg"`` needs ``alpha=0``, and ``"path"``
            ``alpha=1``.

    Chen et al., "Training deep nets with sublinear memory cost", 2016 (recomputation).

    >>> decoder = torch.nn.Linear(2, 3)
    >>> mu = logvar = torch.zeros(4, 2)
    >>> chunked_iwae_loss(decoder, torch.ones(4, 3), mu, logvar, 1000, chunk_size=100).shape
    torch.Size([])
    """
    if surely_transforming():
        raise RuntimeError(
            "chunked_iwae_loss recomputes its chunks by torch.utils.checkpoint, which does not run "
            "under torch.func: use torch.autograd.grad, or iwae_loss for all samples at once"
        )
    given = recon_logvar, log_scale, log_theta, zero_logits
    alpha, parameters = check_options(likelihood, given, alpha, reduction)
    q = mu, logvar, prior_mu, prior_logvar
    validate.tensors(mu=mu, logvar=logvar)
    event_dims = max(mu.dim() - 1, logvar.dim() - 1, 1)
    shape, num_samples = check_samples(*q, num_samples, gradient, antithetic, event_dims)
    if prior is not None:
        check_prior(prior, *q, event_dims)
    chunk_size = validate.count("chunk_size", chunk_size)
    if not callable(decoder):
        raise TypeError(f"decoder must be callable, got {type(decoder).__name__}")
    if antithetic and chunk_size % 2 and chunk_size < num_samples:
        raise ValueError(f"antithetic sampling needs an even chunk_size, got {chunk_size}")
    check_gradient(gradient, alpha, num_samples)
    of_latents, order = shape, None
    if event_dims > 1:
        shape, order, (mu, logvar, prior_mu, prior_logvar) = layouts.flatten(shape, event_dims, *q)
    mu, logvar = mu.expand(shape), logvar.expand(shape)
    seed = noise.draw_seed(mu.device, generator)

    def log_weights_of(first_sample, size, mu, logvar):
        z, log_ratio = sample_calls.samples_of_stream(
            shape,
            mu,
            logvar,
            prior_mu,
            prior_logvar,
            size,
            seed=seed,
            first_sample=first_sample,
            gradient=gradient,
            antithetic=antithetic,
            impl=impl,
            improper_prior=prior is not None,
        )
        recon = decoder(layouts.restore(z, of_latents, order, size))
        values = check_samples_of("decoder(z)", recon, x, log_ratio, parameters, likelihood)
        validate.mask(mask, x)
        if prior is not None:
            log_ratio = log_ratio + mixture_calls.log_prior(z, prior, impl=impl)
        return log_ratio - likelihood_calls.negative_log_likelihood(
            values,
            *masks.behind_mask(mask, recon, x, parameters, likelihood),
            likelihood=likelihood,
            impl=impl,
        )

    weights: Any = None

    def times_share(first_sample, size):
        """DReG's second factor is v_k over all samples: the chunk has it over its own."""

        def hook(gradient):
            if torch.is_grad_enabled():
                raise RuntimeError("gradient='dreg' in chunks has first derivatives only")
            share = weights[first_sample : first_sample + size].sum(0).unsqueeze(-1)
            return (gradient * share).to(gradient.dtype)

        return hook

    chunks = []
    for first_sample in range(0, num_samples, chunk_size):
        size = min(chunk_size, num_samples - first_sample)
        own = [mu, logvar]
        if gradient == "dreg":
            own = [t.view_as(t) for t in own]
            for tensor in own:
                if tensor.requires_grad:
                    tensor.register_hook(times_share(first_sample, size))
        chunks.append(checkpoint(log_weights_of, first_sample, size, *own, use_reentrant=False))
    log_weights = torch.cat(chunks)
    bound, weights, ess = loss_calls.importance_weights(log_weights, alpha, impl=impl)
    loss = reduced(-bound, reduction)
    return IWAEParts(loss, log_weights.detach(), weights, ess) if return_parts else loss


def check_gradient(gradient, alpha, num_samples):
    """Whether ``gradient`` is that of the bound of order ``alpha``: of one sample all are."""
    alone = {"path": 1, "dreg": 0}.get(gradient, alpha)
    if alpha != alone and num_samples > 1:
        right = {0: "'dreg' or 'total'", 1: "'path' or 'total'"}.get(alpha, "'total'")
        raise ValueError(
            f"gradient={gradient!r} is biased at alpha={alpha} with {num_samples} samples, it "
            f"needs alpha={alone}; for this alpha draw with gradient={right}"
        )


def check_options(likelihood, given, alpha, reduction):
    """Returns ``alpha``, and those of the ``given`` parameters that the likelihood has."""
    validate.choice("likelihood", likelihood, NAMES)
    validate.choice("reduction", reduction, REDUCTIONS)
    names = "recon_logvar", "log_scale", "log_theta", "zero_logits"
    parameters = validate.parameters(likelihood, **dict(zip(names, given, strict=True)))
    return validate.number("alpha", alpha, -validate.FINITE, validate.FINITE), parameters


def check_samples_of(name, recon, x, log_ratio, parameters, likelihood):
    """For x [B, ...] recon, which goes by ``name``, must be [K, B, ...] and log_ratio [K, B].

    Of a categorical likelihood recon is [K, B, ..., C].

    Returns [K, B].
    """
    validate.tensors(**{name: recon, "log_ratio": log_ratio})
    record = LIKELIHOODS[likelihood]
    validate.data(record, x, "x")
    classes = ", C" if record.is_categorical else ""
    events = recon.shape[1:-1] if classes else recon.shape[1:]
    fits = recon.dim() > 1 and events == x.shape and log_ratio.shape == recon.shape[:2]
    if not fits or len(recon) == 0:
        shapes = validate.describe({name: recon, "x": x, "log_ratio": log_ratio})
        hint = "; event_dims of rsample_log_ratio is too small" if log_ratio.dim() > 2 else ""
        raise ValueError(
            f"expected {name} [K, B, ...{classes}], x [B, ...] and log_ratio [K, B], K >= 1, "
            f"got {shapes}{hint}"
        )
    return validate.likelihood(likelihood, recon, x, parameters, name=name)


def reduced(values, reduction):
    return values if reduction == "none" else getattr(values, reduction)()
