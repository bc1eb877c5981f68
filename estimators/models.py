"""Models whose evidence is known exactly: the estimators are judged against them.

All results are closed forms, batched, in nats and in the dtype of the arguments, best float64. The
models are also targets: estimators take their ``log_likelihood`` and ``log_joint``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import textbook

LOG_2PI = textbook.LOG_2PI


class Gaussian(NamedTuple):
    """N(mean, covariance): ``mean`` [..., D], ``covariance`` [..., D, D]."""

    mean: Tensor
    covariance: Tensor


class DiagonalGaussian(NamedTuple):
    """N(mu, diag exp logvar), both [..., D]."""

    mu: Tensor
    logvar: Tensor


def log_det(matrix: Tensor) -> Tensor:
    """log |matrix| of symmetric positive definite matrices [..., D, D]."""
    return 2 * torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def as_full(q: DiagonalGaussian) -> Gaussian:
    """The same Gaussian with a covariance matrix."""
    return Gaussian(q.mu, torch.diag_embed(q.logvar.exp()))


def gaussian_log_prob(x: Tensor, p: Gaussian) -> Tensor:
    """log N(x; mean, covariance) = -1/2 [d' S^-1 d + log |S| + D log 2 pi], d = x - mean."""
    factor = torch.linalg.cholesky(p.covariance)
    d = (x - p.mean).unsqueeze(-1)
    white = torch.linalg.solve_triangular(factor, d, upper=False).squeeze(-1)
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (white.square().sum(-1) + x.shape[-1] * LOG_2PI) - half_log_det


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    r"""KL divergence of two Gaussians with full covariances, in nats.

    .. math:: KL(q \| p) = \tfrac12 \big[\mathrm{tr}(P^{-1} Q) + d^T P^{-1} d - D + \log |P|
              - \log |Q|\big]

    with the covariances Q and P, and the difference d of the means. Cover & Thomas, "Elements of
    Information Theory", 2006, chapter 9.

    >>> one = torch.eye(2, dtype=torch.float64)
    >>> kl_divergence(Gaussian(one[0], one), Gaussian(0 * one[0], one))
    tensor(0.5000, dtype=torch.float64)
    """
    factor = torch.linalg.cholesky(p.covariance)
    d = (p.mean - q.mean).unsqueeze(-1)
    trace = torch.cholesky_solve(q.covariance, factor).diagonal(dim1=-2, dim2=-1).sum(-1)
    distance = (d * torch.cholesky_solve(d, factor)).sum((-2, -1))
    dimension = p.mean.shape[-1]
    return 0.5 * (trace + distance - dimension + log_det(p.covariance) - log_det(q.covariance))


def renyi_divergence(q: Gaussian, p: Gaussian, alpha: float) -> Tensor:
    r"""Renyi divergence of order alpha of two Gaussians, in nats; infinite where its integral is.

    .. math:: D_\alpha(q \| p) = \tfrac{1}{\alpha - 1} \log E_q\big[(q / p)^{\alpha - 1}\big]
              = \tfrac{\alpha}{2} d^T S^{-1} d
              - \tfrac{1}{2 (\alpha - 1)} \log \frac{|S|}{|Q|^{1 - \alpha} |P|^\alpha}

    with S = alpha P + (1 - alpha) Q, which must be positive definite. At alpha = 1 it is the limit,
    the KL. Gil, Alajaji & Linder, "Renyi divergence measures for commonly used
    univariate continuous distributions", 2013, table 2 (multivariate Gaussian).
    """
    if alpha == 1:
        return kl_divergence(q, p)
    mixed = alpha * p.covariance + (1 - alpha) * q.covariance
    factor, failed = torch.linalg.cholesky_ex(mixed)
    # Where S is not positive definite the integral diverges; the identity stands in until the end.
    fine = (failed == 0)[..., None, None]
    factor = torch.where(
        fine, factor, torch.eye(mixed.shape[-1], dtype=mixed.dtype, device=mixed.device)
    )
    d = (p.mean - q.mean).unsqueeze(-1)
    distance = (d * torch.cholesky_solve(d, factor)).sum((-2, -1))
    mixed_log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_ratio = mixed_log_det - (1 - alpha) * log_det(q.covariance) - alpha * log_det(p.covariance)
    value = 0.5 * alpha * distance - 0.5 / (alpha - 1) * log_ratio
    # The integral E_p[(q/p)^alpha] is infinite, and so is the divergence, whose sign is that of
    # 1 / (alpha - 1).
    infinite = torch.full_like(value, torch.inf if alpha > 1 else -torch.inf)
    return torch.where(failed == 0, value, infinite)


def chi_square_divergence(p: Gaussian, q: Gaussian) -> Tensor:
    r"""Chi-square divergence of two Gaussians.

    .. math:: \chi^2(p \| q) = E_q\big[(p / q)^2\big] - 1 = e^{D_2(p \| q)} - 1

    The limit of K / ESS is 1 + chi^2(posterior || q), so 1 / (1 + chi^2) is the share of
    effective samples. Nielsen & Nock, "On the chi square and higher-order chi distances for
    approximating f-divergences", 2014.
    """
    return torch.expm1(renyi_divergence(p, q, 2.0))


@dataclass(frozen=True)
class LinearGaussianModel:
    """p(z) = N(m, S), p(x|z) = N(W z + b, diag sigma^2): factor analysis, with any prior.

    ``weight`` W is [P, D] and ``bias`` b [P]. ``noise_variance`` sigma^2 is one number, or one per
    measurement [P]. ``prior`` is a :class:`Gaussian` of D dimensions, or the number s of
    N(0, s I). Examples x are [B, P]; every result has one number per example. Bishop, "Pattern
    Recognition and Machine Learning", 2006, section 2.3.3; Tipping & Bishop, "Probabilistic
    principal component analysis", JRSS B 1999; Lucas et al., "Don't blame the ELBO!", NeurIPS 2019.

    >>> model = LinearGaussianModel(torch.ones(3, 1), torch.zeros(3), 0.5)
    >>> model.log_evidence(torch.zeros(2, 3)).shape
    torch.Size([2])
    """

    weight: Tensor
    bias: Tensor
    noise_variance: float | Tensor
    prior: float | Gaussian = 1.0

    def __post_init__(self):
        pixels, latents = self.weight.shape[-2:]
        noise = self.noise_variance
        if isinstance(noise, Tensor) and noise.shape not in ((), (1,), (pixels,)):
            raise ValueError(f"expected noise_variance [] or [{pixels}], got {tuple(noise.shape)}")
        if isinstance(self.prior, Gaussian):
            shapes = tuple(self.prior.mean.shape), tuple(self.prior.covariance.shape)
            if shapes != ((latents,), (latents, latents)):
                raise ValueError(
                    f"expected a prior of mean [{latents}] and covariance [{latents}, {latents}], "
                    f"got {shapes[0]} and {shapes[1]}"
                )

    def _noise(self) -> Tensor:
        """sigma^2, [] or [P]."""
        return _beside(self.noise_variance, self.weight)

    def full_prior(self) -> Gaussian:
        """p(z) = N(m, S)."""
        if isinstance(self.prior, Gaussian):
            return self.prior
        zero = self.weight.new_zeros(self.weight.shape[-1])
        return Gaussian(zero, self.prior * torch.diag_embed(torch.ones_like(zero)))

    def _information(self) -> Tensor:
        """The precision that each example adds to z: W' diag(1 / sigma^2) W [D, D]."""
        return (self.weight.mT / self._noise()) @ self.weight

    def _precision(self) -> Tensor:
        """The precision of the posterior: S^-1 + W' diag(1 / sigma^2) W [D, D]."""
        return torch.linalg.inv(self.full_prior().covariance) + self._information()

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) [..., B], for ``z`` [..., B, D]."""
        logvar = self._noise().to(x.dtype).log()
        return textbook.gaussian_log_prob(x, z @ self.weight.mT + self.bias, logvar)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) [...], for ``z`` [..., D]."""
        if isinstance(self.prior, Gaussian):
            return gaussian_log_prob(z, self.prior)
        return textbook.gaussian_log_prob(z, torch.zeros_like(z), _log(self.prior, z))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) [..., B], for ``z`` [..., B, D]."""
        return self.log_likelihood(x, z) + self.log_prior(z)

    def evidence(self) -> Gaussian:
        """p(x) = N(W m + b, W S W' + diag sigma^2) (Bishop, eq. 2.115)."""
        prior = self.full_prior()
        covariance = self.weight @ prior.covariance @ self.weight.mT
        noise = torch.diag_embed(self._noise().to(covariance.device).expand(len(covariance)))
        return Gaussian(prior.mean @ self.weight.mT + self.bias, covariance + noise)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of each example [B]."""
        return gaussian_log_prob(x, self.evidence())

    def posterior(self, x: Tensor) -> Gaussian:
        """p(z|x) = N(C (W' diag(1 / sigma^2) (x - b) + S^-1 m), C), C the inverse precision."""
        prior, covariance = self.full_prior(), torch.linalg.inv(self._precision())
        seen = ((x - self.bias) / self._noise()) @ self.weight
        mean = (seen + torch.linalg.solve(prior.covariance, prior.mean)) @ covariance
        return Gaussian(mean, covariance.expand(*mean.shape[:-1], -1, -1))

    def optimal_diagonal(self, x: Tensor) -> DiagonalGaussian:
        """The diagonal q with the greatest ELBO: the posterior's mean m, and variances 1 / M_dd.

        M is the precision of the posterior.
        """
        mean = self.posterior(x).mean
        return DiagonalGaussian(mean, -self._precision().diagonal().log().expand_as(mean))

    def mean_field_gap(self) -> Tensor:
        """log p(x) - ELBO at that q, the same for all x: 1/2 (sum_d log M_dd - log |M|)."""
        precision = self._precision()
        return 0.5 * (precision.diagonal().log().sum() - log_det(precision))

    def elbo(self, x: Tensor, q: DiagonalGaussian | Gaussian) -> Tensor:
        """The exact ELBO of q, without sampling: E_q[log p(x|z)] - KL(q || p).

        E_q[log p(x|z)] = log N(x; W mu + b, diag sigma^2) - 1/2 tr(Q W' diag(1 / sigma^2) W), where
        Q is the covariance of q.
        """
        information = self._information()
        if isinstance(q, Gaussian):
            trace = (q.covariance * information).sum((-2, -1))
            return (
                self.log_likelihood(x, q.mean) - 0.5 * trace - kl_divergence(q, self.full_prior())
            )
        expected = self.log_likelihood(x, q.mu) - 0.5 * q.logvar.exp() @ information.diagonal()
        if isinstance(self.prior, Gaussian):
            return expected - kl_divergence(as_full(q), self.prior)
        zero = torch.zeros_like(q.mu)
        return expected - textbook.gaussian_kl(*q, zero, _log(self.prior, zero))


def _beside(value, like):
    """A tensor or a number, as a tensor in the dtype and on the device of ``like``."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def _log(value, like):
    return _beside(value, like).log()


def fit_ppca(x: Tensor, latents: int) -> LinearGaussianModel:
    """The maximum-likelihood pPCA of the data ``x`` [N, P], in closed form.

    From the eigenvalues l_1 >= l_2 >= ... of the sample covariance, sigma^2 is the mean of those
    after the first ``latents``, and W = U (L - sigma^2 I)^(1/2). A linear VAE has its greatest ELBO
    here too: the columns of W are orthogonal, so the posterior is diagonal and the gap is zero
    (Tipping & Bishop 1999, eq. 7 and 8; Lucas et al. 2019, theorem 1).

    >>> x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> fit_ppca(x, 2).weight.shape
    torch.Size([4, 2])
    """
    if not 0 < latents < x.shape[1]:
        raise ValueError(f"latents must be in 1 ... {x.shape[1] - 1}, got {latents}")
    bias = x.mean(0)
    centred = x - bias
    values, vectors = torch.linalg.eigh(centred.mT @ centred / x.shape[0])
    noise_variance = values[:-latents].mean()
    weight = vectors[:, -latents:] * (values[-latents:] - noise_variance).sqrt()
    return LinearGaussianModel(weight, bias, noise_variance)


@dataclass(frozen=True)
class BayesianLinearRegression:
    """y ~ N(X w, diag sigma^2), w ~ N(m, S): all weights are latent, the intercept included.

    ``design`` X is [N, D], with a column of ones for an intercept, and ``targets`` y [N].
    ``noise_variance`` sigma^2 is one number, or one per target [N]. ``prior`` is a
    :class:`Gaussian`, or the number tau^2 of N(0, tau^2 I). It is the linear-Gaussian model with
    the data set as its one example, so results are scalars. Bishop, "Pattern Recognition and
    Machine Learning", 2006, sections 3.3, 3.5.

    >>> model = BayesianLinearRegression(torch.ones(3, 1), torch.ones(3), 1.0, 1.0)
    >>> model.log_evidence() >= model.elbo(model.optimal_diagonal())
    tensor(True)
    """

    design: Tensor
    targets: Tensor
    noise_variance: float | Tensor
    prior: float | Gaussian

    def model(self) -> LinearGaussianModel:
        """The same model as p(x|z), with x the targets and z the weights."""
        zero = torch.zeros_like(self.targets)
        return LinearGaussianModel(self.design, zero, self.noise_variance, self.prior)

    def log_likelihood(self, w: Tensor) -> Tensor:
        """log p(y|w) [...], for ``w`` [..., D]."""
        return self.model().log_likelihood(self.targets, w)

    def log_joint(self, w: Tensor) -> Tensor:
        """log p(y, w) [...], for ``w`` [..., D]."""
        return self.model().log_joint(self.targets, w)

    def posterior(self) -> Gaussian:
        """p(w|y) = N(C (X' diag(1 / sigma^2) y + S^-1 m), C) (Bishop, eq. 3.49 to 3.54)."""
        return self.model().posterior(self.targets)

    def log_evidence(self) -> Tensor:
        """log p(y) = log N(y; X m, diag sigma^2 + X S X'), through the D x D posterior.

        Bayes' rule at the posterior's mean m: log p(y, m) - log p(m|y).
        """
        posterior = self.posterior()
        return self.log_joint(posterior.mean) - gaussian_log_prob(posterior.mean, posterior)

    def optimal_diagonal(self) -> DiagonalGaussian:
        """The diagonal q with the greatest ELBO: :meth:`LinearGaussianModel.optimal_diagonal`."""
        return self.model().optimal_diagonal(self.targets)

    def mean_field_gap(self) -> Tensor:
        """log p(y) - ELBO at that q: :meth:`LinearGaussianModel.mean_field_gap`."""
        return self.model().mean_field_gap()

    def elbo(self, q: DiagonalGaussian | Gaussian) -> Tensor:
        """The exact ELBO of q, without sampling: E_q[log p(y|w)] - KL(q || prior)."""
        return self.model().elbo(self.targets, q)
