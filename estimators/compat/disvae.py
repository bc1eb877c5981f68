"""The beta-TCVAE loss of YannDubs/disentangling-vae."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..dispatch import choice, validate
from ..dispatch.types import Implementation
from ..mixtures import kl_decomposition
from .terms import (
    bernoulli_cross_entropy,
    check_batch,
    check_latents,
    count_of,
    mean_squared_error,
    share_done,
    terms_of_columns,
)
from .torch_nn import in_torch_dtype


class DisvaeBtcvaeLoss:
    r"""``BtcvaeLoss`` of YannDubs/disentangling-vae, with the count of steps that it keeps.

    .. math:: R + \alpha\, \mathrm{MI} + \beta\, \mathrm{TC} + s\, \gamma\, \mathrm{DKL}

    R is summed over each example and averaged over the batch, like the terms. It is the
    cross-entropy of probabilities; for ``"gaussian"`` 255 times the squared error; for
    ``"laplace"`` three times the absolute error. s rises from 0 to 1 over ``steps_anneal`` steps of
    training.

    It has two faults. The stratified weights are in columns (its issue 58), as in
    :func:`rtqichen_tcvae_elbo`. Their logarithms are added before the sum over latents, so that log
    q(z) contains each of them D times and is some (D - 1) log B too low (its issues 54 and 60, "Why
    is tc_loss in bTCVAE negative?"). On the case of docs/drop-ins.md, whose total correlation is
    6.4, it gives -39.4. With ``is_mss=False`` q(z) and its marginals are sums over the batch,
    without a divisor (also issue 60), and it gives -39.3.

    Equivalent PyTorch, with W the matrix of weights, [B, B]::

        pairs = Normal(mean, (0.5 * logvar).exp()).log_prob(latent_sample.unsqueeze(1))
        pairs = pairs + W.log().unsqueeze(-1)
        log_qz = pairs.sum(-1).logsumexp(1)
        log_marginals = pairs.logsumexp(1).sum(-1)

    The one line: ``loss_f = DisvaeBtcvaeLoss(n_data=len(train_loader.dataset))``.

    Args:
        n_data, alpha, beta, gamma, is_mss, record_loss_every, rec_dist, steps_anneal: of the
            original's constructor.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    ``n_train_steps`` is the number of calls in training; assign it when a run is resumed.

    Returns:
        Of a call, ``(data, recon_batch, (mean, logvar), is_train, storer, latent_sample)``, a
        scalar in the inputs' dtype, in nats for ``"bernoulli"``. ``storer`` is None or a dictionary
        of lists. It gets the parts as numbers, which waits for the device: every
        ``record_loss_every`` steps of training, and at all calls outside of training.

    Raises:
        ValueError: an unknown ``rec_dist``, at construction; shapes that do not fit; an ``n_data``
            smaller than the batch; ``is_mss`` with a batch of one.

    Chen et al. 2018, eq. 4; github.com/YannDubs/disentangling-vae, disvae/models/losses.py.

    >>> loss_function = DisvaeBtcvaeLoss(n_data=10, beta=1.0, is_mss=False)
    >>> data, z = torch.ones(2, 1, 1, 3), torch.zeros(2, 1)
    >>> loss_function(data, data / 2, (z, z), True, None, z)
    tensor(2.0794)
    """

    def __init__(
        self,
        n_data: int,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        is_mss: bool = True,
        *,
        record_loss_every: int = 50,
        rec_dist: str = "bernoulli",
        steps_anneal: int = 0,
        impl: Implementation = "auto",
    ):
        validate.choice("rec_dist", rec_dist, ("bernoulli", "gaussian", "laplace"))
        choice.check_impl(impl)
        self.n_data = validate.count("n_data", n_data)
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.is_mss = is_mss
        self.record_loss_every = record_loss_every
        self.rec_dist = rec_dist
        self.steps_anneal = steps_anneal
        self.impl: Implementation = impl
        self._steps = count_of(0)

    @property
    def n_train_steps(self) -> int:
        """How often it was called in training."""
        return int(self._steps)

    @n_train_steps.setter
    def n_train_steps(self, value: int) -> None:
        self._steps = count_of(value)

    def __call__(
        self,
        data: Tensor,
        recon_batch: Tensor,
        latent_dist: tuple[Tensor, Tensor],
        is_train: bool,
        storer: Any,
        latent_sample: Tensor | None = None,
    ) -> Tensor:
        """As the class says; every call in training counts."""
        mean, logvar = latent_dist
        validate.dense("latent_sample", latent_sample, validate.DTYPES)
        check_latents(data, latent_sample=latent_sample, mean=mean, logvar=logvar)
        check_batch(len(mean), self.n_data, self.is_mss, "is_mss", name="n_data")
        if is_train:
            self._steps = self._steps + 1
        rec_loss = self.reconstruction(data, recon_batch) / len(data)
        if self.is_mss:
            terms = terms_of_columns(
                latent_sample, mean, logvar, self.n_data, power=mean.shape[1], impl=self.impl
            )
        else:
            terms = undivided_terms(latent_sample, mean, logvar, impl=self.impl)
        mi, tc, dkl = (in_torch_dtype(term.mean(), mean) for term in terms)
        anneal = share_done(self._steps, self.steps_anneal, mean.dtype) if is_train else 1.0
        loss = rec_loss + (self.alpha * mi + self.beta * tc + anneal * self.gamma * dkl)
        recorded = storer is not None and (
            not is_train or self.n_train_steps % self.record_loss_every == 1
        )
        if recorded:
            kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean(0)
            stored = {"recon_loss": rec_loss, "loss": loss, "mi_loss": mi, "tc_loss": tc}
            stored |= {"dw_kl_loss": dkl, "kl_loss": kl.sum()}
            stored |= {f"kl_loss_{i}": latent for i, latent in enumerate(kl)}
            for name, value in stored.items():
                storer[name].append(value.item())
        return loss

    def reconstruction(self, data: Tensor, recon_data: Tensor) -> Tensor:
        """Summed over everything."""
        if data.shape != recon_data.shape:
            shapes = validate.describe({"data": data, "recon_batch": recon_data})
            raise ValueError(f"expected data and recon_batch of one shape, got {shapes}")
        if self.rec_dist == "bernoulli":
            return bernoulli_cross_entropy(recon_data, data, "sum", self.impl)
        if self.rec_dist == "laplace":
            return 3 * F.l1_loss(recon_data, data, reduction="sum")
        squares = mean_squared_error(self.impl, recon_batch=recon_data, data=data)
        return 255 * data.numel() * squares


def undivided_terms(z, mu, logvar, *, impl):
    """The terms with sums over the batch for q, whatever the data set's size."""
    mi, tc, dkl = kl_decomposition(z, mu, logvar, estimator="aggregate", impl=impl)
    count, latents = math.log(len(z)), z.shape[1]
    return mi - count, tc - (latents - 1) * count, dkl + latents * count
