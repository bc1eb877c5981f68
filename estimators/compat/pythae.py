"""The losses of pythae's VAE, BetaVAE, IWAE, BetaTCVAE and VAMP."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import choice, likelihood_calls, validate
from ..dispatch.types import Implementation
from ..functional import gaussian_log_prob
from ..importance import importance_weights
from ..likelihoods import gaussian_nll
from ..mixtures import kl_decomposition, mixture_log_prob
from .terms import (
    bernoulli_cross_entropy,
    check_batch,
    check_latents,
    mean_kl,
    mean_squared_error,
    terms_of_columns,
    weighted,
)
from .torch_nn import UNIT_NORMALISER, fits_kernel, in_torch_dtype


def pythae_vae_loss(
    recon_x: Tensor,
    x: Tensor,
    mu: Tensor,
    log_var: Tensor,
    z: Tensor | None = None,
    *,
    reconstruction_loss: str = "mse",
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""``VAE.loss_function`` of pythae: means over the batch of per-example sums, beta = 1.

    .. math:: \frac1B \sum_b \Big[\tfrac12 \sum_i (r_{bi} - x_{bi})^2 + KL_b\Big]

    without the Gaussian's constant (``"mse"``, variance 1), or binary cross-entropy on
    probabilities for the squares (``"bce"``). Equivalent PyTorch::

        recon = 0.5 * ((recon_x - x) ** 2).flatten(1).sum(1)
        kld = -0.5 * (1 + log_var - mu**2 - log_var.exp()).sum(-1)
        (recon + kld).mean(), recon.mean(), kld.mean()

    The one line, for a model of theirs: ``model.loss_function = pythae_vae_loss``, or
    ``functools.partial(pythae_vae_loss, reconstruction_loss="bce")``.

    Args:
        recon_x, x: ``[B, ...]`` of as many elements.
        mu, log_var: of q, ``[B, D]``; ``log_var`` is the log variance.
        z: not used, as in the original.
        reconstruction_loss: what pythae has in the model's configuration.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``(loss, recon_loss, kld)``, scalars, nats (``"mse"``: up to a constant), in the inputs'
        dtype.

    Raises:
        ValueError: an unknown ``reconstruction_loss``; shapes that do not fit.
        RuntimeError: ``"bce"`` with probabilities outside [0, 1] (where a kernel runs on CUDA,
            the loss is NaN instead).

    Chadebec et al., "Pythae", NeurIPS 2022; Kingma & Welling 2014.

    >>> recon_x, x = torch.zeros(4, 6), torch.ones(4, 6)
    >>> pythae_vae_loss(recon_x, x, torch.ones(4, 2), torch.zeros(4, 2))
    (tensor(4.), tensor(3.), tensor(1.))
    """
    return pythae_beta_vae_loss(
        recon_x, x, mu, log_var, z, beta=1.0, reconstruction_loss=reconstruction_loss, impl=impl
    )


def pythae_beta_vae_loss(
    recon_x: Tensor,
    x: Tensor,
    mu: Tensor,
    log_var: Tensor,
    z: Tensor | None = None,
    *,
    beta: float = 1.0,
    reconstruction_loss: str = "mse",
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""``BetaVAE.loss_function`` of pythae: :func:`pythae_vae_loss` with a weight on the KL.

    .. math:: \frac1B \sum_b \big[R_b + \beta\, KL_b\big]

    Equivalent PyTorch, with the terms of :func:`pythae_vae_loss`::

        (recon + beta * kld).mean(), recon.mean(), kld.mean()

    The one line: ``model.loss_function = functools.partial(pythae_beta_vae_loss, beta=4.0)``.

    Args:
        beta: what pythae has in the model's configuration; a true beta, of the ELBO's terms.
        recon_x, x, mu, log_var, z, reconstruction_loss, impl: as in :func:`pythae_vae_loss`.

    Returns:
        ``(loss, recon_loss, kld)``; ``kld`` without beta.

    Raises:
        ValueError, RuntimeError: as :func:`pythae_vae_loss`.

    Higgins et al., "beta-VAE", ICLR 2017, eq. 4; Chadebec et al. 2022.

    >>> recon_x, x = torch.zeros(4, 6), torch.ones(4, 6)
    >>> pythae_beta_vae_loss(recon_x, x, torch.ones(4, 2), torch.zeros(4, 2), beta=4.0)
    (tensor(7.), tensor(3.), tensor(1.))
    """
    recon_loss = reconstruction(recon_x, x, reconstruction_loss, impl)
    kld = mean_kl(x, mu, log_var, impl)
    return recon_loss + beta * kld, recon_loss, kld


def pythae_iwae_loss(
    recon_x: Tensor,
    x: Tensor,
    mu: Tensor,
    log_var: Tensor,
    z: Tensor,
    *,
    reconstruction_loss: str = "mse",
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""``IWAE.loss_function`` of pythae (0.1.2): importance weights over K samples of z.

    .. math:: -\frac1B \sum_b \sum_k \tilde w_{bk} \log w_{bk}, \qquad
              \log w_{bk} = -R_{bk} + \log p(z_{bk}) - \log q(z_{bk} \mid x_b)

    with the normalised weights detached. Its gradient is that of IWAE's bound. Its value is **no
    bound**: its negative is above IWAE's bound where the weights differ, and may exceed log p(x).
    :func:`fused_elbo.iwae_loss` has the bound. R is that of :func:`pythae_vae_loss`. Equivalent
    PyTorch::

        recon = 0.5 * ((recon_x - x.flatten(1).unsqueeze(1)) ** 2).sum(-1)
        kld = (Normal(mu, (0.5 * log_var).exp()).log_prob(z) - Normal(0, 1).log_prob(z)).sum(-1)
        log_w = -(recon + kld)
        loss = -(log_w.detach().softmax(1) * log_w).sum(1).mean()
        loss, recon.mean(), kld.mean()

    The one line: ``model.loss_function = pythae_iwae_loss``.

    Args:
        recon_x: ``[B, K, P]``, K samples of each example; x: ``[B, ...]`` of P elements each.
        mu, log_var: of q, ``[B, K, D]``, repeated for the samples.
        z: the samples, ``[B, K, D]``.
        reconstruction_loss: what pythae has in the model's configuration.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``(loss, recon_loss, kld)``, scalars, nats (``"mse"``: up to a constant), in the inputs'
        dtype; the last two are plain means over samples and examples.

    Raises:
        ValueError: an unknown ``reconstruction_loss``; shapes that do not fit.
        RuntimeError: ``"bce"`` with probabilities outside [0, 1] (where a kernel runs on CUDA,
            the loss is NaN instead).

    Chadebec et al., "Pythae", NeurIPS 2022; Burda et al., "Importance weighted autoencoders",
    ICLR 2016, eq. 14.

    >>> recon_x, x, z = torch.zeros(4, 3, 6), torch.ones(4, 6), torch.zeros(4, 3, 2)
    >>> pythae_iwae_loss(recon_x, x, torch.ones(4, 3, 2), torch.zeros(4, 3, 2), z)
    (tensor(2.), tensor(3.), tensor(-1.))
    """
    validate.choice("reconstruction_loss", reconstruction_loss, ("mse", "bce"))
    x = x.flatten(1)
    fits = recon_x.dim() == 3 and recon_x[:, 0].shape == x.shape
    if not fits or not mu.shape == log_var.shape == z.shape or mu.shape[:2] != recon_x.shape[:2]:
        named = {"recon_x": recon_x, "x": x, "mu": mu, "log_var": log_var, "z": z}
        raise ValueError(
            "expected recon_x [B, K, P], x [B, ...] of P elements, and mu, log_var and z "
            f"[B, K, D], got {validate.describe(named)}"
        )
    samples = recon_x.transpose(0, 1)
    if reconstruction_loss == "mse":
        recon = gaussian_nll(samples, x, UNIT_NORMALISER, impl=impl) / (2 * math.pi)
    else:
        recon = _cross_entropies(samples, x, impl)
    standard = mu.new_zeros(mu.shape[-1])
    kld = gaussian_log_prob(z, mu, log_var, impl=impl)
    kld = (kld - gaussian_log_prob(z, standard, standard, impl=impl)).T
    log_weights = -(recon + kld)
    weights = importance_weights(log_weights.detach(), impl=impl).weights
    loss = -(weights * log_weights).sum(0).mean()
    return tuple(in_torch_dtype(part, x) for part in (loss, recon.mean(), kld.mean()))


def pythae_beta_tcvae_loss(
    recon_x: Tensor,
    x: Tensor,
    mu: Tensor,
    log_var: Tensor,
    z: Tensor,
    dataset_size: int,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    use_mss: bool = True,
    reconstruction_loss: str = "mse",
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""``BetaTCVAE.loss_function`` of pythae (0.1.2): means over the batch of weighted terms.

    .. math:: \frac1B \sum_b \big[R_b + \alpha\, \mathrm{MI}_b + \beta\, \mathrm{TC}_b
              + \gamma\, \mathrm{DKL}_b\big]

    with R of :func:`pythae_vae_loss`. By default, ``use_mss``, it has the weights of
    rtqichen/beta-tcvae, which are in columns: they estimate q(z) as if the batch were the whole
    data set. :func:`rtqichen_tcvae_elbo` names the report; pythae's repository has none that we
    found. On the case of docs/drop-ins.md, whose total correlation is 6.4, they give 10.6. With
    ``use_mss=False`` the estimate is ``"weighted"``, about q(z) / N, and gives 99.7. Equivalent
    PyTorch, for ``use_mss=False``::

        mi, tc, dkl = kl_decomposition(z, mu, log_var, dataset_size, estimator="weighted")
        recon = 0.5 * ((recon_x - x) ** 2).flatten(1).sum(1)
        kld = alpha * mi + beta * tc + gamma * dkl
        (recon + kld).mean(), recon.mean(), kld.mean()

    The one line: ``model.loss_function = functools.partial(pythae_beta_tcvae_loss, beta=6.0)``.

    Args:
        recon_x, x: ``[B, ...]`` of as many elements.
        mu, log_var, z: of q, and a sample of each, ``[B, D]``; ``log_var`` is the log variance.
        dataset_size: N, at least B.
        alpha, beta, gamma, use_mss, reconstruction_loss: of the model's configuration.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``(loss, recon_loss, kld)``, scalars, nats (``"mse"``: up to a constant), in the inputs'
        dtype; ``kld`` with its three weights.

    Raises:
        ValueError: an unknown ``reconstruction_loss``; shapes that do not fit; a ``dataset_size``
            smaller than the batch; ``use_mss`` with a batch of one.
        RuntimeError: ``"bce"`` with probabilities outside [0, 1] (where a kernel runs on CUDA,
            the loss is NaN instead).

    Chen et al. 2018, eq. 4; Chadebec et al., "Pythae", NeurIPS 2022.

    >>> recon_x, x, z = torch.zeros(4, 6), torch.ones(4, 6), torch.zeros(4, 2)
    >>> pythae_beta_tcvae_loss(recon_x, x, torch.ones(4, 2), z, z, 4)
    (tensor(2.), tensor(3.), tensor(-1.))
    """
    recon_loss = reconstruction(recon_x, x, reconstruction_loss, impl)
    check_latents(x, mu=mu, log_var=log_var, z=z)
    check_batch(len(z), dataset_size, use_mss, "use_mss")
    if use_mss:
        terms = terms_of_columns(z, mu, log_var, dataset_size, impl=impl)
    else:
        terms = kl_decomposition(z, mu, log_var, dataset_size, estimator="weighted", impl=impl)
    kld = in_torch_dtype(weighted(terms, (alpha, beta, gamma)).mean(), mu)
    return recon_loss + kld, recon_loss, kld


def pythae_vamp_loss(
    recon_x: Tensor,
    x: Tensor,
    mu: Tensor,
    log_var: Tensor,
    z: Tensor,
    epoch: int,
    *,
    prior_mu: Tensor,
    prior_log_var: Tensor,
    linear_scheduling_steps: int = 0,
    training: bool = True,
    reconstruction_loss: str = "mse",
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""``VAMP.loss_function`` of pythae (0.1.2): the KL to a VampPrior, at one sample.

    .. math:: \frac1B \sum_b \Big[R_b + \beta \Big(\log q(z_b \mid x_b)
              - \log \frac1C \sum_c N(z_b; \mu_c, e^{\ell_c})\Big)\Big]

    with R of :func:`pythae_vae_loss`, C components, and beta rising to 1 over
    ``linear_scheduling_steps`` epochs of training. Its KL is right: both densities lack the same
    constant, which cancels. Equivalent PyTorch::

        recon = 0.5 * ((recon_x - x) ** 2).flatten(1).sum(1)
        kld = Normal(mu, (0.5 * log_var).exp()).log_prob(z).sum(-1)
        kld = kld - mixture_log_prob(z, prior_mu, prior_log_var)
        (recon + beta * kld).mean(), recon.mean(), kld.mean()

    The original encodes its pseudo-inputs in the loss. Here the encoded ones are arguments, so that
    there are two lines::

        prior = model.encoder(model.pseudo_inputs(model.idle_input).view(-1, *input_dim))
        loss, recon_loss, kld = pythae_vamp_loss(
            recon_x, x, mu, log_var, z, epoch,
            prior_mu=prior.embedding, prior_log_var=prior.log_covariance,
        )

    Args:
        recon_x, x: ``[B, ...]`` of as many elements.
        mu, log_var, z: of q, and a sample of each, ``[B, D]``; ``log_var`` is the log variance.
        epoch: counted from 1.
        prior_mu, prior_log_var: of the pseudo-inputs' q, ``[C, D]``.
        linear_scheduling_steps, reconstruction_loss: of the model's configuration.
        training: the model's mode.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``(loss, recon_loss, kld)``, scalars, nats (``"mse"``: up to a constant), in the inputs'
        dtype; ``kld`` without beta.

    Raises:
        ValueError, RuntimeError: as :func:`pythae_vae_loss`, and components that do not fit.

    Tomczak & Welling, "VAE with a VampPrior", AISTATS 2018, eq. 9; Chadebec et al., "Pythae",
    NeurIPS 2022.

    >>> recon_x, x, z = torch.zeros(4, 6), torch.ones(4, 6), torch.zeros(4, 2)
    >>> prior = {"prior_mu": torch.ones(3, 2), "prior_log_var": torch.zeros(3, 2)}
    >>> pythae_vamp_loss(recon_x, x, z, z, z, 1, **prior)
    (tensor(4.), tensor(3.), tensor(1.))
    """
    recon_loss = reconstruction(recon_x, x, reconstruction_loss, impl)
    check_latents(x, mu=mu, log_var=log_var, z=z)
    validate.tensors(z=z, prior_mu=prior_mu, prior_log_var=prior_log_var)
    if prior_mu.shape != prior_log_var.shape or prior_mu.shape[1:] != z.shape[1:]:
        named = {"prior_mu": prior_mu, "prior_log_var": prior_log_var, "z": z}
        raise ValueError(
            f"expected components [C, D] with the D of z, got {validate.describe(named)}"
        )
    own = gaussian_log_prob(z, mu, log_var, impl=impl)
    kld = (own - mixture_log_prob(z, prior_mu, prior_log_var, impl=impl)).mean()
    kld = in_torch_dtype(kld, mu)
    beta = 1.0
    if linear_scheduling_steps > 0 and training:
        beta = min(epoch / linear_scheduling_steps, 1.0)
    return recon_loss + beta * kld, recon_loss, kld


def reconstruction(recon_x, x, reconstruction_loss, impl):
    """The reconstruction term: a sum over each example's elements, averaged over the batch."""
    validate.choice("reconstruction_loss", reconstruction_loss, ("mse", "bce"))
    if recon_x.numel() != x.numel():
        shapes = validate.describe({"recon_x": recon_x, "x": x})
        raise ValueError(f"expected as many elements in both images, got {shapes}")
    recon_x, x = recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1)
    # The gradient of a mean, times the pixels, may exceed float16's range.
    r, t = (i.float() if i.dtype == torch.float16 else i for i in (recon_x, x))
    if reconstruction_loss == "mse":
        recon_loss = 0.5 * x.shape[1] * mean_squared_error(impl, recon_x=r, x=t)
    else:
        recon_loss = x.shape[1] * bernoulli_cross_entropy(r, t, "mean", impl)
    return in_torch_dtype(recon_loss, x)


def _cross_entropies(recon, x, impl):
    """The nll [K, B] of each sample, from probabilities [K, B, P]."""
    fits = fits_kernel("sum", recon[0], x, probabilities=True)
    impl = choice.where_it_fits(impl, fits)
    if choice.use_kernels(impl, recon, x, fits=fits):
        options = {"likelihood": "probabilities", "impl": impl}
        nll = likelihood_calls.negative_log_likelihood(recon.shape[:2], recon, x, **options)
        if not choice.looks_are_free(nll) or not nll.isnan().any():
            return nll
    recon, x = (t.float() if t.dtype == torch.float16 else t for t in (recon, x))
    return F.binary_cross_entropy(recon, x.expand_as(recon), reduction="none").sum(-1)
