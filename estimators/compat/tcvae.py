"""Drop-ins for published beta-TCVAE losses, and for the VampPrior's: same number, same gradients.

The total correlation of an encoder is that of q(z) over its whole data set, and a batch must
estimate it. None of the four best-known codes does so without a fault; these functions have the
faults too, say in their docstrings what they make of the total correlation, and where that was
reported. ``python -m bench.total_correlation`` prints all of them beside the exact value and ours;
:func:`fused_elbo.elbo_tc_loss` is the loss without the faults.

Names, arguments, returns and ``impl`` are as in ``vae.py``. From 2**16 latents of pairs on kernels
make no tensor of them, as the originals do.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import textbook
from ..dispatch import calls, choice, validate
from ..dispatch.types import Implementation
from ..functional import gaussian_log_prob
from ..mixtures import kl_decomposition, mixture_log_prob
from ..reference import accumulate
from .nn_functional import in_torch_dtype
from .vae import bernoulli_cross_entropy, mean_squared_error, pythae_reconstruction

# Latents of pairs of examples below which one tensor of them is faster than kernels, of which one
# row is none: for 32 examples of 32 latents 0.6 ms against 0.9, for 64 of 10 0.8 against 0.9, for
# 64 of 32 1.7 against 1.0.
SMALL = 2**16


def rtqichen_tcvae_elbo(
    x: Tensor,
    x_params: Tensor,
    zs: Tensor,
    z_params: Tensor,
    dataset_size: int,
    *,
    beta: float = 1.0,
    lamb: float = 0.0,
    include_mutinfo: bool = True,
    tcvae: bool = False,
    mss: bool = False,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    r"""``VAE.elbo`` of rtqichen/beta-tcvae, the code of the paper: an objective of each example.

    .. math:: \log p(x \mid z) - c\, a\, \mathrm{MI} - \beta\, \mathrm{TC}
              - c\, (1 - \lambda)\, \mathrm{DKL}

    with c = 1 for ``tcvae`` and beta without, a = ``include_mutinfo``, and the terms of
    :func:`fused_elbo.kl_decomposition`. Its default is ``"weighted"``, which estimates about
    q(z) / N: the total correlation is some (D - 1) log N too high, 99.7 on the case of
    docs/drop-ins.md, where it is 6.4. ``mss`` is meant to be ``"stratified"``, but writes the
    weights down the first two columns of their matrix in place of the diagonal (reported in the
    repository's pull request 1, open since 2019): a posterior's own density counts 1 / (B - 1) and
    not 1 / N, as if the batch were all data. It says 10.6.
    Equivalent PyTorch, for ``tcvae`` and the default estimator::

        mi, tc, dkl = kl_decomposition(
            zs, mu, 2 * log_sigma, dataset_size, estimator="weighted"
        )
        p = (torch.sigmoid(x_params) + 1e-8) * (1 - 2e-8)
        log_px = x * torch.log(p + 1e-8) + (1 - x) * torch.log(1 - p + 1e-8)
        log_px.flatten(1).sum(1) - (mi + beta * tc + (1 - lamb) * dkl)

    The one line, in place of all that follows ``x = x.view(batch_size, 1, 64, 64)``::

        return rtqichen_tcvae_elbo(
            x, *self.reconstruct_img(x)[1:], dataset_size,
            beta=self.beta, lamb=self.lamb, include_mutinfo=self.include_mutinfo,
            tcvae=self.tcvae, mss=self.mss,
        )

    Args:
        x, x_params: data in [0, 1] and logits, ``[B, ...]``, of one shape.
        zs: a sample of each example's q, ``[B, D]``.
        z_params: ``[B, D, 2]``, mean and **logarithm of the standard deviation** of q: of its
            distributions the normal one alone.
        dataset_size: N, at least B.
        beta, lamb, include_mutinfo, tcvae, mss: attributes of the model.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``(modified_elbo, elbo)``, ``[B]`` in nats, to be **maximised**, the second detached.

    Raises:
        ValueError: shapes that do not fit; a ``dataset_size`` smaller than the batch; ``mss`` with
            a batch of one.

    Chen, Li, Grosse & Duvenaud, "Isolating sources of disentanglement in variational
    autoencoders", NeurIPS 2018, eq. 4; github.com/rtqichen/beta-tcvae, vae_quant.py.

    >>> x, z = torch.ones(2, 3), torch.zeros(2, 1)
    >>> rtqichen_tcvae_elbo(x, torch.zeros(2, 3), z, torch.zeros(2, 1, 2), 10, beta=6.0)[1]
    tensor([-2.0794, -2.0794])
    """
    if z_params.dim() != 3 or z_params.shape[-1] != 2 or x.shape != x_params.shape:
        named = validate.describe({"x": x, "x_params": x_params, "z_params": z_params})
        raise ValueError(
            f"expected x and x_params of one shape and z_params [B, D, 2], got {named}"
        )
    mu, log_sigma = z_params.unbind(-1)
    check_latents(x, zs=zs, mu=mu, log_sigma=log_sigma)
    check_batch(len(zs), dataset_size, mss, "mss")
    logvar = 2 * log_sigma
    log_px = saturating_log_prob(x_params, x)
    if beta == 1 and include_mutinfo and lamb == 0:
        zero = zs.new_zeros(())
        own = gaussian_log_prob(zs, mu, logvar, impl=impl)
        elbo = log_px + gaussian_log_prob(zs, zero, zero, impl=impl) - own
        elbo = in_torch_dtype(elbo, x)
        return elbo, elbo.detach()
    if mss:
        terms = terms_of_columns(zs, mu, logvar, dataset_size, impl=impl)
    else:
        terms = kl_decomposition(zs, mu, logvar, dataset_size, estimator="weighted", impl=impl)
    others = 1 if tcvae else beta
    weights = others * include_mutinfo, beta, others * (1 - lamb)
    both = log_px - weighted(terms, weights), (log_px - sum(terms)).detach()
    return tuple(in_torch_dtype(value, x) for value in both)


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

    with R of :func:`pythae_vae_loss`. Its default, ``use_mss``, takes the weights of
    rtqichen/beta-tcvae, which stand in columns (:func:`rtqichen_tcvae_elbo`, and the report
    there; in pythae's own repository none was found): they estimate q(z) as if the batch were all
    data, and say 10.6 on the case of docs/drop-ins.md, whose total correlation is 6.4. Without,
    they are ``"weighted"``, of about q(z) / N, and say 99.7.
    Equivalent PyTorch, for ``use_mss=False``::

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
    recon_loss = pythae_reconstruction(recon_x, x, reconstruction_loss, impl)
    check_latents(x, mu=mu, log_var=log_var, z=z)
    check_batch(len(z), dataset_size, use_mss, "use_mss")
    if use_mss:
        terms = terms_of_columns(z, mu, log_var, dataset_size, impl=impl)
    else:
        terms = kl_decomposition(z, mu, log_var, dataset_size, estimator="weighted", impl=impl)
    kld = in_torch_dtype(weighted(terms, (alpha, beta, gamma)).mean(), mu)
    return recon_loss + kld, recon_loss, kld


class DisvaeBtcvaeLoss:
    r"""``BtcvaeLoss`` of YannDubs/disentangling-vae, with the count of steps that it keeps.

    .. math:: R + \alpha\, \mathrm{MI} + \beta\, \mathrm{TC} + s\, \gamma\, \mathrm{DKL}

    R is summed over an example and averaged over the batch, as the terms are: cross-entropy of
    probabilities; ``"gaussian"``: 255 times the squared error; ``"laplace"``: three times the
    absolute one. s rises from 0 to 1 over ``steps_anneal`` steps of training.

    Two faults. The stratified weights stand in columns (its issue 58; :func:`rtqichen_tcvae_elbo`
    has the same), and their logarithms are added before the sum over latents, so that log q(z)
    has each D times and is some (D - 1) log B too low (its issues 54 and 60, "Why is tc_loss in
    bTCVAE negative?"): the total correlation is -39.4 on the case of docs/drop-ins.md, where it is
    6.4. ``is_mss=False`` takes sums over the batch for q(z) and its marginals, without a divisor
    (issue 60 too): -39.3.
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

    ``n_train_steps`` is how often it was called in training, to be assigned where a run is resumed.

    Returns:
        Of a call, ``(data, recon_batch, (mean, logvar), is_train, storer, latent_sample)``, a
        scalar in the inputs' dtype, in nats for ``"bernoulli"``. ``storer``, None or a dictionary
        of lists, gets the parts as numbers, which waits for the device, every
        ``record_loss_every`` steps of training and at every call without.

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
        self._steps = Steps()

    @property
    def n_train_steps(self) -> int:
        """How often it was called in training."""
        return self._steps.number

    @n_train_steps.setter
    def n_train_steps(self, value: int) -> None:
        self._steps.number = value

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
        self._steps.count(is_train)
        rec_loss = self.reconstruction(data, recon_batch) / len(data)
        if self.is_mss:
            terms = terms_of_columns(
                latent_sample, mean, logvar, self.n_data, power=mean.shape[1], impl=self.impl
            )
        else:
            terms = undivided_terms(latent_sample, mean, logvar, impl=self.impl)
        mi, tc, dkl = (in_torch_dtype(term.mean(), mean) for term in terms)
        anneal = self._steps.share(self.steps_anneal, mean.dtype) if is_train else 1.0
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


class AntixKBetaTCVAELoss:
    r"""``BetaTCVAE.loss_function`` of AntixK/PyTorch-VAE, with the count that the model keeps.

    .. math:: \frac1B \sum_{bi} (r_{bi} - x_{bi})^2 + \alpha\, \mathrm{MI} + \beta\, \mathrm{TC}
              + s\, \gamma\, \mathrm{DKL}

    of the repository since its commit 3c8fd61 of February 2020. (Before, at 215bb79, it had no
    weights, and the terms of ``is_mss=False`` in :class:`DisvaeBtcvaeLoss`.) The terms, with both
    of their faults, are those of that loss, from which it says to be taken; in this repository no
    report of them was found. It says -39.4 on the case of docs/drop-ins.md, whose total correlation
    is 6.4. The data set's size is ``B / M_N``: ``M_N`` weighs nothing here, and the repository
    gives its ``kld_weight``, 0.00025 whatever the data. A squared error without its 1/2 halves all
    three weights, at a decoder's variance of 1.
    Equivalent PyTorch, with the terms of :class:`DisvaeBtcvaeLoss`::

        recons_loss = F.mse_loss(recons, input, reduction="sum")
        recons_loss / B + alpha * mi + beta * tc + anneal_rate * gamma * dkl

    The one line: ``model.loss_function = AntixKBetaTCVAELoss(model=model)``.

    Args:
        anneal_steps, alpha, beta, gamma: of the model's constructor.
        model: whose training mode says whether a call counts; without one, every call does. s
            rises from 0 to 1 over ``anneal_steps`` calls in training, and is 1 in others.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    ``num_iter`` is how often it was called in training, to be assigned where a run is resumed.

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
        self._steps = Steps()

    @property
    def num_iter(self) -> int:
        """How often it was called in training."""
        return self._steps.number

    @num_iter.setter
    def num_iter(self, value: int) -> None:
        self._steps.number = value

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
        self._steps.count(training)
        recons_loss = input.numel() * mean_squared_error(self.impl, recons=recons, input=input)
        options = {"power": mu.shape[1], "impl": self.impl}
        terms = terms_of_columns(z, mu, log_var, len(z) / M_N, **options)
        mi, tc, dkl = (in_torch_dtype(term.mean(), mu) for term in terms)
        anneal = self._steps.share(self.anneal_steps, mu.dtype) if training else 1.0
        loss = recons_loss / len(input) + self.alpha * mi
        return {
            "loss": loss + self.beta * tc + anneal * self.gamma * dkl,
            "Reconstruction_Loss": recons_loss,
            "KLD": dkl,
            "TC_Loss": tc,
            "MI_Loss": mi,
        }


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
    ``linear_scheduling_steps`` epochs of training. Its KL is right: both densities are without
    their constant, which cancels. Equivalent PyTorch::

        recon = 0.5 * ((recon_x - x) ** 2).flatten(1).sum(1)
        kld = Normal(mu, (0.5 * log_var).exp()).log_prob(z).sum(-1)
        kld = kld - mixture_log_prob(z, prior_mu, prior_log_var)
        (recon + beta * kld).mean(), recon.mean(), kld.mean()

    The original encodes its pseudo-inputs in the loss; here what the encoder made of them is given,
    in two lines for one::

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
    recon_loss = pythae_reconstruction(recon_x, x, reconstruction_loss, impl)
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


class Steps:
    """A count of steps, and what annealing makes of it; nobody waits for a device."""

    def __init__(self):
        # A tensor: for every value of a number the compiler would compile anew.
        self._number = torch.tensor(0, device="cpu")

    @property
    def number(self):
        return int(self._number)

    @number.setter
    def number(self, value):
        self._number = torch.tensor(value, device="cpu")

    def count(self, training):
        if training:
            self._number = self._number + 1

    def share(self, steps, dtype):
        """Of so many steps those that are done, at most 1."""
        return 1.0 if steps == 0 else (self._number.double() / steps).clamp(max=1.0).to(dtype)


def check_latents(x, **latents):
    """Of one shape, [B, D], with the examples of x."""
    validate.tensors(x=x, **latents)
    first = next(iter(latents.values()))
    same = all(t.shape == first.shape for t in latents.values())
    if not same or first.dim() != 2 or 0 in first.shape or first.shape[:1] != x.shape[:1]:
        shapes = validate.describe({**latents, "x": x})
        raise ValueError(
            f"expected {', '.join(latents)} of one shape [B, D] for x [B, ...], got {shapes}"
        )


def check_batch(batch, dataset_size, stratified, option, *, name="dataset_size"):
    """The sizes, of which ``option`` is what asks for stratified weights."""
    validate.count(name, dataset_size, batch)
    if stratified and batch < 2:
        raise ValueError(f"{option} needs a batch of at least 2, got 1")


def saturating_log_prob(logits, x):
    """Of rtqichen's Bernoulli, [B]: 1e-8 is added to probabilities, twice, before a logarithm."""
    logits, x = accumulate(logits, x)
    p = (torch.sigmoid(logits) + 1e-8) * (1 - 2e-8)
    return (x * torch.log(p + 1e-8) + (1 - x) * torch.log(1 - p + 1e-8)).flatten(1).sum(1)


def weighted(terms, weights):
    """Their sum, a number an example."""
    return sum(weight * term for weight, term in zip(weights, terms, strict=True))


def terms_of_columns(z, mu, logvar, dataset_size, *, power=1, impl):
    """The terms with stratified weights in columns, each to the ``power`` in log q(z).

    With M = B - 1 the first example counts 1 / N in all rows of W, the second (N - M) / (N M) and
    the rest 1 / M, whichever example z is of; in the last row but one the first counts as the
    second. (W is meant to have 1 / N on its diagonal.)
    """
    others, size = len(z) - 1, dataset_size
    z, mu, logvar = accumulate(z, mu, logvar)
    log_weights = z.new_full((len(z),), -math.log(others))
    log_weights[0] = -math.log(size)
    log_weights[1] = math.log((size - others) / (size * others))
    if impl == "auto" and z.numel() * len(z) < SMALL:
        matrix = log_weights.repeat(len(z), 1)
        matrix[-2, 0] = matrix[-2, 1]
        joint, marginals = textbook.aggregate_log_probs(z, mu, logvar, power * matrix, matrix)
    else:
        each = power * log_weights, log_weights
        most = calls.aggregate_log_probs(z, mu, logvar, log_weights=each, impl=impl)
        odd = torch.cat([log_weights[1:2], log_weights[1:]])
        row = textbook.aggregate_log_probs(z[-2:-1], mu, logvar, power * odd, odd)
        joint, marginals = (m.slice_scatter(r, 0, -2, -1) for m, r in zip(most, row, strict=True))
    own = gaussian_log_prob(z, mu, logvar, impl=impl)
    zero = z.new_zeros(())
    prior = gaussian_log_prob(z, zero, zero, impl=impl)
    return own - joint, joint - marginals, marginals - prior


def undivided_terms(z, mu, logvar, *, impl):
    """The terms with sums over the batch for q, whatever the data set's size."""
    mi, tc, dkl = kl_decomposition(z, mu, logvar, estimator="aggregate", impl=impl)
    count, latents = math.log(len(z)), z.shape[1]
    return mi - count, tc - (latents - 1) * count, dkl + latents * count
