"""Bounds of the evidence and the estimators of their gradients, behind one interface.

``estimate(name, ...)`` draws K samples of q once. It returns the bound's estimate for each example
and a surrogate, whose gradient is the estimator's: maximise the surrogate's mean. ``ESTIMATORS``
has the paper of each name, the bound that it estimates, and what is unbiased.

Notation: w_k = p(x, z_k) / q(z_k|x) with z_k ~ q; the normalised weights are v_k = w_k / sum_j w_j;
theta are the parameters of p, phi those of q.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from . import sampling as samplers
from .diagnostics import kl_per_dimension
from .dispatch import mixture_calls, sample_calls, validate
from .dispatch.types import Gradient, Implementation
from .functional import gaussian_kl, gaussian_log_prob
from .importance import importance_weights
from .mixtures import Mixture, check_prior, mixture_log_prob
from .reference import textbook
from .reference.reference import accumulate, in_float64, scalar


class Estimate(NamedTuple):
    """The result of an estimator: [...] is the shape of the examples, K the number of samples."""

    value: Tensor  # [...]: the bound's estimate in nats, detached
    surrogate: Tensor  # [...]: its gradient is the estimator's; its value has no meaning
    log_weights: Tensor  # [K, ...]: log w_k, detached, for the diagnostics
    z: Tensor  # [K, ..., D]: the samples, detached


@dataclass
class Draws:
    """One pass: samples of q, and the densities of p and q at them, computed when asked for."""

    target: Callable[[Tensor], Tensor]
    joint: bool
    mu: Tensor
    logvar: Tensor
    prior: tuple[Tensor | None, Tensor | None] | Mixture
    num_samples: int
    sampling: str
    generator: Generator | None
    impl: Implementation
    z: Any = None  # once drawn

    def sample(self, gradient: Gradient = "total", *, improper_prior: bool | None = None):
        """(z, log p(z) - log q(z|x)), or (z, -log q(z|x)) where p(z) is part of the target.

        ``improper_prior`` asks for the second. The log ratio is computed from the noise.
        ``gradient`` is as in :func:`fused_elbo.rsample_log_ratio`.
        """
        q = self.mu.shape, self.mu, self.logvar
        improper_prior = self.joint if improper_prior is None else improper_prior
        options = {
            "gradient": gradient,
            "antithetic": samplers.antithetic(self.sampling, self.num_samples),
            "generator": self.generator,
            "impl": "reference" if self.sampling == "sobol" else self.impl,
            "draw_eps": self.noise,
        }
        if isinstance(self.prior, Mixture) and not improper_prior:
            self.z, log_ratio = mixture_calls.rsample_log_ratio_to_mixture(
                *q, self.prior, self.num_samples, **options
            )
        else:
            prior = (None, None) if isinstance(self.prior, Mixture) else self.prior
            self.z, log_ratio = sample_calls.rsample_log_ratio(
                *q, *prior, self.num_samples, **options, improper_prior=improper_prior
            )
        return self.z, log_ratio

    def noise(self):
        """The noise eps [K, ..., D] that the reference draws."""
        return samplers.draw(
            self.num_samples, self.mu.detach(), sampling=self.sampling, generator=self.generator
        )

    def weigh(self, log_weights: Tensor, alpha: float = 0.0):
        """The bound of log weights [K, ...] and the normalised weights, both detached."""
        bound, weights, _ = importance_weights(log_weights.detach(), alpha, impl=self.impl)
        return bound, weights

    def log_q_score(self, z: Tensor) -> Tensor:
        """log q(z|x) at a fixed z, so that its gradient is the score."""
        return gaussian_log_prob(z.detach(), self.mu, self.logvar, impl=self.impl)

    def log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x|z), checked."""
        if self.joint:
            raise ValueError("this estimator needs log_likelihood, and got log_joint")
        return self.log_target(z)

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x, z), checked."""
        return self.log_target(z) if self.joint else self.log_target(z) + self.log_prior(z)

    def log_weights(self) -> Tensor:
        """log w_k, through whose samples all gradients flow."""
        z, log_ratio = self.sample()
        return self.log_target(z) + log_ratio

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z)."""
        if isinstance(self.prior, Mixture):
            return mixture_log_prob(z, *self.prior, impl=self.impl)
        mu, logvar = (z.new_zeros(z.shape[-1]) if p is None else p for p in self.prior)
        return gaussian_log_prob(z, mu, logvar, impl=self.impl)

    def kl(self) -> Tensor:
        """KL(q(z|x) || p(z))."""
        return gaussian_kl(self.mu, self.logvar, *self.gaussian_prior(), impl=self.impl)

    def kl_per_dimension(self) -> Tensor:
        """The terms of this KL [..., D], before their sum."""
        return kl_per_dimension(self.mu, self.logvar, *self.gaussian_prior(), impl=self.impl)

    def gaussian_prior(self):
        """(mu, logvar) of the prior; a mixture, to which the KL has no closed form, is an error."""
        if isinstance(self.prior, Mixture):
            raise ValueError(
                "the KL to a mixture has no closed form: take 'elbo-monte-carlo', or 'stl', "
                "instead of 'elbo'"
            )
        return self.prior

    def log_target(self, z: Tensor) -> Tensor:
        """log p(x|z) or log p(x, z), whichever was given, checked."""
        name = "log_joint" if self.joint else "log_likelihood"
        value = self.target(z)
        if not isinstance(value, Tensor) or value.shape != z.shape[:-1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{name}(z) must have shape {tuple(z.shape[:-1])} for z {tuple(z.shape)}, got {got}"
            )
        if z.requires_grad and not value.requires_grad:
            raise ValueError(f"{name}(z) has no gradient in z: it left the graph")
        # Checked on a CPU only: elsewhere it would wait for the device, and NaN shows in the loss.
        looks = value.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks and value.isnan().any():
            raise ValueError(f"{name}(z) is NaN at {int(value.isnan().sum())} samples")
        return value


def elbo(draws, *, beta=1.0, free_bits=0.0, free_bits_per="dimension"):
    """mean_k log p(x|z_k) - beta KL(q || p), with the KL in closed form (K&W, eq. 7).

    The default: it is unbiased, and has the lowest variance far from the posterior. ``free_bits``
    nats of KL, per dimension or in total, cost nothing (Kingma et al., "Improved variational
    inference with inverse autoregressive flow", 2016, here per example). They keep latents in use
    early on, but the value is then no bound.
    """
    beta = validate.number("beta", beta, -validate.FINITE, validate.FINITE)
    free_bits = validate.number("free_bits", free_bits, least=0.0, most=validate.FINITE)
    validate.choice("free_bits_per", free_bits_per, ("dimension", "total"))
    z, log_ratio = draws.sample()
    log_likelihood = draws.log_likelihood(z)
    least = scalar(free_bits, log_ratio)
    if free_bits and free_bits_per == "dimension":
        kl = draws.kl_per_dimension().clamp(min=least).sum(-1)
    else:
        kl = draws.kl().clamp(min=least) if free_bits else draws.kl()
    log_weights = (log_likelihood + log_ratio).detach()
    return log_weights, log_likelihood.mean(0) - beta * kl


def elbo_monte_carlo(draws, *, beta=1.0):
    """mean_k [log p(x|z_k) + beta (log p(z_k) - log q(z_k|x))] (K&W, eq. 6).

    For priors without a closed-form KL. log q is computed from the noise, so that each sample's
    gradient is that of ``elbo-entropy``; only the value is noisier. It hurts near the posterior,
    where the gradient's noise stays. STL cancels that noise.
    """
    beta = validate.number("beta", beta, -validate.FINITE, validate.FINITE)
    z, log_ratio = draws.sample()
    if beta == 1.0:
        log_weights = draws.log_target(z) + log_ratio
        return log_weights, log_weights.mean(0)
    log_likelihood = draws.log_likelihood(z)
    return log_likelihood + log_ratio, (log_likelihood + beta * log_ratio).mean(0)


def elbo_entropy(draws):
    """mean_k log p(x, z_k) + H[q], with the entropy in closed form (Hoffman & Johnson 2016).

    For a joint that does not split into likelihood and prior, as in Bayesian inference. The
    gradient is that of ``elbo-monte-carlo``.
    """
    z, minus_log_q = draws.sample(improper_prior=True)
    log_joint = draws.log_joint(z)
    return log_joint + minus_log_q, log_joint.mean(0) + textbook.gaussian_entropy(
        *accumulate(draws.logvar)
    )


def stl(draws):
    """ "Sticking the landing": the ELBO without the score of q (Roeder et al. 2017).

    The variance of its gradient is zero where q is the posterior. It is best late in training, with
    a q that can reach the posterior. It hurts far from the posterior: the score that it drops may
    be correlated with the rest, and then its variance is larger than the ELBO's.
    """
    z, log_ratio = draws.sample("path")
    log_weights = draws.log_target(z) + log_ratio
    return log_weights, log_weights.mean(0)


def reinforce(draws):
    """The ELBO by the score function; the baseline of each sample is the mean of the others.

    Mnih & Rezende 2016, section 2.3; Kool et al. 2019. For models whose log-likelihood has no
    gradient in z, or whose z is discrete. It hurts wherever there is such a gradient: its variance
    grows with the dimension, to orders of magnitude above that of a reparameterised gradient.
    """
    z = draws.sample()[0].detach()
    leaves_another(len(z), "reinforce")
    log_joint, log_q = draws.log_joint(z), draws.log_q_score(z)
    log_weights = (log_joint - log_q).detach()
    others = (log_weights.sum(0) - log_weights) / (len(z) - 1)
    signal = finite_or_zero(log_weights - others)
    surrogate = (signal * log_q + log_joint).mean(0)
    return log_weights, surrogate, log_weights.mean(0)


def vimco(draws):
    """IWAE's bound by the score function with leave-one-out baselines (Mnih & Rezende 2016).

    The baseline of sample k is the bound with w_k replaced by the geometric mean of the
    others (eq. 7 to 10). For discrete or black-box models with several samples.
    """
    z = draws.sample()[0].detach()
    leaves_another(len(z), "vimco")
    log_joint, log_q = draws.log_joint(z), draws.log_q_score(z)
    log_ratio = log_joint - log_q
    log_weights = log_ratio.detach()
    samples = len(z)
    diagonal = torch.eye(samples, dtype=torch.bool, device=z.device)
    diagonal = diagonal.view(samples, samples, *(1,) * (log_weights.dim() - 1))
    table = log_weights.unsqueeze(1).expand(samples, samples, *log_weights.shape[1:])
    geometric = torch.where(diagonal, 0.0, table).sum(0) / (samples - 1)
    without, _ = draws.weigh(torch.where(diagonal, geometric, table))
    bound, weights = draws.weigh(log_weights)
    signal = finite_or_zero(bound - without)
    weighted = weighted_sum(weights, log_ratio)
    return log_weights, (signal * log_q).sum(0) + weighted, bound


def iwae(draws):
    """log (1/K) sum_k w_k, a bound that tightens as K grows (Burda et al. 2016, eq. 8).

    For theta, and to evaluate a model. It hurts phi: the signal-to-noise ratio of the gradient in
    phi falls as K^(-1/2) (Rainforth et al. 2018).
    """
    log_weights = draws.log_weights()
    bound, weights = draws.weigh(log_weights)
    return log_weights, weighted_sum(weights, log_weights), bound


def miwae(draws, *, groups=1):
    """The mean over M groups of IWAE's bound of K = num_samples / M (Rainforth et al. 2018).

    Between IWAE (M = 1) and the ELBO (K = 1): it trades tightness for a better encoder gradient.
    """
    log_weights = draws.log_weights()
    grouped = in_groups(log_weights, groups)  # [K, M, ...]
    bounds, weights = draws.weigh(grouped)
    return log_weights, weighted_sum(weights, grouped).mean(0), bounds.mean(0)


def ciwae(draws, *, mix=0.5):
    """mix ELBO + (1 - mix) IWAE on the same samples (Rainforth et al. 2018, eq. 12)."""
    mix = validate.number("mix", mix, least=0.0, most=1.0)
    if mix in (0, 1):  # 0 times a bound of -inf is not 0
        return elbo_monte_carlo(draws) if mix else iwae(draws)
    log_weights = draws.log_weights()
    bound, weights = draws.weigh(log_weights)
    surrogate = mix * log_weights.mean(0) + (1 - mix) * weighted_sum(weights, log_weights)
    return log_weights, surrogate, mix * log_weights.detach().mean(0) + (1 - mix) * bound


def piwae(draws, *, groups=1):
    """IWAE over all M K samples for theta, MIWAE over M groups of K for phi (Rainforth 2018).

    For a large budget of samples it is the best of both. The value is IWAE's over all of them.
    """
    z, log_ratio = draws.sample()
    leaf = z.detach().requires_grad_(z.requires_grad)
    log_target = draws.log_target(leaf)
    log_weights = (log_target + log_ratio).detach()
    bound, weights = draws.weigh(log_weights)
    _, grouped = draws.weigh(in_groups(log_weights, groups))
    encoder_weights = grouped.transpose(0, 1).reshape(log_weights.shape) / groups
    surrogate = weighted_sum(weights, log_target)
    if z.requires_grad:
        weighted = weighted_sum(encoder_weights, log_target).sum()
        (gradient,) = torch.autograd.grad(weighted, leaf, retain_graph=True)
        surrogate = surrogate + (gradient * z).sum((0, -1))
        surrogate = surrogate + weighted_sum(encoder_weights, log_ratio)
    else:
        encoder_weights = torch.zeros_like(weights)
    if any(p is not None and p.requires_grad for p in draws.prior):
        # The prior is part of the model: its gradient must have the weights of theta, not of phi.
        difference = weights - encoder_weights
        surrogate = surrogate + weighted_sum(difference, draws.log_prior(z.detach()))
    return log_weights, surrogate, bound


def dreg(draws):
    """Doubly reparameterised IWAE (Tucker et al. 2019, eq. 8): v_k for theta, v_k^2 for phi.

    The gradient of IWAE's bound, unbiased, in a form whose encoder part gains from K: its
    signal-to-noise ratio rises as K^(1/2). Like STL it hurts where K = 1 and q is far from the
    posterior.
    """
    z, log_ratio = draws.sample("dreg")
    log_weights = draws.log_target(z) + log_ratio
    bound, weights = draws.weigh(log_weights)
    return log_weights, weighted_sum(weights, log_weights), bound


def rws(draws):
    """Reweighted wake-sleep: IWAE for theta, the wake update for phi (Le et al. 2019).

    phi follows sum_k v_k grad log q(z_k|x), towards the inclusive KL(p(z|x) || q). It needs no
    reparameterisation, and gains from K. It is biased at finite K, and is the gradient of no bound.
    """
    z = draws.sample()[0].detach()
    log_joint, log_q = draws.log_joint(z), draws.log_q_score(z)
    log_weights = (log_joint - log_q).detach()
    bound, weights = draws.weigh(log_weights)
    return log_weights, weighted_sum(weights, log_joint + log_q), bound


def renyi(draws, *, alpha=0.5):
    """Renyi's variational bound, 1/(1 - alpha) log mean_k w_k^(1 - alpha) (Li & Turner 2016).

    alpha = 0 is IWAE and alpha = 1, the limit, the ELBO. alpha > 1 is still more mode-seeking;
    alpha < 0 is a bound from above. At finite K the Monte Carlo estimate is biased, downwards for
    alpha < 1.
    """
    alpha = validate.number("alpha", alpha, -validate.FINITE, validate.FINITE)
    if alpha == 1:
        return elbo_monte_carlo(draws)
    log_weights = draws.log_weights()
    bound, weights = draws.weigh(log_weights, alpha)
    return log_weights, weighted_sum(weights, log_weights), bound


def cubo(draws, *, order=2.0):
    """The chi upper bound, 1/n log mean_k w_k^n >= log p(x) (Dieng et al. 2017): Renyi's 1 - n.

    With an ELBO it brackets the evidence. Its estimate is biased downwards, strongly so where the
    weights vary: with few samples it may be below log p(x). It is an upper bound: minimise it.
    """
    order = validate.number("order", order, least=0.0, most=validate.FINITE)
    if order <= 0:
        raise ValueError(f"order must be positive, got {order}")
    return renyi(draws, alpha=1.0 - order)


def jackknife(draws, *, order=1):
    """IWAE with its bias of order 1/K ... 1/K^m removed (Nowozin 2018, eq. 9 and 10).

    To evaluate log p(x): an m-fold jackknife has a bias of O(K^-(m+1)), and more variance. It is no
    bound. Order 1 costs O(K) sums of all weights but one. Order m costs K (K - 1) ... (K - m + 1)
    sums. MAX_SUMS of them are allowed: K = 316 for order 2, and 47 for order 3.
    """
    samples = draws.num_samples
    order = validate.count("order", order, least=0)
    if order >= samples:
        raise ValueError(f"order must be less than num_samples = {samples}, got {order}")
    if math.perm(samples, order) > MAX_SUMS:
        raise ValueError(
            f"order {order} with {samples} samples needs {math.perm(samples, order)} sums of "
            f"weights per example, more than {MAX_SUMS}: take fewer samples, or a lower order"
        )
    log_weights = draws.log_weights()
    # In float64: the coefficients, up to K^m / m!, multiply rounding errors.
    leaf = in_float64(log_weights.detach()).requires_grad_()
    with torch.enable_grad():
        value: Any = 0.0
        for left_out in range(order + 1):
            size = samples - left_out
            scale = size**order / (math.factorial(order - left_out) * math.factorial(left_out))
            bounds = log_sums_without(leaf, left_out) - math.log(size)
            value = value + (-1) ** left_out * scale * bounds.mean(0)
        (shares,) = torch.autograd.grad(value.sum(), leaf)
    weights = torch.where(leaf == -torch.inf, 0.0, shares).to(log_weights)
    impossible = log_weights.detach().max(0).values == -torch.inf
    value = torch.where(impossible, -torch.inf, value.to(log_weights))
    return log_weights, weighted_sum(weights, log_weights), value


MAX_SUMS = 100_000


def log_sums_without(log_weights, count):
    """log of the sum of all but ``count`` weights [K, ...], for each choice in order: [n, ...].

    Each is added up from the sums before and after a weight. The difference S - w_k would cancel
    where w_k is nearly all of S.
    """
    if count == 0:
        return torch.logsumexp(log_weights, 0, keepdim=True)
    for _ in range(count - 1):  # a new second dimension says which was left out
        first = torch.arange(len(log_weights) - 1, device=log_weights.device).unsqueeze(1)
        left_out = torch.arange(len(log_weights), device=log_weights.device)
        log_weights = log_weights[first + (first >= left_out)]
    none = torch.full_like(log_weights[:1], -torch.inf)
    before = torch.cat([none, torch.logcumsumexp(log_weights[:-1], 0)])
    after = torch.cat([torch.logcumsumexp(log_weights[1:].flip(0), 0).flip(0), none])
    return torch.logaddexp(before, after).flatten(0, count - 1)


# These need independent samples: for leave-one-out baselines, and for the second
# reparameterisation, which moves one sample while the others stay.
INDEPENDENT_ONLY = ("reinforce", "vimco", "dreg")


@dataclass(frozen=True)
class Estimator:
    """An estimator's properties, known before it is run."""

    function: Callable[..., Any]
    paper: str
    bound: str  # what the value estimates
    value_unbiased: bool  # for that bound
    gradient_unbiased: str  # the parameters in which its gradient is unbiased
    reparameterised: bool  # needs the gradient of the log-likelihood in z


ESTIMATORS = {
    "elbo": Estimator(elbo, "Kingma & Welling 2014, eq. 7", "ELBO", True, "theta, phi", True),
    "elbo-monte-carlo": Estimator(
        elbo_monte_carlo, "Kingma & Welling 2014, eq. 6", "ELBO", True, "theta, phi", True
    ),
    "elbo-entropy": Estimator(
        elbo_entropy, "Hoffman & Johnson 2016", "ELBO", True, "theta, phi", True
    ),
    "stl": Estimator(stl, "Roeder et al. 2017", "ELBO", True, "theta, phi", True),
    "reinforce": Estimator(
        reinforce, "Mnih & Rezende 2016; Kool et al. 2019", "ELBO", True, "theta, phi", False
    ),
    "vimco": Estimator(vimco, "Mnih & Rezende 2016", "IWAE", True, "theta, phi", False),
    "iwae": Estimator(iwae, "Burda et al. 2016", "IWAE", True, "theta, phi", True),
    "miwae": Estimator(
        miwae, "Rainforth et al. 2018", "IWAE of K / groups", True, "theta, phi", True
    ),
    "ciwae": Estimator(
        ciwae, "Rainforth et al. 2018", "mix ELBO + (1 - mix) IWAE", True, "theta, phi", True
    ),
    "piwae": Estimator(
        piwae, "Rainforth et al. 2018", "IWAE; for phi IWAE of K / groups", True, "theta, phi", True
    ),
    "dreg": Estimator(dreg, "Tucker et al. 2019", "IWAE", True, "theta, phi", True),
    "rws": Estimator(rws, "Le et al. 2019", "IWAE", True, "theta", False),
    "renyi": Estimator(renyi, "Li & Turner 2016", "Renyi bound of order alpha", False, "", True),
    "cubo": Estimator(cubo, "Dieng et al. 2017", "chi upper bound", False, "", True),
    "jackknife": Estimator(jackknife, "Nowozin 2018", "log p(x)", False, "", True),
}


def estimate(
    name: str,
    mu: Tensor,
    logvar: Tensor,
    num_samples: int = 1,
    *,
    log_likelihood: Callable[[Tensor], Tensor] | None = None,
    log_joint: Callable[[Tensor], Tensor] | None = None,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    prior: Mixture | None = None,
    sampling: str = "independent",
    generator: Generator | None = None,
    impl: Implementation = "auto",
    **options: Any,
) -> Estimate:
    """Estimate a bound of log p(x), and a gradient of it, from K samples of q.

    Args:
        name: a key of :data:`ESTIMATORS`.
        mu, logvar: of q(z|x), ``[..., D]``.
        num_samples: K, over all groups.
        log_likelihood: a function from z ``[K, ..., D]`` to log p(x|z) ``[K, ...]``, in nats: for
            instance minus a likelihood of :mod:`fused_elbo`, which takes ``[K, B, ...]``.
        log_joint: instead of it, a function from z to log p(x, z), the prior included. ``"elbo"``
            needs ``log_likelihood``.
        prior_mu, prior_logvar: of the prior, ``[D]`` or as ``mu``; None means 0.
        prior: instead of them, a :class:`fused_elbo.Mixture`. ``"elbo"`` has no KL to it in closed
            form: ``"elbo-monte-carlo"`` and ``"stl"`` estimate the same bound.
        sampling: ``"independent"``, ``"antithetic"`` or ``"sobol"``. The score-function estimators
            and ``"dreg"`` take independent samples only. With the other two, IWAE and its relatives
            estimate a bound of their own, which is below log p(x) but not L_K. ``"sobol"`` samples
            are drawn by the reference.
        generator: a ``torch.Generator`` on the device of ``mu``; torch's default if None.
        impl: as in :func:`fused_elbo.gaussian_log_prob`, for samples, densities and weights.
        **options: those of the estimator: ``beta``, ``free_bits``, ``free_bits_per`` (``"elbo"``),
            ``beta`` (``"elbo-monte-carlo"``), ``groups`` (``"miwae"``, ``"piwae"``), ``mix``
            (``"ciwae"``), ``alpha`` (``"renyi"``), ``order`` (``"cubo"``, ``"jackknife"``).

    Returns:
        :class:`Estimate`: ``(value, surrogate, log_weights, z)``. Train with
        ``(-estimate.surrogate.mean()).backward()``; report ``value``.

    Raises:
        ValueError: an unknown name or option; a K that is too small for the estimator, is odd with
            antithetic pairs, or is no multiple of ``groups``; a callable whose result has the wrong
            shape, is NaN (checked on CPUs) or has left the graph.

    >>> mu = torch.zeros(3, 2, requires_grad=True)
    >>> log_likelihood = lambda z: -0.5 * (z - 1).square().sum(-1)
    >>> result = estimate("iwae", mu, torch.zeros(3, 2), 8, log_likelihood=log_likelihood)
    >>> result.value.shape, result.log_weights.shape
    (torch.Size([3]), torch.Size([8, 3]))
    """
    validate.choice("name", name, tuple(ESTIMATORS))
    validate.tensors(mu=mu, logvar=logvar, prior_mu=prior_mu, prior_logvar=prior_logvar)
    shape = validate.broadcast(mu=mu, logvar=logvar)
    validate.within(shape, prior_mu=prior_mu, prior_logvar=prior_logvar)
    if (log_likelihood is None) == (log_joint is None):
        raise ValueError("expected exactly one of log_likelihood and log_joint")
    if log_joint is not None and not (prior_mu is prior_logvar is prior is None):
        raise ValueError(
            "prior, prior_mu and prior_logvar go with log_likelihood; log_joint is given"
        )
    if prior is not None:
        check_prior(prior, mu, logvar, prior_mu, prior_logvar)
    estimator = ESTIMATORS[name]
    if sampling != "independent" and name in INDEPENDENT_ONLY:
        raise ValueError(f"{name} needs sampling='independent', got {sampling!r}")
    allowed = tuple(inspect.signature(estimator.function).parameters)[1:]
    for option in options:
        if option not in allowed:
            takes = f"takes {', '.join(allowed)}" if allowed else "takes no options"
            raise ValueError(f"{name} {takes}, got {option}")
    mu, logvar = mu.expand(shape), logvar.expand(shape)
    num_samples = validate.count("num_samples", num_samples)
    validate.choice("sampling", sampling, samplers.SAMPLINGS)
    target: Any = log_joint if log_likelihood is None else log_likelihood
    draws = Draws(
        target,
        log_joint is not None,
        mu,
        logvar,
        (prior_mu, prior_logvar) if prior is None else prior,
        num_samples,
        sampling,
        generator,
        impl,
    )
    log_weights, surrogate, *value = estimator.function(draws, **options)
    value = value[0] if value else surrogate
    return Estimate(value.detach(), surrogate, log_weights.detach(), draws.z.detach())


def leaves_another(samples, name):
    """Raise where a leave-one-out baseline has no other sample."""
    if samples < 2:
        raise ValueError(f"{name} needs num_samples >= 2, got {samples}")


def finite_or_zero(signal):
    """A learning signal, set to 0 where it is not finite, as for weights that are 0."""
    return torch.where(signal.isfinite(), signal, 0.0)


def in_groups(log_weights, groups):
    """[M K, ...] as [K, M, ...]."""
    samples = len(log_weights)
    groups = validate.count("groups", groups)
    if samples % groups:
        raise ValueError(f"num_samples must be a multiple of groups, got {samples} and {groups}")
    return log_weights.unflatten(0, (groups, samples // groups)).transpose(0, 1)


def weighted_sum(weights, values):
    """sum_k v_k value_k over the first dimension; a weight of 0 drops a value of -inf."""
    return torch.where(weights == 0, 0.0, weights * values).sum(0)
