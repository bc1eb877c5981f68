"""Drop-ins for the losses of well-known VAE code: same number, same gradients, one changed line.

Each function keeps its original's argument names, order, reductions, signs and return type,
oddities included, and says which beta they amount to (:func:`effective_beta`). On CUDA and CPU
tensors they run the fused kernels; elsewhere, and with the one extra argument
``impl="reference"``, torch's own losses and the reference's KL. Reconstruction terms that have no
kernel (an empty batch; cross-entropy on probabilities in float16, under autocast or
``torch.compile``) are torch's everywhere. Where an original would broadcast by mistake, the
function raises an error.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from ..dispatch import calls, choice, validate
from ..dispatch.types import Implementation
from ..functional import gaussian_kl, gaussian_log_prob, gaussian_nll, importance_weights
from ..reference import accumulate
from .nn_functional import (
    UNIT_NORMALISER,
    binary_cross_entropy,
    fits_kernel,
    in_torch_dtype,
    mse_loss,
)


def pytorch_examples_vae_loss(
    recon_x: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, *, impl: Implementation = "auto"
) -> Tensor:
    r"""``loss_function`` of the VAE in PyTorch's examples: sums over everything, beta = 1.

    .. math:: -\sum_{bi} \big[x_{bi} \log p_{bi} + (1 - x_{bi}) \log(1 - p_{bi})\big]
              + \sum_b KL(q(z \mid x_b) \| N(0, I))

    with torch's clamping of either logarithm at -100. Equivalent PyTorch::

        cross_entropy = F.binary_cross_entropy(recon_x, x.view(-1, 784), reduction="sum")
        cross_entropy - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())

    The one line: ``from fused_elbo.compat import pytorch_examples_vae_loss as loss_function``.
    A decoder without its last sigmoid, and ``fused_elbo.elbo_loss`` on the logits, is exact where
    p rounds to 0 or 1; here the gradient there is torch's, (p - x) / max(p (1 - p), 1e-12).

    Args:
        recon_x: probabilities ``[B, P]``; P need not be the 784 of the original.
        x: the data, ``[B, ...]`` of as many elements.
        mu, logvar: of q, ``[B, D]``; ``logvar`` is the log variance.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        A scalar in nats, the sum over the batch, in the inputs' dtype.

    Raises:
        RuntimeError: probabilities or data outside [0, 1] or NaN (where a kernel runs on CUDA,
            the loss is NaN instead).
        ValueError: as many elements in other rows, or mu and logvar that do not broadcast.

    github.com/pytorch/examples, vae/main.py; Kingma & Welling 2014, appendices B and C.1.

    >>> recon_x, x = torch.full((4, 6), 0.5), torch.ones(4, 1, 2, 3)
    >>> pytorch_examples_vae_loss(recon_x, x, torch.ones(4, 2), torch.zeros(4, 2))
    tensor(20.6355)
    """
    x = x.reshape(-1, recon_x.shape[-1])
    cross_entropy = bernoulli_cross_entropy(recon_x, x, "sum", impl)
    kl = gaussian_kl(mu, logvar, impl=impl).sum()
    return cross_entropy + in_torch_dtype(kl, mu)


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
    recon_loss = pythae_reconstruction(recon_x, x, reconstruction_loss, impl)
    kld = _mean_kl(x, mu, log_var, impl)
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
    bound**: minus it is above IWAE's where the weights differ, and may be above log p(x).
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
        mu, log_var, z: ``[B, K, D]``, of q, repeated for the samples, and the samples.
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


def antixk_vanilla_vae_loss(
    recons: Tensor,
    input: Tensor,
    mu: Tensor,
    log_var: Tensor,
    *unused: object,
    M_N: float,
    impl: Implementation = "auto",
    **unused_named: object,
) -> dict[str, Tensor]:
    r"""``VanillaVAE.loss_function`` of AntixK/PyTorch-VAE: a mean over pixels and a KL weight.

    .. math:: \frac{1}{BP} \sum_{bi} (r_{bi} - x_{bi})^2 + M_N \frac1B \sum_b KL_b

    Its beta, at a decoder's variance of 1, is ``M_N * pixels / 2``: 1.536 for the 0.00025 and
    the 3 x 64 x 64 of its configuration. Equivalent PyTorch::

        kld = (-0.5 * (1 + log_var - mu**2 - log_var.exp()).sum(1)).mean(0)
        recons_loss = F.mse_loss(recons, input)
        {"loss": recons_loss + M_N * kld,
         "Reconstruction_Loss": recons_loss.detach(), "KLD": -kld.detach()}

    The one line: ``model.loss_function = antixk_vanilla_vae_loss``.

    Args:
        recons, input: ``[B, ...]``, of one shape.
        mu, log_var: of q, ``[B, D]``; ``log_var`` is the log variance.
        M_N: the KL's weight, ``kld_weight`` of the configuration; it must be given.
        unused, unused_named: ignored, as in the original.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``{"loss", "Reconstruction_Loss", "KLD"}``: scalars in the inputs' dtype, the last two
        detached, and ``KLD`` with its sign turned: **minus** the KL in nats.

    Raises:
        TypeError: ``M_N`` is missing.
        ValueError: shapes that do not fit; the original broadcasts them with a warning.

    github.com/AntixK/PyTorch-VAE, models/vanilla_vae.py; Kingma & Welling 2014.

    >>> recons, input = torch.zeros(4, 6), torch.ones(4, 6)
    >>> antixk_vanilla_vae_loss(recons, input, torch.ones(4, 2), torch.zeros(4, 2), M_N=0.5)
    {'loss': tensor(1.5000), 'Reconstruction_Loss': tensor(1.), 'KLD': tensor(-1.)}
    """
    recons_loss, kld = _antixk_terms(recons, input, mu, log_var, impl)
    return {
        "loss": recons_loss + M_N * kld,
        "Reconstruction_Loss": recons_loss.detach(),
        "KLD": -kld.detach(),
    }


class AntixKBetaVAELoss:
    r"""``BetaVAE.loss_function`` of AntixK/PyTorch-VAE, with the state that the model keeps.

    .. math:: R + \beta\, M_N\, KL \quad (\text{"H"}), \qquad
              R + \gamma\, M_N\, |KL - C| \quad (\text{"B"})

    with R, the mean over pixels, and KL as in :func:`antixk_vanilla_vae_loss`, and the capacity
    C rising from 0 to ``max_capacity`` over ``Capacity_max_iter`` calls, those of validation
    included. Equivalent PyTorch, for the n-th call::

        C = (torch.tensor([max_capacity]) / Capacity_max_iter * n).clamp(0, max_capacity)
        F.mse_loss(recons, input) + gamma * M_N * (kld - C).abs()

    ``"B"`` returns a loss of shape [1] and, since C is that float32 tensor, in float32 whatever
    the inputs are, as the original does. The beta of ``"H"`` is ``beta * M_N * pixels / 2``; that
    of ``"B"`` is ``gamma * M_N * pixels / 2`` above the capacity and minus that below it.
    The one line: ``model.loss_function = AntixKBetaVAELoss(beta=10.0, loss_type="H")``.

    Args:
        beta, gamma, max_capacity, Capacity_max_iter, loss_type: of the model's constructor.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    ``num_iter`` is how often it was called, to be assigned where a run is resumed.

    Returns:
        Of a call, ``(recons, input, mu, log_var, M_N=...)`` as :func:`antixk_vanilla_vae_loss`
        has it, ``{"loss", "Reconstruction_Loss", "KLD"}``: here attached, and ``KLD`` positive.

    Raises:
        ValueError: an unknown ``loss_type``, at construction; shapes that do not fit.
        TypeError: ``M_N`` is missing.

    Higgins et al. 2017 ("H"); Burgess et al., "Understanding disentangling in beta-VAE", 2018,
    eq. 8 ("B"); github.com/AntixK/PyTorch-VAE, models/beta_vae.py.

    >>> recons, input = torch.zeros(4, 6), torch.ones(4, 6)
    >>> loss_function = AntixKBetaVAELoss(beta=10.0, loss_type="H")
    >>> loss_function(recons, input, torch.ones(4, 2), torch.zeros(4, 2), M_N=0.5)
    {'loss': tensor(6.), 'Reconstruction_Loss': tensor(1.), 'KLD': tensor(1.)}
    """

    def __init__(
        self,
        beta: float = 4,
        gamma: float = 1000.0,
        max_capacity: float = 25,
        Capacity_max_iter: float = 1e5,
        loss_type: str = "B",
        *,
        impl: Implementation = "auto",
    ):
        validate.choice("loss_type", loss_type, ("H", "B"))
        choice.check_impl(impl)
        self.beta = beta
        self.gamma = gamma
        self.max_capacity = max_capacity
        self.Capacity_max_iter = Capacity_max_iter
        self.loss_type = loss_type
        self.impl: Implementation = impl
        # A tensor: for every value of a number the compiler would compile anew.
        self._calls = torch.tensor(0, device="cpu")

    def __call__(
        self,
        recons: Tensor,
        input: Tensor,
        mu: Tensor,
        log_var: Tensor,
        *unused: object,
        M_N: float,
        **unused_named: object,
    ) -> dict[str, Tensor]:
        """As the class says; every call counts."""
        self._calls = self._calls.to(recons.device) + 1
        recons_loss, kld = _antixk_terms(recons, input, mu, log_var, self.impl)
        if self.loss_type == "H":
            loss = recons_loss + self.beta * M_N * kld
        else:
            capacity = self.capacity(recons_loss.device)
            loss = recons_loss + self.gamma * M_N * (kld - capacity).abs()
        return {"loss": loss, "Reconstruction_Loss": recons_loss, "KLD": kld}

    @property
    def num_iter(self) -> int:
        """How often it was called; on CUDA, reading it waits for the device."""
        return int(self._calls)

    @num_iter.setter
    def num_iter(self, value: int) -> None:
        self._calls = torch.tensor(value, device="cpu")

    def capacity(self, device: torch.device | str = "cpu") -> Tensor:
        """C of the last call, [1], in nats: filled on the device, which then need not wait."""
        most = torch.full((1,), self.max_capacity, dtype=torch.float32, device=device)
        calls = self._calls.to(device)
        return (most / self.Capacity_max_iter * calls).clamp(0, self.max_capacity)


def bolts_vae_loss(
    x_hat: Tensor,
    x: Tensor,
    p: Normal | None,
    q: Normal,
    kl_coeff: float = 0.1,
    *,
    impl: Implementation = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The loss in ``VAE.step`` of lightning-bolts: means over pixels and over latents too.

    .. math:: \frac{1}{BP} \sum_{bi} (\hat x_{bi} - x_{bi})^2
              + k \frac{1}{BD} \sum_{bd} KL(q_{bd} \| p_{bd})

    Its beta, at a decoder's variance of 1, is ``kl_coeff * pixels / (2 * latents)``: 0.6 for
    the coefficient of 0.1, 3 x 32 x 32 pixels and 256 latents. Equivalent PyTorch::

        recon_loss = F.mse_loss(x_hat, x)
        kl = kl_coeff * torch.distributions.kl_divergence(q, p).mean()
        kl + recon_loss, {"recon_loss": recon_loss, "kl": kl, "loss": kl + recon_loss}

    The one line, behind ``_run_step``: ``return bolts_vae_loss(x_hat, x, p, q, self.kl_coeff)``.

    Args:
        x_hat, x: ``[B, ...]``, of one shape.
        p, q: prior and posterior, ``torch.distributions.Normal`` of ``[B, ..., D]``. None for
            ``p`` is the standard normal, which the original passes as tensors to be read.
        kl_coeff: the KL's weight, the default that of the original's constructor.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``(loss, {"recon_loss", "kl", "loss"})``, scalars in the inputs' dtype; ``kl`` is
        weighted. Differentiable in ``q`` and ``p`` (mean and standard deviation) and in both
        images.

    Raises:
        TypeError: ``p`` or ``q`` is no ``Normal``.
        ValueError: shapes that do not fit; the original broadcasts them with a warning.

    Falcon & Cho, "A framework for contrastive self-supervised learning", 2020 (lightning-bolts,
    basic_vae_module.py); Kingma & Welling 2014.

    >>> q = torch.distributions.Normal(torch.ones(4, 2), torch.ones(4, 2))
    >>> bolts_vae_loss(torch.zeros(4, 6), torch.ones(4, 6), None, q)[0]
    tensor(1.0500)
    """
    posterior = _mean_and_std("q", q)
    prior = (None, None) if p is None else _mean_and_std("p", p)
    kl, shape = _kl_of_normals(posterior, prior, "std", impl)
    recon_loss = mean_squared_error(impl, x_hat=x_hat, x=x)
    kl = in_torch_dtype(kl.sum() / math.prod(shape), q.loc) * kl_coeff
    loss = kl + recon_loss
    return loss, {"recon_loss": recon_loss, "kl": kl, "loss": loss}


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

    The one line: ``weighted_kl_local = scvi_kl_local(qz_m, qz_v, kl_weight)``, or of scvi-tools
    1.x, which holds distributions, ``scvi_kl_local(qz, kl_weight=kl_weight, pz_m=pz)``; the loss
    of a cell adds ``-px.log_prob(x).sum(-1)`` to it. The KL of the library size is the same with
    ``pz_m`` and ``pz_v``, and without a weight.

    Args:
        qz_m, qz_v: mean and variance of q, ``[..., D]``; or for ``qz_m`` the ``Normal`` itself.
        kl_weight: a number, or a tensor that broadcasts with the result.
        pz_m, pz_v: mean and variance of the prior; None for 0 and 1; or the ``Normal``.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``[...]`` in nats, in the inputs' dtype; differentiable in every tensor.

    Raises:
        ValueError: on CPU tensors a variance that is not positive, as ``Normal`` does. On CUDA,
            and under ``torch.compile``, nobody waits for that answer: the KL is then inf or NaN.
            Also a variance beside a ``Normal``, which has its own.

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
    kl, _ = _kl_of_normals(q, prior, form, impl, names=("qz_m", "qz_v", "pz_m", "pz_v"))
    return kl_weight * in_torch_dtype(kl, q[0])


def _mean_and_spread(form, **named):
    """Of a mean and a variance, either of which may be None, or of a Normal in the mean's place."""
    (name, mean), (variance_name, variance) = named.items()
    if isinstance(mean, Normal):
        if variance is not None:
            raise ValueError(f"{variance_name} goes with a tensor, but {name} is a Normal")
        return mean.loc, mean.scale if form == "std" else accumulate(mean.scale)[0].square()
    if variance is not None:
        validate.tensors(**named)
        _positive(**{variance_name: variance})
    return mean, variance


def _kl_of_normals(q, p, form, impl, names=("q", "q.scale", "p", "p.scale")):
    """(KL, the shape of its latents); ``q`` and ``p`` are means and spreads."""
    named = dict(zip(names, (*q, *p), strict=True))
    validate.tensors(**named)
    shape = validate.broadcast(**named)
    if (p[0] is None) != (p[1] is None):  # the other half is that of N(0, 1)
        zero = q[0].new_zeros(())
        p = (zero, p[1]) if p[0] is None else (p[0], zero + 1)
    return calls.normal_kl(shape, q, p, form, impl=impl), shape


def pythae_reconstruction(recon_x, x, reconstruction_loss, impl):
    """Of pythae's models: a sum over an example's elements, averaged over the batch."""
    validate.choice("reconstruction_loss", reconstruction_loss, ("mse", "bce"))
    if recon_x.numel() != x.numel():
        shapes = validate.describe({"recon_x": recon_x, "x": x})
        raise ValueError(f"expected as many elements in both images, got {shapes}")
    recon_x, x = recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1)
    # A mean's gradient, times pixels, may leave float16's range.
    r, t = (i.float() if i.dtype == torch.float16 else i for i in (recon_x, x))
    if reconstruction_loss == "mse":
        recon_loss = 0.5 * x.shape[1] * mean_squared_error(impl, recon_x=r, x=t)
    else:
        recon_loss = x.shape[1] * bernoulli_cross_entropy(r, t, "mean", impl)
    return in_torch_dtype(recon_loss, x)


def _antixk_terms(recons, input, mu, log_var, impl):
    """Squared error, averaged over everything, and KL, averaged over the batch."""
    kld = _mean_kl(input, mu, log_var, impl)
    return mean_squared_error(impl, recons=recons, input=input), kld


def _mean_kl(x, mu, logvar, impl):
    """Over the examples, from [B, D]: with more dimensions the originals broadcast it."""
    kl = gaussian_kl(mu, logvar, impl=impl)
    if kl.shape != x.shape[:1]:
        shapes = validate.describe({"mu": mu, "logvar": logvar, "x": x})
        raise ValueError(f"expected mu and logvar [B, D] for x [B, ...], got {shapes}")
    return in_torch_dtype(kl.mean(), mu)


def mean_squared_error(impl, **images):
    """``F.mse_loss``, for one shape: of two it broadcasts, and takes another mean."""
    recon, x = images.values()
    if recon.shape != x.shape:
        names = " and ".join(images)
        raise ValueError(f"expected {names} of one shape, got {validate.describe(images)}")
    impl = choice.where_it_fits(impl, fits_kernel("mean", recon, x))
    return mse_loss(recon, x, impl=impl)


def bernoulli_cross_entropy(recon, x, reduction, impl):
    """``F.binary_cross_entropy``, by a kernel where there is one."""
    impl = choice.where_it_fits(impl, fits_kernel("mean", recon, x, probabilities=True))
    return binary_cross_entropy(recon, x, reduction=reduction, impl=impl)


def _cross_entropies(recon, x, impl):
    """From probabilities [K, B, P], of each sample: [K, B]."""
    fits = fits_kernel("sum", recon[0], x, probabilities=True)
    impl = choice.where_it_fits(impl, fits)
    if choice.use_kernels(impl, recon, x, fits=fits):
        options = {"likelihood": "probabilities", "impl": impl}
        nll = calls.negative_log_likelihood(recon.shape[:2], recon, x, **options)
        if not choice.looks_are_free(nll) or not nll.isnan().any():
            return nll
    recon, x = (t.float() if t.dtype == torch.float16 else t for t in (recon, x))
    return F.binary_cross_entropy(recon, x.expand_as(recon), reduction="none").sum(-1)


def _mean_and_std(name, normal):
    if not isinstance(normal, Normal):
        raise TypeError(f"{name} must be a torch.distributions.Normal, got {type(normal).__name__}")
    return normal.loc, normal.scale


def _positive(**variances):
    """Where looking costs no wait, variances must be positive; a NaN is not."""
    for name, variance in variances.items():
        if variance is None or variance.device.type != "cpu" or torch.compiler.is_compiling():
            continue
        if not (variance > 0).all():
            raise ValueError(f"{name} must be a positive variance, and is 0, negative or NaN")
