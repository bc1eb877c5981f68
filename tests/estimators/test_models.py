"""The closed forms against SciPy, numerical integrals, torch.distributions, scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from torch.distributions import MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl

from fused_elbo.estimators import models
from fused_elbo.estimators.models import (
    BayesianLinearRegression,
    DiagonalGaussian,
    Gaussian,
    LinearGaussianModel,
    as_full,
    fit_ppca,
    renyi_divergence,
)
from helpers.exact_bounds import F64, LINE, PLANE, SPACE, f64

PROBLEMS = pytest.mark.parametrize("problem", [LINE, PLANE, SPACE], ids=["line", "plane", "space"])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def regression():
    """Diabetes, standardised, with an intercept: 442 examples, 11 correlated weights."""
    x, y = load_diabetes(return_X_y=True)
    x, y = (torch.tensor((a - a.mean(0)) / a.std(0)) for a in (x, y))
    design = torch.cat([x, torch.ones(len(x), 1, dtype=F64)], 1)
    return BayesianLinearRegression(design, y + 0.3, 0.5, 2.0)


@pytest.fixture(scope="module")
def digits():
    return torch.tensor(load_digits().data)


# Linear-Gaussian model.


@PROBLEMS
def test_likelihood_and_joint(problem):
    """The density of every pixel, added up: no mean, no constant missing."""
    z = torch.randn(5, *problem.mu.shape, dtype=F64)
    mean = z @ problem.weight.T + problem.bias
    pixels = stats.norm(mean.numpy(), math.sqrt(problem.noise_variance)).logpdf(problem.x.numpy())
    np.testing.assert_allclose(problem.log_likelihood(z), pixels.sum(-1), rtol=1e-12)
    prior = stats.norm.logpdf(z.numpy()).sum(-1)
    np.testing.assert_allclose(problem.log_joint(z), pixels.sum(-1) + prior, rtol=1e-12)


@PROBLEMS
def test_log_evidence_against_scipy(problem):
    covariance = problem.weight @ problem.weight.T + problem.noise_variance * torch.eye(
        len(problem.bias), dtype=F64
    )
    wanted = stats.multivariate_normal(problem.bias.numpy(), covariance.numpy()).logpdf(
        problem.x.numpy()
    )
    np.testing.assert_allclose(problem.model().log_evidence(problem.x), wanted, rtol=1e-12)


def test_log_evidence_and_posterior_by_quadrature_in_one_dimension():
    """int p(x, z) dz, and the moments of z under it, for each example."""
    posterior = LINE.model().posterior(LINE.x)
    for i in range(len(LINE.x)):

        def joint(z, i=i):
            return LINE.log_joint(torch.full((2, 1), z, dtype=F64))[i].exp().item()

        moments = [
            integrate.quad(lambda z, n=n: z**n * joint(z), -12, 12, epsabs=1e-13)[0]
            for n in range(3)
        ]
        evidence = moments[0]
        mean = moments[1] / evidence
        assert LINE.model().log_evidence(LINE.x)[i].item() == pytest.approx(math.log(evidence))
        assert posterior.mean[i].item() == pytest.approx(mean)
        variance = moments[2] / evidence - mean**2
        assert posterior.covariance[i].item() == pytest.approx(variance)


def plane(steps=241, width=9.0):
    """A grid for the trapezoidal rule, exact to rounding for Gaussians: points, cell."""
    line = torch.linspace(-width, width, steps, dtype=F64)
    return torch.cartesian_prod(line, line), (2 * width / (steps - 1)) ** 2


def test_log_evidence_and_posterior_by_quadrature_in_two_dimensions():
    z, cell = plane()
    joint = PLANE.log_joint(z.unsqueeze(1)).exp()[:, 0] * cell
    evidence = joint.sum()
    mean = (joint[:, None] * z).sum(0) / evidence
    covariance = (joint[:, None] * (z - mean)).T @ (z - mean) / evidence
    posterior = PLANE.model().posterior(PLANE.x)
    torch.testing.assert_close(PLANE.model().log_evidence(PLANE.x), evidence.log().view(1))
    torch.testing.assert_close(posterior.mean[0], mean)
    torch.testing.assert_close(posterior.covariance[0], covariance)
    assert covariance[0, 1].abs() > 0.05  # not diagonal


@PROBLEMS
def test_bayes_rule(problem):
    """log p(x, z) - log p(z|x) is log p(x) at any z; p(z|x) by SciPy."""
    posterior = problem.model().posterior(problem.x)
    z = torch.randn(problem.mu.shape, dtype=F64)
    for i in range(len(problem.x)):
        log_posterior = stats.multivariate_normal(
            posterior.mean[i].numpy(), posterior.covariance[i].numpy()
        ).logpdf(z[i].numpy())
        evidence = problem.model().log_evidence(problem.x)[i].item()
        assert problem.log_joint(z)[i].item() - log_posterior == pytest.approx(evidence)


@PROBLEMS
def test_elbo_is_the_evidence_less_the_divergence(problem):
    model, q = problem.model(), problem.q()
    posterior = model.posterior(problem.x)
    divergence = torch_kl(
        MultivariateNormal(q.mu, torch.diag_embed(q.logvar.exp())), MultivariateNormal(*posterior)
    )
    wanted = model.log_evidence(problem.x) - divergence
    torch.testing.assert_close(model.elbo(problem.x, q), wanted)


def test_elbo_by_quadrature():
    """int q(z) [log p(x, z) - log q(z)] dz."""
    z, cell = plane()
    log_q = Normal(PLANE.mu, (0.5 * PLANE.logvar).exp()).log_prob(z.unsqueeze(1)).sum(-1)
    wanted = (log_q.exp() * (PLANE.log_joint(z.unsqueeze(1)) - log_q)).sum(0) * cell
    torch.testing.assert_close(PLANE.model().elbo(PLANE.x, PLANE.q()), wanted)


@PROBLEMS
def test_no_diagonal_is_better_than_the_optimal_one(problem):
    """Its gradient is zero, and every step away loses."""
    model = problem.model()
    mu, logvar = (t.clone().requires_grad_() for t in model.optimal_diagonal(problem.x))
    best = model.elbo(problem.x, DiagonalGaussian(mu, logvar))
    for gradient in torch.autograd.grad(best.sum(), (mu, logvar)):
        assert gradient.abs().max() < 1e-12
    for scale in (1e-2, 0.3, 2.0):
        steps = scale * torch.randn(2, 50, *mu.shape, dtype=F64)
        other = model.elbo(problem.x, DiagonalGaussian(mu + steps[0], logvar + steps[1]))
        assert (other < best).all()


def test_optimal_diagonal_is_below_the_evidence_unless_the_posterior_is_diagonal():
    model = SPACE.model()
    gap = model.log_evidence(SPACE.x) - model.elbo(SPACE.x, model.optimal_diagonal(SPACE.x))
    assert (gap > 0.01).all()
    line = LINE.model()
    best = line.elbo(LINE.x, line.optimal_diagonal(LINE.x))
    torch.testing.assert_close(best, line.log_evidence(LINE.x))


# Probabilistic PCA and the linear VAE.


@pytest.mark.parametrize("latents", [1, 7, 30])
def test_ppca_of_digits_against_scikit_learn(digits, latents):
    """The same maximum, but for scikit-learn's n - 1 in its covariance."""
    n = len(digits)
    pca = PCA(latents, svd_solver="full").fit(digits.numpy())
    model = fit_ppca(digits, latents)
    evidence = model.evidence()
    np.testing.assert_allclose(evidence.mean, pca.mean_, atol=1e-10)
    scaled = pca.get_covariance() * (n - 1) / n
    np.testing.assert_allclose(evidence.covariance, scaled, atol=1e-8)
    score = model.log_evidence(digits).mean().item()
    by_scipy = stats.multivariate_normal(pca.mean_, scaled).logpdf(digits.numpy()).mean()
    assert score == pytest.approx(by_scipy, rel=1e-10)
    assert pca.score(digits.numpy()) <= score  # n - 1 misses the maximum
    assert score == pytest.approx(pca.score(digits.numpy()), rel=1e-6)


def test_ppca_is_a_maximum(digits):
    """The gradient of the mean log evidence is zero in W, b and sigma^2."""
    model = fit_ppca(digits[:, 18:24], 2)
    weight, bias, noise = (
        t.clone().requires_grad_() for t in (model.weight, model.bias, model.noise_variance)
    )
    LinearGaussianModel(weight, bias, noise).log_evidence(digits[:, 18:24]).mean().backward()
    assert max(t.grad.abs().max() for t in (weight, bias, noise)) < 1e-10


def test_best_elbo_of_a_linear_vae_is_the_ppca_maximum(digits):
    """With the optimal diagonal q: W's columns are orthogonal, so the gap is zero."""
    model = fit_ppca(digits, 5)
    elbo = model.elbo(digits, model.optimal_diagonal(digits))
    torch.testing.assert_close(elbo, model.log_evidence(digits))


def test_linear_vae_climbs_to_the_ppca_maximum():
    """From a random start: the encoder is linear in x, its variances are the same for all x."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(5, 5, dtype=F64, generator=generator)
    x = torch.randn(150, 5, dtype=F64, generator=generator) @ mixing + 1.0
    parameters = [
        (0.3 * torch.randn(shape, dtype=F64, generator=generator)).requires_grad_()
        for shape in [(5, 2), (5,), (), (5, 2), (2,), (2,)]
    ]
    weight, bias, log_noise, encoder, offset, logvar = parameters

    def elbo():
        model = LinearGaussianModel(weight, bias, log_noise.exp())
        mu = x @ encoder + offset
        return model.elbo(x, DiagonalGaussian(mu, logvar.expand_as(mu))).mean()

    optimiser = torch.optim.LBFGS(
        parameters, max_iter=2000, tolerance_grad=1e-9, tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimiser.zero_grad()
        loss = -elbo()
        loss.backward()
        return loss

    optimiser.step(closure)
    best = fit_ppca(x, 2).log_evidence(x).mean().item()
    assert elbo().item() <= best + 1e-10
    assert elbo().item() == pytest.approx(best, abs=1e-6)
    gram = (weight.mT @ weight).detach()  # the ELBO, unlike the evidence, fixes the rotation
    assert gram[0, 1].abs() < 1e-3 * gram.diagonal().min()


@pytest.mark.parametrize("latents", [0, -1, 4, 9])
def test_ppca_needs_fewer_latents_than_columns(latents):
    with pytest.raises(ValueError, match=rf"latents must be in 1 ... 3, got {latents}"):
        fit_ppca(torch.zeros(10, 4), latents)


# Any diagonal noise, any prior, any Gaussian q.

PRIOR = Gaussian(f64([0.7, -1.1]), f64([[1.5, 0.6], [0.6, 0.8]]))
NOISE = f64([0.4, 1.3, 0.9])
FULL_Q = Gaussian(f64([[0.5, -0.4], [0.1, 0.3]]), f64([[[0.5, -0.3], [-0.3, 0.7]]] * 2))
DIAGONAL_Q = DiagonalGaussian(FULL_Q.mean, f64([[-0.4, 0.2], [0.5, -0.9]]))
X = f64([[1.0, 0.2, -0.6], [-0.3, 2.0, 0.5]])


@pytest.fixture(params=["prior", "one variance", "noise"])
def general(request):
    """Each generalisation by itself, and both at once."""
    noise = 0.8 if request.param == "one variance" else NOISE
    prior = 2.5 if request.param == "noise" else PRIOR
    return LinearGaussianModel(
        f64([[1.0, -0.5], [0.3, 0.9], [-0.7, 0.4]]), f64([0.1, 0.0, -0.4]), noise, prior
    )


def scipy_parts(model):
    """m, S and the covariance of the noise."""
    noise = torch.as_tensor(model.noise_variance, dtype=F64).expand(3)
    if model.prior == 2.5:
        return np.zeros(2), 2.5 * np.eye(2), np.diag(noise)
    return *(p.numpy() for p in model.prior), np.diag(noise)


def density(mean, covariance, at):
    return stats.multivariate_normal(np.asarray(mean), np.asarray(covariance)).logpdf(at)


def test_general_densities_against_scipy(general):
    """Likelihood, prior, joint and evidence; Bayes' rule at random z gives the posterior."""
    m, s, noise = scipy_parts(general)
    weight, bias = general.weight.numpy(), general.bias.numpy()
    z = torch.randn(2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    posterior = general.posterior(X)
    for i in range(2):
        likelihood = density(weight @ z[i].numpy() + bias, noise, X[i])
        prior = density(m, s, z[i])
        evidence = density(weight @ m + bias, weight @ s @ weight.T + noise, X[i])
        assert general.log_likelihood(X, z)[i].item() == pytest.approx(likelihood, rel=1e-12)
        assert general.log_prior(z)[i].item() == pytest.approx(prior, rel=1e-12)
        assert general.log_joint(X, z)[i].item() == pytest.approx(likelihood + prior, rel=1e-12)
        assert general.log_evidence(X)[i].item() == pytest.approx(evidence, rel=1e-12)
        log_posterior = density(posterior.mean[i], posterior.covariance[i], z[i])
        assert likelihood + prior - log_posterior == pytest.approx(evidence, rel=1e-10)


@pytest.mark.parametrize("q", [FULL_Q, DIAGONAL_Q], ids=["full", "diagonal"])
def test_general_elbo_by_quadrature(general, q):
    """int q(z) [log p(x, z) - log q(z)] dz, of a q with covariances too."""
    z, cell = plane()
    full = q if isinstance(q, Gaussian) else as_full(q)
    log_q = MultivariateNormal(*full).log_prob(z.unsqueeze(1))
    wanted = (log_q.exp() * (general.log_joint(X, z.unsqueeze(1)) - log_q)).sum(0) * cell
    torch.testing.assert_close(general.elbo(X, q), wanted)


def test_what_mean_field_loses(general):
    """Nothing at the full posterior; the gap at the best diagonal q, and more at any other."""
    evidence = general.log_evidence(X)
    torch.testing.assert_close(general.elbo(X, general.posterior(X)), evidence)
    best = general.optimal_diagonal(X)
    gap = evidence - general.elbo(X, best)
    torch.testing.assert_close(gap, general.mean_field_gap().expand(2))
    assert (gap > 0.005).all()
    mu, logvar = (t.clone().requires_grad_() for t in best)
    elbo = general.elbo(X, DiagonalGaussian(mu, logvar)).sum()
    for gradient in torch.autograd.grad(elbo, (mu, logvar)):
        assert gradient.abs().max() < 1e-12


def test_general_regression(regression):
    """Noise of each target and a correlated prior: N(y; X m, diag sigma^2 + X S X')."""
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(11, 11, dtype=F64, generator=generator)
    prior = Gaussian(factor[0], factor @ factor.mT / 11 + 0.1 * torch.eye(11, dtype=F64))
    noise = 0.3 + torch.rand(442, dtype=F64, generator=generator)
    model = BayesianLinearRegression(regression.design, regression.targets, noise, prior)
    x, y = regression.design.numpy(), regression.targets.numpy()
    covariance = np.diag(noise) + x @ prior.covariance.numpy() @ x.T
    wanted = density(x @ prior.mean.numpy(), covariance, y)
    assert model.log_evidence().item() == pytest.approx(wanted, rel=1e-10)
    torch.testing.assert_close(model.elbo(model.posterior()), model.log_evidence())
    gap = model.log_evidence() - model.elbo(model.optimal_diagonal())
    torch.testing.assert_close(gap, model.mean_field_gap())
    assert gap > 0.1


@pytest.mark.parametrize(
    ("noise", "prior", "match"),
    [
        (torch.ones(2), 1.0, r"expected noise_variance \[\] or \[3\], got \(2,\)"),
        (1.0, Gaussian(torch.zeros(3), torch.eye(3)), r"prior of mean \[2\].*got \(3,\)"),
    ],
    ids=["noise", "prior"],
)
def test_model_refuses(noise, prior, match):
    with pytest.raises(ValueError, match=match):
        LinearGaussianModel(torch.ones(3, 2), torch.zeros(3), noise, prior)


# Bayesian linear regression.


def test_regression_evidence_against_scipy(regression):
    """N(y; 0, sigma^2 I + tau^2 X X'), 442 dimensions."""
    x, y = regression.design.numpy(), regression.targets.numpy()
    covariance = 0.5 * np.eye(len(y)) + 2.0 * x @ x.T
    wanted = stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)
    assert regression.log_evidence().item() == pytest.approx(wanted, rel=1e-10)


def test_regression_densities(regression):
    w = torch.randn(3, 4, 11, dtype=F64)
    fitted = w @ regression.design.T
    likelihood = Normal(fitted, math.sqrt(0.5)).log_prob(regression.targets).sum(-1)
    torch.testing.assert_close(regression.log_likelihood(w), likelihood)
    prior = Normal(0.0, math.sqrt(2.0)).log_prob(w).sum(-1)
    torch.testing.assert_close(regression.log_joint(w), likelihood + prior)


def test_regression_posterior(regression):
    """Its mean solves ridge regression; log p(y, w) - log p(w|y) is the evidence anywhere."""
    posterior = regression.posterior()
    x, y = regression.design, regression.targets
    augmented = torch.cat([x, math.sqrt(0.5 / 2.0) * torch.eye(11, dtype=F64)])
    ridge = torch.linalg.lstsq(
        augmented, torch.cat([y, torch.zeros(11, dtype=F64)]).unsqueeze(1)
    ).solution
    torch.testing.assert_close(posterior.mean, ridge.squeeze(1))
    w = posterior.mean + 0.1 * torch.randn(11, dtype=F64)
    density = stats.multivariate_normal(posterior.mean.numpy(), posterior.covariance.numpy())
    evidence = regression.log_joint(w).item() - density.logpdf(w.numpy())
    assert regression.log_evidence().item() == pytest.approx(evidence, rel=1e-10)


def test_regression_elbo_and_its_gap(regression):
    """ELBO = evidence - KL for any q; at the best diagonal the KL is the mean-field gap."""
    posterior = MultivariateNormal(*regression.posterior())
    best = regression.optimal_diagonal()
    other = DiagonalGaussian(best.mu + 0.05, best.logvar - 0.4)
    for q in (best, other):
        divergence = torch_kl(MultivariateNormal(*as_full(q)), posterior)
        torch.testing.assert_close(regression.elbo(q), regression.log_evidence() - divergence)
    gap = regression.log_evidence() - regression.elbo(best)
    torch.testing.assert_close(regression.mean_field_gap(), gap)
    assert gap > 1  # nats: the blood serum columns are correlated


def test_no_diagonal_is_better_for_regression(regression):
    mu, logvar = (t.clone().requires_grad_() for t in regression.optimal_diagonal())
    best = regression.elbo(DiagonalGaussian(mu, logvar))
    for gradient in torch.autograd.grad(best, (mu, logvar)):
        assert gradient.abs().max() < 1e-9
    for scale in (1e-3, 0.1, 1.0):
        steps = scale * torch.randn(2, 50, 11, dtype=F64)
        assert all(
            regression.elbo(DiagonalGaussian(mu + a, logvar + b)) < best
            for a, b in zip(*steps, strict=True)
        )


# Divergences of Gaussians.

Q1, P1 = Gaussian(f64([0.3]), f64([[0.5]])), Gaussian(f64([-0.4]), f64([[0.8]]))
Q2 = Gaussian(f64([0.3, -0.2]), f64([[0.6, 0.2], [0.2, 0.5]]))
P2 = Gaussian(f64([-0.1, 0.4]), f64([[0.9, -0.3], [-0.3, 0.7]]))


def grid_log_prob(z, p):
    return MultivariateNormal(*p).log_prob(z)


@pytest.mark.parametrize("alpha", [-1.0, -0.2, 0.0, 0.3, 0.5, 0.99, 1.0, 1.01, 1.3, 2.0])
def test_renyi_divergence_in_one_dimension(alpha):
    """1/(alpha - 1) log int q^alpha p^(1 - alpha), the KL at 1, by SciPy's quadrature."""
    q, p = (stats.norm(g.mean.item(), g.covariance.item() ** 0.5) for g in (Q1, P1))
    if alpha == 1:
        wanted, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -15, 15)
    else:
        total, _ = integrate.quad(
            lambda z: math.exp(alpha * q.logpdf(z) + (1 - alpha) * p.logpdf(z)), -25, 25
        )
        wanted = math.log(total) / (alpha - 1)
    assert renyi_divergence(Q1, P1, alpha).item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("alpha", [-0.3, 0.3, 0.8, 1.0, 1.4])
def test_renyi_divergence_in_two_dimensions(alpha):
    z, cell = plane(481, 16.0)
    log_q, log_p = grid_log_prob(z, Q2), grid_log_prob(z, P2)
    if alpha == 1:
        wanted = (log_q.exp() * (log_q - log_p)).sum() * cell
        torch.testing.assert_close(models.kl_divergence(Q2, P2), wanted)
    else:
        wanted = ((alpha * log_q + (1 - alpha) * log_p).exp().sum() * cell).log() / (alpha - 1)
    torch.testing.assert_close(renyi_divergence(Q2, P2, alpha), wanted)


def test_kl_against_torch():
    wanted = torch_kl(MultivariateNormal(*Q2), MultivariateNormal(*P2))
    torch.testing.assert_close(models.kl_divergence(Q2, P2), wanted)


def test_renyi_divergence_is_continuous_at_one():
    """Its slope there is finite; 1e-6 to a side moves it by less than 1e-5."""
    kl = models.kl_divergence(Q2, P2).item()
    for alpha in (1 - 1e-6, 1 + 1e-6):
        assert renyi_divergence(Q2, P2, alpha).item() == pytest.approx(kl, abs=1e-5)


def test_renyi_divergence_grows_with_the_order():
    values = [renyi_divergence(Q2, P2, alpha).item() for alpha in (-0.4, 0.0, 0.4, 1.0, 1.3)]
    assert values == sorted(values)
    assert values[1] == 0
    skew = 0.3 / 0.7 * renyi_divergence(P2, Q2, 0.7)  # D_a(q||p) = a / (1 - a) D_(1-a)(p||q)
    torch.testing.assert_close(renyi_divergence(Q2, P2, 0.3), skew)


@pytest.mark.parametrize(
    ("narrow", "alpha", "wanted"),
    [
        (False, 2.0, math.inf),  # q's variance is twice p's: int q^2 / p diverges
        (False, 1.99, None),
        (True, 2.0, None),
        (True, -1.0, -math.inf),  # int p^2 / q diverges, and 1 / (alpha - 1) is negative
        (True, -0.99, None),
    ],
)
def test_renyi_divergence_is_infinite_where_the_integral_is(narrow, alpha, wanted):
    wide, thin = Gaussian(f64([0.0]), f64([[2.0]])), Gaussian(f64([0.0]), f64([[1.0]]))
    value = renyi_divergence(*((thin, wide) if narrow else (wide, thin)), alpha).item()
    assert value == wanted if wanted else math.isfinite(value)


def test_divergences_are_batched():
    """Finite and infinite ones side by side, each as on its own."""
    scale = f64([0.5, 1.0, 3.0, 1.5])
    q = Gaussian(torch.stack([Q2.mean * s for s in scale]), Q2.covariance * scale.view(-1, 1, 1))
    p = Gaussian(P2.mean.expand(4, 2), P2.covariance.expand(4, 2, 2))
    for function in (
        models.kl_divergence,
        models.chi_square_divergence,
        lambda q, p: renyi_divergence(q, p, 1.8),
        lambda q, p: renyi_divergence(q, p, -0.8),
    ):
        alone = [
            function(Gaussian(q.mean[i], q.covariance[i]), P2).item() for i in range(len(scale))
        ]
        assert function(q, p).tolist() == pytest.approx(alone)
    finite = renyi_divergence(q, p, 1.8).isfinite()
    assert finite.any()
    assert not finite.all()


def test_chi_square_divergence():
    """int p^2 / q - 1."""
    z, cell = plane(481, 16.0)
    ratio = 2 * grid_log_prob(z, Q2) - grid_log_prob(z, P2)
    wanted = ratio.exp().sum() * cell - 1
    torch.testing.assert_close(models.chi_square_divergence(Q2, P2), wanted)
    one = models.chi_square_divergence(P2, P2).item()
    assert one == pytest.approx(0, abs=1e-14)


def test_gaussian_log_prob_against_scipy():
    z = torch.randn(5, 2, dtype=F64)
    wanted = stats.multivariate_normal(P2.mean.numpy(), P2.covariance.numpy()).logpdf(z.numpy())
    np.testing.assert_allclose(models.gaussian_log_prob(z, P2), wanted, rtol=1e-12)
    assert models.log_det(P2.covariance).item() == pytest.approx(
        np.linalg.slogdet(P2.covariance.numpy())[1]
    )


def test_regression_before_any_data():
    """The posterior is the prior, the evidence 1, and q loses nothing."""
    model = BayesianLinearRegression(torch.zeros(0, 2).double(), torch.zeros(0).double(), 0.5, 2.0)
    assert torch.equal(model.posterior().mean, torch.zeros(2, dtype=F64))
    torch.testing.assert_close(model.posterior().covariance, 2 * torch.eye(2, dtype=F64))
    nothing = model.log_evidence(), model.elbo(model.optimal_diagonal()), model.mean_field_gap()
    torch.testing.assert_close(torch.stack(nothing), torch.zeros(3, dtype=F64), rtol=0, atol=1e-15)
