"""The beta of a loss that has its own reductions and weights."""

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from ..dispatch import validate
from .antixk import AntixKBetaTCVAELoss, AntixKBetaVAELoss, antixk_vanilla_vae_loss
from .bolts import bolts_vae_loss
from .disvae import DisvaeBtcvaeLoss
from .pythae import (
    pythae_beta_tcvae_loss,
    pythae_beta_vae_loss,
    pythae_vae_loss,
    pythae_vamp_loss,
)
from .pytorch_examples import pytorch_examples_vae_loss
from .rtqichen import rtqichen_tcvae_elbo
from .scvi import scvi_kl_local

ReconTerm: TypeAlias = Literal["bernoulli", "gaussian", "mse"]
TermReduction: TypeAlias = Literal["sum", "batchmean", "mean"]
RECON_TERMS = ("bernoulli", "gaussian", "mse")
TERM_REDUCTIONS = ("sum", "batchmean", "mean")


def effective_beta(
    *,
    likelihood: ReconTerm,
    recon_reduction: TermReduction = "batchmean",
    kl_reduction: TermReduction = "batchmean",
    pixels: int | None = None,
    latents: int | None = None,
    batch: int | None = None,
    recon_weight: float = 1.0,
    kl_weight: float = 1.0,
    variance: float = 1.0,
) -> float:
    r"""The beta of the ELBO that a loss optimises, whatever it averages over.

    A loss :math:`w_r R + w_k K` has a reconstruction term R and a KL term K, each reduced in its
    own way. Up to a factor, which acts like a learning rate, its gradient is that of :math:`-\log
    p(x|z) + \beta\,KL` with

    .. math:: \beta = \frac{w_k / n_k}{s\, w_r / n_r}

    where n divides a term after it is summed over everything: 1 for ``"sum"``, B for
    ``"batchmean"``, and B times pixels or latents for ``"mean"``. s converts R to nats: it is 1 for
    a negative log-likelihood, and :math:`2\sigma^2` for the squared error, whose negative
    log-likelihood is :math:`(x - r)^2 / 2\sigma^2`. A squared error does not say what
    :math:`\sigma^2` is. Beta at variance 1 is also the variance at which the same loss has beta =
    1.

    Equivalent PyTorch, for the mean squared error and a KL summed over latents::

        F.mse_loss(recon, x) + kl_weight * kl.sum(-1).mean()  # has the gradient of
        (2 / pixels) * (0.5 * ((x - recon) ** 2).sum(-1) + beta * kl.sum(-1)).mean()

    Args:
        likelihood: what R is: ``"bernoulli"`` or ``"gaussian"`` for a negative log-likelihood in
            nats (binary cross-entropy, ``F.gaussian_nll_loss``, also scvi-tools' counts), ``"mse"``
            for the squared error without a factor.
        recon_reduction, kl_reduction: ``"sum"``: over everything, the batch included;
            ``"batchmean"``: a sum over each example, averaged over examples; ``"mean"``: over
            everything.
        pixels: elements of an example, channels included; needed if the reconstruction is a
            ``"mean"``.
        latents: dimensions of z; needed if the KL is a ``"mean"``.
        batch: examples of a batch; needed if only one of the terms is a ``"sum"``.
        recon_weight, kl_weight: the factors :math:`w_r` and :math:`w_k`.
        variance: :math:`\sigma^2` of the decoder that a squared error stands for.

    Returns:
        beta, a float.

    Raises:
        ValueError: an unknown name; a count that is needed and missing; a weight of R or a
            variance that is not positive; a variance with another likelihood than ``"mse"``.
        TypeError: a count that is no int or a weight that is no number.

    Higgins et al., "beta-VAE", ICLR 2017, eq. 4, and its appendix A.4 on normalised beta.

    >>> effective_beta(likelihood="mse", recon_reduction="mean", pixels=12288, kl_weight=0.00025)
    1.536
    """
    validate.choice("likelihood", likelihood, RECON_TERMS)
    validate.choice("recon_reduction", recon_reduction, TERM_REDUCTIONS)
    validate.choice("kl_reduction", kl_reduction, TERM_REDUCTIONS)
    recon_weight = validate.number("recon_weight", recon_weight, 0.0, validate.FINITE)
    kl_weight = validate.number("kl_weight", kl_weight, -validate.FINITE, validate.FINITE)
    variance = validate.number("variance", variance, 0.0, validate.FINITE)
    if recon_weight == 0.0 or variance == 0.0:
        raise ValueError("recon_weight and variance must be positive: beta would be infinite")
    if likelihood != "mse" and variance != 1.0:
        raise ValueError(f"variance is an argument of likelihood='mse', got {likelihood!r}")
    unit = 2.0 * variance if likelihood == "mse" else 1.0
    if (recon_reduction == "sum") == (kl_reduction == "sum"):
        batch = 1  # divides both terms or neither
    recon_terms = _divisor("recon_reduction", recon_reduction, "pixels", pixels, batch)
    kl_terms = _divisor("kl_reduction", kl_reduction, "latents", latents, batch)
    return kl_weight * recon_terms / (kl_terms * recon_weight * unit)


def effective_beta_of(
    loss: str,
    *,
    pixels: int | None = None,
    latents: int | None = None,
    variance: float = 1.0,
    **options: Any,
) -> float:
    r"""The beta of a VAE's loss in :mod:`fused_elbo.compat`, by its name, defaults included.

    :func:`effective_beta` of the loss's reductions and weights, with

    .. math:: \beta = \frac{w_k / n_k}{s\, w_r / n_r}

    as there; equivalent PyTorch is in the docstring of each loss.

    Args:
        loss: ``"pytorch_examples_vae_loss"``, ``"pythae_vae_loss"``, ``"pythae_beta_vae_loss"``,
            ``"antixk_vanilla_vae_loss"``, ``"AntixKBetaVAELoss"`` (type ``"B"``: above its
            capacity; below it the negative), ``"bolts_vae_loss"``, ``"scvi_kl_local"`` or
            ``"pythae_vamp_loss"``. For ``"rtqichen_tcvae_elbo"``, ``"pythae_beta_tcvae_loss"``,
            ``"DisvaeBtcvaeLoss"`` and ``"AntixKBetaTCVAELoss"`` the result is the weight of the
            total correlation; the ratios to the other two weights are those of the loss.
        pixels, latents: as in :func:`effective_beta`: needed where the loss averages over them.
        variance: of the decoder that a squared error stands for.
        options: what the loss takes: ``beta``, ``gamma``, ``loss_type``, ``kl_coeff``,
            ``kl_weight``, ``rec_dist``, ``reconstruction_loss``. Those left out have the loss's
            defaults; ``M_N`` has none.

    Returns:
        beta, a float.

    Raises:
        ValueError: an unknown loss; otherwise as :func:`effective_beta`.
        TypeError: an option that the loss does not take, or ``M_N`` missing.

    Higgins et al., "beta-VAE", ICLR 2017, eq. 4.

    >>> effective_beta_of("bolts_vae_loss", pixels=3072, latents=256)
    0.6000000000000001
    """
    losses = {function.__name__: function for function in LOSSES}
    validate.choice("loss", loss, tuple(losses))
    terms = LOSSES[losses[loss]]
    defaults = inspect.signature(losses[loss]).parameters
    takes = tuple(inspect.signature(terms).parameters)
    for name in options:
        if name not in takes:
            raise TypeError(f"{loss} has no option {name} that beta depends on, but {takes}")
    for name in takes:
        default = defaults[name].default if name in defaults else inspect.Parameter.empty
        if name not in options and default is inspect.Parameter.empty:
            raise TypeError(f"{loss} needs {name}: it has no default")
        options.setdefault(name, default)
    described = terms(**options)
    if described["likelihood"] == "mse":
        described["variance"] = variance
    elif variance != 1.0:
        raise ValueError(
            f"variance applies to squared-error losses only; {loss} with {options} is not one"
        )
    return effective_beta(pixels=pixels, latents=latents, **described)


def _pythae(reconstruction_loss, beta=1.0):
    validate.choice("reconstruction_loss", reconstruction_loss, ("mse", "bce"))
    if reconstruction_loss == "bce":
        return {"likelihood": "bernoulli", "kl_weight": beta}
    return {"likelihood": "mse", "recon_weight": 0.5, "kl_weight": beta}


def _mean_squares(kl_weight, kl_reduction="batchmean"):
    weights = {"kl_weight": kl_weight, "kl_reduction": kl_reduction}
    return {"likelihood": "mse", "recon_reduction": "mean", **weights}


def _antixk_beta(beta, gamma, loss_type, M_N):
    validate.choice("loss_type", loss_type, ("H", "B"))
    return _mean_squares((beta if loss_type == "H" else gamma) * M_N)


def _disvae(rec_dist, beta):
    validate.choice("rec_dist", rec_dist, ("bernoulli", "gaussian"))
    if rec_dist == "bernoulli":
        return {"likelihood": "bernoulli", "kl_weight": beta}
    return {"likelihood": "mse", "recon_weight": 255.0, "kl_weight": beta}


# The arguments of effective_beta for each loss, as a function of the loss's own options.
LOSSES: dict[Callable[..., Any], Callable[..., dict[str, Any]]] = {
    pytorch_examples_vae_loss: lambda: {
        "likelihood": "bernoulli",
        "recon_reduction": "sum",
        "kl_reduction": "sum",
    },
    pythae_vae_loss: lambda reconstruction_loss: _pythae(reconstruction_loss),
    pythae_beta_vae_loss: _pythae,
    antixk_vanilla_vae_loss: lambda M_N: _mean_squares(M_N),
    AntixKBetaVAELoss: _antixk_beta,
    bolts_vae_loss: lambda kl_coeff: _mean_squares(kl_coeff, "mean"),
    scvi_kl_local: lambda kl_weight: {"likelihood": "gaussian", "kl_weight": kl_weight},
    pythae_vamp_loss: lambda reconstruction_loss: _pythae(reconstruction_loss),
    rtqichen_tcvae_elbo: lambda beta: {"likelihood": "bernoulli", "kl_weight": beta},
    pythae_beta_tcvae_loss: _pythae,
    DisvaeBtcvaeLoss: _disvae,
    AntixKBetaTCVAELoss: lambda beta: {"likelihood": "mse", "kl_weight": beta},
}


def _divisor(name, reduction, count_name, elements, batch):
    """The number that the sum over everything is divided by."""
    if reduction == "sum":
        return 1
    if batch is None:
        raise ValueError(f"batch is needed: {name} is {reduction!r} and the other term is a sum")
    batch = validate.count("batch", batch)
    if reduction == "batchmean":
        return batch
    if elements is None:
        raise ValueError(f"{count_name} is needed for {name}='mean'")
    return batch * validate.count(count_name, elements)
