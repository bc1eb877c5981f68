"""Models whose evidence is known exactly: what the estimators are judged against.

Closed forms, batched, in nats and in the dtype of what they are given: give float64. The
models are targets too: ``log_likelihood`` and ``log_joint`` are what an estimator takes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import textbook

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
    """KL(q || p) = 1/2 [tr(P^-1 Q) + d' P^-1 d - D + log |P| - log |Q|], d = mean_p - mean_q.

    Covariances Q and P. Cover & Thomas, "Elements of Information Theory", 2006, chapter 9.

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
    """D_alpha(q || p) = 1/(alpha - 1) log E_q[(q / p)^(alpha - 1)]; infinite where that is.

    With S = alpha P + (1 - alpha) Q, which must be positive definite,
    alpha/2 d' S^-1 d - 1 / (2 (alpha - 1)) log(|S| / (|Q|^(1 - alpha) |P|^alpha)). At alpha = 1
    its limit, the KL. Gil, Alajaji & Linder, "Renyi divergence measures for commonly used
    univariate continuous distributions", 2013, table 2 (multivariate Gaussian).
    """
    if alpha == 1:
        return kl_divergence(q, p)
    mixed = alpha * p.covariance + (1 - alpha) * q.covariance
    factor, failed = torch.linalg.cholesky_ex(mixed)
    # Where S is not positive definite the integral diverges; any factor does until the end.
    fine = (failed == 0)[..., None, None]
    factor = torch.where(
        fine, factor, torch.eye(mixed.shape[-1], dtype=mixed.dtype, device=mixed.device)
    )
    d = (p.mean - q.mean).unsqueeze(-1)
    distance = (d * torch.cholesky_solve(d, factor)).sum((-2, -1))
    mixed_log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_ratio = mixed_log_det - (1 - alpha) * log_det(q.covariance) - alpha * log_det(p.covariance)
    value = 0.5 * alpha * distance - 0.5 / (alpha - 1) * log_ratio
    # The integral is E_p[(q/p)^alpha]: infinite, and so is the divergence, with the sign of
    # alpha / (alpha - 1) ... for alpha outside [0, 1].
    infinite = torch.full_like(value, torch.inf if alpha > 1 else -torch.inf)
    return torch.where(failed == 0, value, infinite)


def chi_square_divergence(p: Gaussian, q: Gaussian) -> Tensor:
    """chi^2(p || q) = E_q[(p / q)^2] - 1 = exp(D_2(p || q)) - 1.

    The limit of K / ESS is 1 + chi^2(posterior || q), so 1 / (1 + chi^2) is the share of
    effective samples. Nielsen & Nock, "On the chi square and higher-order chi distances for
    approximating f-divergences", 2014.
    """
    return torch.expm1(renyi_divergence(p, q, 2.0))


@dataclass(frozen=True)
class LinearGaussianModel:
    """p(z) = N(0, I), p(x|z) = N(W z + b, sigma^2 I): factor analysis with one noise variance.

    ``weight`` W [P, D], ``bias`` b [P], ``noise_variance`` sigma^2. Examples x [B, P]; every
    result is one number an example. Tipping & Bishop, "Probabilistic principal component
    analysis", JRSS B 1999; Lucas et al., "Don't blame the ELBO!", NeurIPS 2019.

    >>> model = LinearGaussianModel(torch.ones(3, 1), torch.zeros(3), 0.5)
    >>> model.log_evidence(torch.zeros(2, 3)).shape
    torch.Size([2])
    """

    weight: Tensor
    bias: Tensor
    noise_variance: float | Tensor

    def _precision(self) -> Tensor:
        """The posterior's: I + W' W / sigma^2 [D, D]; it is the same for every x."""
        eye = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        return eye + self.weight.mT @ self.weight / self.noise_variance

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), with ``z`` [..., B, D]: [..., B]."""
        variance = torch.as_tensor(self.noise_variance, dtype=x.dtype)
        return textbook.gaussian_log_prob(x, z @ self.weight.mT + self.bias, variance.log())

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z): [..., B]."""
        zero = torch.zeros_like(z)
        return self.log_likelihood(x, z) + textbook.gaussian_log_prob(z, zero, zero)

    def evidence(self) -> Gaussian:
        """p(x) = N(b, W W' + sigma^2 I) (Tipping & Bishop, eq. 4)."""
        eye = torch.eye(self.weight.shape[0], dtype=self.weight.dtype, device=self.weight.device)
        covariance = self.weight @ self.weight.mT + self.noise_variance * eye
        return Gaussian(self.bias, covariance)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of each example."""
        return gaussian_log_prob(x, self.evidence())

    def posterior(self, x: Tensor) -> Gaussian:
        """p(z|x) = N(M^-1 W' (x - b) / sigma^2, M^-1), M = I + W' W / sigma^2."""
        covariance = torch.linalg.inv(self._precision())
        mean = (x - self.bias) @ self.weight @ covariance / self.noise_variance
        return Gaussian(mean, covariance.expand(*mean.shape[:-1], -1, -1))

    def optimal_diagonal(self, x: Tensor) -> DiagonalGaussian:
        """The diagonal q with the greatest ELBO: the posterior's mean, variances 1 / M_dd."""
        mean = self.posterior(x).mean
        return DiagonalGaussian(mean, -self._precision().diagonal().log().expand_as(mean))

    def elbo(self, x: Tensor, q: DiagonalGaussian) -> Tensor:
        """The exact ELBO of a diagonal q, no sampling: E_q[log p(x|z)] - KL(q || N(0, I)).

        E_q[log p(x|z)] = log N(x; W mu + b, sigma^2 I) - sum_d exp(logvar_d) |W_d|^2 / (2 sigma^2).
        """
        spread = (q.logvar.exp() * self.weight.square().sum(0)).sum(-1)
        expected = self.log_likelihood(x, q.mu) - 0.5 * spread / self.noise_variance
        return expected - textbook.gaussian_kl(q.mu, q.logvar)


def fit_ppca(x: Tensor, latents: int) -> LinearGaussianModel:
    """The maximum-likelihood pPCA of the data ``x`` [N, P], in closed form.

    With the eigenvalues l_1 >= l_2 ... of the sample covariance, sigma^2 is the mean of those
    past ``latents`` and W = U (L - sigma^2 I)^(1/2). A linear VAE has this as its greatest
    ELBO too: W's columns are orthogonal, so the posterior is diagonal and the gap is zero
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
    """y ~ N(X w, sigma^2 I), w ~ N(0, tau^2 I): all weights, the intercept too, are latent.

    ``design`` X [N, D] (with a column of ones for an intercept), ``targets`` y [N],
    ``noise_variance`` sigma^2, ``prior_variance`` tau^2. One data set is one example: results
    are scalars. Bishop, "Pattern Recognition and Machine Learning", 2006, sections 3.3, 3.5.

    >>> model = BayesianLinearRegression(torch.ones(3, 1), torch.ones(3), 1.0, 1.0)
    >>> model.log_evidence() >= model.elbo(model.optimal_diagonal())
    tensor(True)
    """

    design: Tensor
    targets: Tensor
    noise_variance: float
    prior_variance: float

    def _precision(self) -> Tensor:
        """The posterior's: X' X / sigma^2 + I / tau^2 [D, D] (Bishop, eq. 3.54)."""
        eye = torch.eye(self.design.shape[1], dtype=self.design.dtype, device=self.design.device)
        return self.design.mT @ self.design / self.noise_variance + eye / self.prior_variance

    def _log(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.design.dtype).log()

    def log_likelihood(self, w: Tensor) -> Tensor:
        """log p(y|w), ``w`` [..., D]: [...]."""
        fitted = w @ self.design.mT
        return textbook.gaussian_log_prob(self.targets, fitted, self._log(self.noise_variance))

    def log_joint(self, w: Tensor) -> Tensor:
        """log p(y, w): [...]."""
        zero, logvar = torch.zeros_like(w), self._log(self.prior_variance)
        return self.log_likelihood(w) + textbook.gaussian_log_prob(w, zero, logvar)

    def posterior(self) -> Gaussian:
        """p(w|y) = N(L^-1 X' y / sigma^2, L^-1) with the precision L."""
        covariance = torch.linalg.inv(self._precision())
        mean = covariance @ (self.design.mT @ self.targets) / self.noise_variance
        return Gaussian(mean, covariance)

    def log_evidence(self) -> Tensor:
        """log p(y) = log N(y; 0, sigma^2 I + tau^2 X X'), through the D x D posterior.

        Bayes' rule at the posterior's mean m: log p(y, m) - log p(m|y).
        """
        posterior = self.posterior()
        return self.log_joint(posterior.mean) - gaussian_log_prob(posterior.mean, posterior)

    def optimal_diagonal(self) -> DiagonalGaussian:
        """The diagonal q with the greatest ELBO: the posterior's mean, variances 1 / L_dd."""
        return DiagonalGaussian(self.posterior().mean, -self._precision().diagonal().log())

    def mean_field_gap(self) -> Tensor:
        """log p(y) - ELBO at that q: 1/2 (sum_d log L_dd - log |L|)."""
        precision = self._precision()
        return 0.5 * (precision.diagonal().log().sum() - log_det(precision))

    def elbo(self, q: DiagonalGaussian) -> Tensor:
        """The exact ELBO of a diagonal q, no sampling: E_q[log p(y|w)] - KL(q || prior)."""
        spread = (q.logvar.exp() * self.design.square().sum(0)).sum(-1)
        expected = self.log_likelihood(q.mu) - 0.5 * spread / self.noise_variance
        zero, logvar = torch.zeros_like(q.mu), self._log(self.prior_variance)
        return expected - textbook.gaussian_kl(q.mu, q.logvar, zero, logvar)
