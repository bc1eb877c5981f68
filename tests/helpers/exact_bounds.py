"""Exact bounds and gradients on a linear-Gaussian model, and the means of many estimates.

``exact`` integrates numerically; ``replicate`` runs an estimator; ``check`` compares the two.
Nothing here calls the code under test but ``replicate``; the model's closed forms are held
against SciPy in test_models.py.

The expectation of log sum_k w_k over K independent samples is K D-dimensional, but

    log s = int_0^inf (exp(-t) - exp(-t s)) / t dt          (Frullani)

makes it, for any K, one integral over t of phi(t)^K with phi(t) = E_q[exp(-t w)]: a D-
dimensional one. With t = exp(r) both integrands are smooth and vanish quickly at both ends,
where the trapezoidal rule converges exponentially. Autograd gives its gradients.
"""

import dataclasses
import math
from typing import NamedTuple

import pytest
import torch
from torch.distributions import Independent, Normal

from fused_elbo.estimators import sampling
from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from fused_elbo.estimators.models import DiagonalGaussian, LinearGaussianModel

F64 = torch.float64
# A standard error past which a wrong factor of 1 % would hide within four of them.
POWER = 0.0025
ERRORS = 4.0


def f64(values):
    return torch.tensor(values, dtype=F64)


class Problem(NamedTuple):
    """Examples x [B, P], the model's weight [P, D], bias and noise, and q's mu, logvar [B, D]."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    noise_variance: float
    mu: torch.Tensor
    logvar: torch.Tensor

    def model(self, weight=None):
        return LinearGaussianModel(
            self.weight if weight is None else weight, self.bias, self.noise_variance
        )

    def q(self):
        return DiagonalGaussian(self.mu, self.logvar)

    def log_likelihood(self, z):
        return self.model().log_likelihood(self.x, z)

    def log_joint(self, z):
        return self.model().log_joint(self.x, z)


# q is off the optimum in means and in variances everywhere, narrower than the posterior in
# some dimensions and wider in others; the posterior is diagonal only where D = 1.
LINE = Problem(
    x=f64([[1.0, -0.4], [-0.7, 1.1]]),
    weight=f64([[0.9], [-0.6]]),
    bias=f64([0.2, 0.1]),
    noise_variance=0.8,
    mu=f64([[-0.3], [0.4]]),
    logvar=f64([[0.1], [-0.9]]),
)
PLANE = Problem(  # B = 1
    x=f64([[1.2, -0.5, 0.8]]),
    weight=f64([[0.9, 0.5], [-0.2, 0.7], [0.6, 0.4]]),
    bias=f64([0.1, -0.2, 0.0]),
    noise_variance=0.9,
    mu=f64([[-0.2, 0.6]]),
    logvar=f64([[-0.2, -1.2]]),
)
SPACE = Problem(  # odd D
    x=f64([[1.0, -0.4, 0.3, 1.9], [-0.6, 0.9, -1.2, 0.1]]),
    weight=f64([[0.9, 0.5, -0.3], [-0.2, 0.7, 0.4], [0.6, 0.4, 0.2], [0.1, -0.8, 0.5]]),
    bias=f64([0.1, -0.2, 0.0, 0.3]),
    noise_variance=0.7,
    mu=f64([[-0.2, 0.5, 0.7], [0.4, -0.3, -0.5]]),
    logvar=f64([[-0.2, -1.2, 0.3], [-1.5, 0.2, -0.4]]),
)

# Wider than the posterior: weights have a finite variance, and orders below 1 converge fast.
WIDE = PLANE._replace(logvar=f64([[0.1, 0.2]]))
# Narrower: and so do orders above 1.
NARROW = PLANE._replace(logvar=f64([[-0.8, -1.3]]))
# Columns at right angles: the posterior is diagonal, and q can be it.
DIAGONAL = SPACE._replace(
    weight=f64([[0.9, 0.0, 0.0], [0.0, -0.7, 0.0], [0.0, 0.0, 0.4], [0.0, 0.0, 0.8]])
)
_posterior = DIAGONAL.model().posterior(DIAGONAL.x)
AT_POSTERIOR = DIAGONAL._replace(
    mu=_posterior.mean, logvar=_posterior.covariance.diagonal(dim1=-2, dim2=-1).log()
)


class Result(NamedTuple):
    """A bound [..., B] and its gradients: mu, logvar [..., B, D], weight [..., P, D]."""

    value: torch.Tensor
    mu: torch.Tensor
    logvar: torch.Tensor
    weight: torch.Tensor


def log_weights_at(problem, eps, mu, logvar, weight):
    """log p(x, z) - log q(z|x) at z = mu + exp(logvar / 2) eps, eps [nodes, 1, D]."""
    q = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
    z = mu + (0.5 * logvar).exp() * eps
    likelihood = Normal(z @ weight.mT + problem.bias, math.sqrt(problem.noise_variance))
    prior = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    return likelihood.log_prob(problem.x).sum(-1) + prior.log_prob(z) - q.log_prob(z)


def nodes(dimension, steps=None):
    """The trapezoidal rule for N(0, I) on a box of 8 standard deviations: eps, its weights."""
    steps = {1: 241, 2: 65, 3: 41}[dimension] if steps is None else steps
    line = torch.linspace(-8, 8, steps, dtype=F64)
    eps = torch.cartesian_prod(*[line] * dimension).reshape(-1, 1, dimension)
    density = torch.exp(-0.5 * eps.square().sum((-2, -1)))
    return eps, density / density.sum()


def expected_log_mean(log_w, probability, samples):
    """E log (1/K) sum_k w_k of independent w_k: log_w [nodes, B] with their probabilities."""
    centre = log_w.detach().max(0).values
    r = torch.arange(-36.0, 84.0, 0.125, dtype=F64).view(-1, 1, 1)
    phi = (torch.exp(-torch.exp(r + log_w - centre)) * probability.view(-1, 1)).sum(1)
    integrand = torch.exp(-torch.exp(r.view(-1, 1))) - phi**samples
    assert (integrand[[0, -1]].abs() < 1e-7).all(), "the range of r is too short"
    return centre - math.log(samples) + 0.125 * integrand.sum(0)


def leaves(problem):
    return [t.clone().requires_grad_() for t in (problem.mu, problem.logvar, problem.weight)]


def differentiated(function, problem):
    """The value and the gradients of function(mu, logvar, weight) [B]."""
    arguments = leaves(problem)
    value = function(*arguments)
    return Result(value.detach(), *torch.autograd.grad(value.sum(), arguments))


def exact_elbo(problem):
    """The bound by the model's closed form."""
    return differentiated(
        lambda mu, logvar, weight: problem.model(weight).elbo(
            problem.x, DiagonalGaussian(mu, logvar)
        ),
        problem,
    )


def exact(problem, samples, *, alpha=0.0, steps=None):
    """E of 1/(1 - alpha) log mean_k w_k^(1 - alpha), K = samples: L_K of IWAE at alpha = 0."""
    eps, probability = nodes(problem.mu.shape[-1], steps)

    def bound(mu, logvar, weight):
        log_w = log_weights_at(problem, eps, mu, logvar, weight)
        return expected_log_mean((1 - alpha) * log_w, probability, samples) / (1 - alpha)

    return differentiated(bound, problem)


def combine(*terms):
    """The sum of coefficient times result, of (coefficient, result) pairs."""
    return Result(
        *(
            sum(c * t for c, t in zip([c for c, _ in terms], ts, strict=True))
            for ts in zip(*(result for _, result in terms), strict=True)
        )
    )


def quasi_noise(replicates, each, examples):
    """In place of sampling.draw: a randomised Sobol set over the estimates of one replicate.

    One estimate's K samples are K D coordinates of one point: exactly independent N(0, I), so
    expectations are what they are. Estimates of a replicate fill the space evenly, which makes
    standard errors some ten times smaller; replicates have random shifts of their own, so the
    errors computed from them are right.
    """

    def draw(num_samples, like, *, sampling, generator):
        size = num_samples * like.shape[-1]
        engine = torch.quasirandom.SobolEngine(
            size, scramble=True, seed=int(torch.randint(2**31, (), generator=generator))
        )
        points = engine.draw(each, dtype=F64).view(1, each, 1, size)
        shift = torch.rand(replicates, 1, examples, size, dtype=F64, generator=generator)
        uniform = ((points + shift) % 1.0).clamp(1e-16, 1 - 2e-16)
        eps = torch.special.ndtri(uniform).view(replicates, each * examples, num_samples, -1)
        return eps.permute(2, 0, 1, 3)

    return draw


def replicate(
    name,
    problem,
    samples,
    *,
    replicates=64,
    each=4096,
    chunks=1,
    seed=1,
    joint=False,
    quasi=True,
    **options,
):
    """Independent means of ``chunks * each`` estimates: a Result with [replicates, ...] in front.

    Every replicate has leaves of its own; all of its estimates are averaged into them. So the
    standard errors need no assumption but that replicates are independent. ``quasi`` replaces
    the noise, unless the sampling is what is tested. ``name`` is a key of ESTIMATORS or a
    function such as theirs, for mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    size, (examples, dimension) = replicates, problem.mu.shape
    mu, logvar = (
        t.expand(size, 1, *t.shape).clone().requires_grad_() for t in (problem.mu, problem.logvar)
    )
    weight = problem.weight.expand(size, *problem.weight.shape).clone().requires_grad_()
    model, x = problem.model(weight), problem.x.repeat(each, 1)
    target = model.log_joint if joint else model.log_likelihood
    shape, total = (size, each * examples, dimension), 0.0
    with pytest.MonkeyPatch.context() as patch:
        if quasi:
            patch.setattr(sampling, "draw", quasi_noise(replicates, each, examples))
        if callable(name):
            mistake = dataclasses.replace(ESTIMATORS["iwae"], function=name)
            patch.setitem(ESTIMATORS, "under test", mistake)
        for _ in range(chunks):
            result = estimate(
                "under test" if callable(name) else name,
                mu.expand(size, each, examples, dimension).reshape(shape),
                logvar.expand(size, each, examples, dimension).reshape(shape),
                samples,
                generator=generator,
                **{"log_joint" if joint else "log_likelihood": lambda z: target(x, z)},
                **{"impl": "reference"} | options,
            )
            result.surrogate.sum().backward()
            total = total + result.value.view(size, each, examples).mean(1)
    count = each * chunks
    gradients = (mu.grad.squeeze(1), logvar.grad.squeeze(1), weight.grad)
    return Result(total / chunks, *(g / count for g in gradients))


def mean_and_error(values):
    """Over the first dimension: the mean and its standard error."""
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def deviations(estimated, truth):
    """For each part, the greatest |mean - exact| in standard errors."""
    worst = {}
    for part in Result._fields:
        wanted = getattr(truth, part)
        mean, error = mean_and_error(getattr(estimated, part))
        worst[part] = ((mean - wanted).abs() / (error + 1e-12)).max().item()
    return worst


def weakness(estimated, truth):
    """For each part, the greatest standard error as a share of the part's largest entry."""
    share = {}
    for part in Result._fields:
        _, error = mean_and_error(getattr(estimated, part))
        share[part] = (error.max() / getattr(truth, part).abs().max()).item()
    return share


def check(estimated, truth, parts=Result._fields, power=POWER):
    """Within four standard errors, which are small enough for a 1 % error to fail."""
    off, share = deviations(estimated, truth), weakness(estimated, truth)
    assert {part: off[part] for part in parts if not off[part] <= ERRORS} == {}
    assert {part: share[part] for part in parts if not share[part] <= power} == {}
