"""The losses of AntixK/PyTorch-VAE's VanillaVAE, BetaVAE and BetaTCVAE."""

import torch
from torch import Tensor

from ..dispatch import choice, validate
from ..dispatch.types import Implementation
from .terms import (
    check_batch,
    check_latents,
    count_of,
    mean_kl,
    mean_squared_error,
    share_done,
    terms_of_columns,
)
from .torch_nn import in_torch_dtype


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

    R, a mean over pixels, and KL are those of :func:`antixk_vanilla_vae_loss`. The capacity C rises
    from 0 to ``max_capacity`` over ``Capacity_max_iter`` calls, and calls in validation count too.
    Equivalent PyTorch, for the n-th call::

        C = (torch.tensor([max_capacity]) / Capacity_max_iter * n).clamp(0, max_capacity)
        F.mse_loss(recons, input) + gamma * M_N * (kld - C).abs()

    As in the original, ``"B"`` returns a float32 loss of shape [1] for all inputs, because C is
    such a tensor. The beta of ``"H"`` is ``beta * M_N * pixels / 2``. That of ``"B"`` is ``gamma *
    M_N * pixels / 2`` above the capacity, and the negative below it. The one line:
    ``model.loss_function = AntixKBetaVAELoss(beta=10.0, loss_type="H")``.

    Args:
        beta, gamma, max_capacity, Capacity_max_iter, loss_type: of the model's constructor.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    ``num_iter`` is the number of calls; assign it when a run is resumed.

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
        self._steps = count_of(0)

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
        self._steps = self._steps + 1
        recons_loss, kld = _antixk_terms(recons, input, mu, log_var, self.impl)
        if self.loss_type == "H":
            loss = recons_loss + self.beta * M_N * kld
        else:
            capacity = self.capacity(recons_loss.device)
            loss = recons_loss + self.gamma * M_N * (kld - capacity).abs()
        return {"loss": loss, "Reconstruction_Loss": recons_loss, "KLD": kld}

    @property
    def num_iter(self) -> int:
        """How often it was called."""
        return int(self._steps)

    @num_iter.setter
    def num_iter(self, value: int) -> None:
        self._steps = count_of(value)

    def capacity(self, device: torch.device | str = "cpu") -> Tensor:
        """C of the last call, [1], in nats; it is created on the device, so that nothing waits."""
        most = torch.full((1,), self.max_capacity, dtype=torch.float32, device=device)
        return (most / self.Capacity_max_iter * self._steps).clamp(0, self.max_capacity)


class AntixKBetaTCVAELoss:
    r"""``BetaTCVAE.loss_function`` of AntixK/PyTorch-VAE, with the count that the model keeps.

    .. math:: \frac1B \sum_{bi} (r_{bi} - x_{bi})^2 + \alpha\, \mathrm{MI} + \beta\, \mathrm{TC}
              + s\, \gamma\, \mathrm{DKL}

    This is the loss since commit 3c8fd61 of February 2020. (Before, at 215bb79, it had no weights,
    and the terms of ``is_mss=False`` in :class:`DisvaeBtcvaeLoss`.) It says that it is taken from
    that loss, and has its terms with both of their faults; we found no report of them in this
    repository. On the case of docs/drop-ins.md, whose total correlation is 6.4, it gives -39.4.
    ``M_N`` is no weight here: the size of the data set is ``B / M_N``. The repository passes its
    ``kld_weight``, which is 0.00025 for all data. The squared error lacks its 1/2, which halves all
    three weights at a decoder's variance of 1.

    Equivalent PyTorch, with the terms of :class:`DisvaeBtcvaeLoss`::

        recons_loss = F.mse_loss(recons, input, reduction="sum")
        recons_loss / B + alpha * mi + beta * tc + anneal_rate * gamma * dkl

    The one line: ``model.loss_function = AntixKBetaTCVAELoss(model=model)``.

    Args:
        anneal_steps, alpha, beta, gamma: of the model's constructor.
        model: the model, whose training mode says whether a call counts; without one, all calls do.
            s rises from 0 to 1 over ``anneal_steps`` calls in training, and is 1 in other calls.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    ``num_iter`` is the number of calls in training; assign it when a run is resumed.

    Returns:
        Of a call, ``(recons, input, mu, log_var, z, M_N=...)``, ``{"loss", "Reconstruction_Loss",
        "KLD", "TC_Loss", "MI_Loss"}``: scalars in the inputs' dtype, all attached. The first part
        is a sum over the batch too, and ``KLD`` the **dimension-wise** KL alone.

    Raises:
        ValueError: shapes that do not fit; an ``M_N`` outside (0, 1]; a batch of one.
        TypeError: ``M_N`` is missing.

    Chen et al. 2018, eq. 4; github.com/AntixK/PyTorch-VAE, models/betatc_vae.py.

    >>> recons, input, z = torch.zeros(4, 6), torch.ones(4, 6), torch.zeros(4, 1)
    >>> parts = AntixKBetaTCVAELoss()(recons, input, z, z, z, M_N=0.5)
    >>> parts["loss"], parts["Reconstruction_Loss"]
    (tensor(5.9801), tensor(24.))
    """

    def __init__(
        self,
        anneal_steps: int = 200,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        *,
        model: torch.nn.Module | None = None,
        impl: Implementation = "auto",
    ):
        choice.check_impl(impl)
        self.anneal_steps = anneal_steps
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.model = model
        self.impl: Implementation = impl
        self._steps = count_of(0)

    @property
    def num_iter(self) -> int:
        """How often it was called in training."""
        return int(self._steps)

    @num_iter.setter
    def num_iter(self, value: int) -> None:
        self._steps = count_of(value)

    def __call__(
        self,
        recons: Tensor,
        input: Tensor,
        mu: Tensor,
        log_var: Tensor,
        z: Tensor,
        *unused: object,
        M_N: float,
        **unused_named: object,
    ) -> dict[str, Tensor]:
        """As the class says; every call in training counts."""
        check_latents(input, mu=mu, log_var=log_var, z=z)
        if validate.number("M_N", M_N, 0.0, 1.0) == 0.0:
            raise ValueError("M_N must be positive: it is the batch's share of the data set")
        check_batch(len(z), len(z), True, "this loss")
        training = self.model is None or self.model.training
        if training:
            self._steps = self._steps + 1
        recons_loss = input.numel() * mean_squared_error(self.impl, recons=recons, input=input)
        options = {"power": mu.shape[1], "impl": self.impl}
        terms = terms_of_columns(z, mu, log_var, len(z) / M_N, **options)
        mi, tc, dkl = (in_torch_dtype(term.mean(), mu) for term in terms)
        anneal = share_done(self._steps, self.anneal_steps, mu.dtype) if training else 1.0
        loss = recons_loss / len(input) + self.alpha * mi
        return {
            "loss": loss + self.beta * tc + anneal * self.gamma * dkl,
            "Reconstruction_Loss": recons_loss,
            "KLD": dkl,
            "TC_Loss": tc,
            "MI_Loss": mi,
        }


def _antixk_terms(recons, input, mu, log_var, impl):
    """Squared error, averaged over everything, and KL, averaged over the batch."""
    kld = mean_kl(input, mu, log_var, impl)
    return mean_squared_error(impl, recons=recons, input=input), kld
