"""The loss: -ELBO with the analytic KL, reduced over examples."""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .dispatch import choice, gaussian_calls, likelihood_calls, loss_calls, masks, validate
from .dispatch.likelihoods import NAMES, LikelihoodName
from .dispatch.types import REDUCTIONS, Implementation, Reduction


class ELBOParts(NamedTuple):
    """The loss and its two terms under the same reduction: loss = nll + beta * kl."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


@overload
def elbo_loss(
    recon: Tensor,
    x: Tensor,
    mu: Tensor | None = None,
    logvar: Tensor | None = None,
    *,
    kl: Tensor | None = None,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    beta: float | Tensor = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: Literal[False] = False,
    impl: Implementation = "auto",
) -> Tensor: ...


@overload
def elbo_loss(
    recon: Tensor,
    x: Tensor,
    mu: Tensor | None = None,
    logvar: Tensor | None = None,
    *,
    kl: Tensor | None = None,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    beta: float | Tensor = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: Literal[True],
    impl: Implementation = "auto",
) -> ELBOParts: ...


@overload
def elbo_loss(
    recon: Tensor,
    x: Tensor,
    mu: Tensor | None = None,
    logvar: Tensor | None = None,
    *,
    kl: Tensor | None = None,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    beta: float | Tensor = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: bool,
    impl: Implementation = "auto",
) -> Tensor | ELBOParts: ...


def elbo_loss(
    recon: Tensor,
    x: Tensor,
    mu: Tensor | None = None,
    logvar: Tensor | None = None,
    *,
    kl: Tensor | None = None,
    likelihood: LikelihoodName = "bernoulli",
    recon_logvar: float | Tensor = 0.0,
    log_scale: float | Tensor = 0.0,
    log_theta: float | Tensor = 0.0,
    zero_logits: Tensor | None = None,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    beta: float | Tensor = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    return_parts: bool = False,
    impl: Implementation = "auto",
) -> Tensor | ELBOParts:
    r"""The VAE loss: the negative evidence lower bound of each example, in nats.

    .. math:: -\log p(x \mid z) + \beta \, KL(q(z \mid x) \| p(z)), \qquad z \sim q(z \mid x)

    summed over every event and latent dimension and reduced over examples only: with
    beta = 1, the mean is minus a lower bound of the mean log-likelihood.

    Equivalent PyTorch, for the Bernoulli likelihood and the standard prior::

        nll = F.binary_cross_entropy_with_logits(recon, x, reduction="none").flatten(1).sum(1)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)
        (nll + beta * kl).mean()

    With ``reduction`` "mean" or "sum" the kernels compute the gradient of the likelihood in the
    forward pass already (except in float16 and under ``torch.compile``).

    Args:
        recon: the decoder's output ``[B, ...]``: logits for ``"bernoulli"``, means for
            ``"gaussian"``, medians for ``"laplace"``, log rates for ``"poisson"``, log means for
            ``"negative_binomial"``, logits over all events for ``"multinomial"``, and
            ``[B, ..., C]`` logits of classes for ``"categorical"``; or ``[K, B, ...]``, over whose
            K samples the likelihood's term is averaged.
        x: the data ``[B, ...]``, not copied for the samples: floating or bool for ``"bernoulli"``,
            integer for ``"categorical"``, else floating or integer.
        mu, logvar: of q, ``[B, ...]``; the KL is summed over all but the first dimension.
        kl: instead of them, the KL of each example ``[B]``, as :func:`rsample_kl` returns it: of
            latents ``[B, C, H, W]`` with ``event_dims=3``.
        likelihood: ``"bernoulli"``, ``"gaussian"``, ``"laplace"``, ``"categorical"``,
            ``"poisson"``, ``"negative_binomial"`` or ``"multinomial"``: the function of that name
            says more.
        recon_logvar: log variance of a Gaussian decoder, as in :func:`gaussian_nll`.
        log_scale: log scale of a Laplace decoder, as in :func:`laplace_nll`.
        log_theta, zero_logits: log inverse dispersion of a negative binomial decoder, and where it
            is zero-inflated the logits of that, as in :func:`negative_binomial_nll`.
        prior_mu, prior_logvar: of the prior, with ``mu, logvar`` only; None means 0.
        beta: the weight of the KL (Higgins et al. 2017); the ELBO's is 1. A number, or a scalar
            tensor on the device of ``x``, scheduled or learned.
        mask: the events of the data that count, as in :func:`gaussian_nll`; the mean is still one
            over examples.
        reduction: over examples: ``"mean"``, ``"sum"`` or ``"none"``.
        return_parts: return ``(loss, nll, kl)``, a named tuple, each reduced alike.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        A scalar, or ``[B]`` with ``reduction="none"``, in float32, or float64 if any
        input is; or the named tuple. Differentiable (by the kernels on CUDA once, else any number
        of times).

    Raises:
        ValueError: not exactly one of ``kl`` and ``mu, logvar``; shapes that do not fit; an
            unknown ``likelihood``, ``reduction`` or ``impl``; an argument that the others
            make meaningless (``recon_logvar`` with Bernoulli, a prior with ``kl``).
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, eq. 10.

    >>> logits, x = torch.zeros(4, 3), torch.ones(4, 3)
    >>> elbo_loss(logits, x, mu=torch.ones(4, 2), logvar=torch.zeros(4, 2))
    tensor(3.0794)
    """
    validate.choice("likelihood", likelihood, NAMES)
    validate.choice("reduction", reduction, REDUCTIONS)
    beta = validate.weight("beta", beta, x)
    parameters = validate.parameters(
        likelihood,
        recon_logvar=recon_logvar,
        log_scale=log_scale,
        log_theta=log_theta,
        zero_logits=zero_logits,
    )
    shape = validate.likelihood(likelihood, recon, x, parameters)
    if mask is not None:
        validate.mask(mask, x)
        recon, x, parameters = masks.behind_mask(mask, recon, x, parameters, likelihood)
    kl = _kl_of_examples(x, kl, mu, logvar, prior_mu, prior_logvar, impl)
    loss, nll, kl = loss_calls.elbo_loss(
        shape,
        recon,
        x,
        parameters,
        kl,
        likelihood=likelihood,
        beta=beta,
        reduction=reduction,
        parts=return_parts,
        impl=impl,
    )
    likelihood_calls.warn_of_data(likelihood, nll)
    return ELBOParts(loss, nll, kl) if return_parts else loss


def _kl_of_examples(x, kl, mu, logvar, prior_mu, prior_logvar, impl):
    """The KL of each example [B], given or computed: exactly one of the two."""
    if (kl is None) == (mu is None and logvar is None) or (mu is None) != (logvar is None):
        raise ValueError("expected exactly one of kl and (mu, logvar)")
    if kl is not None:
        if prior_mu is not None or prior_logvar is not None:
            raise ValueError("prior_mu and prior_logvar go with mu and logvar, but kl is given")
        validate.tensors(kl=kl)
        validate.same_device(x=x, kl=kl)
        if kl.shape != x.shape[:1]:
            shapes = validate.describe({"kl": kl, "x": x})
            hint = "; event_dims of rsample_kl is too small" if kl.dim() > 1 else ""
            raise ValueError(f"expected kl [B] for x [B, ...], got {shapes}{hint}")
        return kl
    named = {"mu": mu, "logvar": logvar, "prior_mu": prior_mu, "prior_logvar": prior_logvar}
    validate.tensors(**named)
    validate.same_device(x=x, mu=mu)
    shape = validate.broadcast(**named)
    if len(shape) < 2 or 0 in shape[1:] or shape[0] != x.shape[0]:
        shapes = validate.describe({"mu": mu, "logvar": logvar, "x": x})
        raise ValueError(
            f"expected mu and logvar [B, ...], not empty, for x [B, ...], got {shapes}"
        )
    return gaussian_calls.gaussian_kl(shape, *named.values(), event_dims=len(shape) - 1, impl=impl)


class ELBOLoss(torch.nn.Module):
    """:func:`elbo_loss` as a module; its keyword arguments are fixed at construction.

    ``recon_logvar``, ``log_scale``, ``log_theta`` and ``beta`` may be a ``torch.nn.Parameter`` (a
    learned sigma: the module then has it among its parameters) or a tensor (a buffer). ``beta`` is
    an attribute that a schedule may assign: a number or, where it began as a tensor, a tensor.

    >>> loss = ELBOLoss(likelihood="gaussian", beta=0.5)
    >>> loss(torch.zeros(4, 3), torch.ones(4, 3), torch.ones(4, 2), torch.zeros(4, 2))
    tensor(4.7568)
    """

    beta: Any
    recon_logvar: Any
    log_scale: Any
    log_theta: Any

    def __init__(
        self,
        *,
        likelihood: LikelihoodName = "bernoulli",
        recon_logvar: float | Tensor = 0.0,
        log_scale: float | Tensor = 0.0,
        log_theta: float | Tensor = 0.0,
        beta: float | Tensor = 1.0,
        reduction: Reduction = "mean",
        return_parts: bool = False,
        impl: Implementation = "auto",
    ):
        super().__init__()
        validate.choice("likelihood", likelihood, NAMES)
        validate.choice("reduction", reduction, REDUCTIONS)
        choice.check_impl(impl)
        self.likelihood = likelihood
        self.reduction = reduction
        self.return_parts = return_parts
        self.impl = impl
        self._keep("recon_logvar", recon_logvar)
        self._keep("log_scale", log_scale)
        self._keep("log_theta", log_theta)
        self._keep("beta", validate.weight("beta", beta, beta))

    def _keep(self, name, value):
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)

    def forward(
        self,
        recon: Tensor,
        x: Tensor,
        mu: Tensor | None = None,
        logvar: Tensor | None = None,
        *,
        kl: Tensor | None = None,
        prior_mu: Tensor | None = None,
        prior_logvar: Tensor | None = None,
        zero_logits: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor | ELBOParts:
        """As :func:`elbo_loss`, with the arguments fixed at construction left out."""
        return elbo_loss(
            recon,
            x,
            mu,
            logvar,
            kl=kl,
            prior_mu=prior_mu,
            prior_logvar=prior_logvar,
            mask=mask,
            likelihood=self.likelihood,
            recon_logvar=self.recon_logvar,
            log_scale=self.log_scale,
            log_theta=self.log_theta,
            zero_logits=zero_logits,
            beta=self.beta,
            reduction=self.reduction,
            return_parts=self.return_parts,
            impl=self.impl,
        )

    def extra_repr(self):
        names = ("likelihood", "beta", "reduction", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
