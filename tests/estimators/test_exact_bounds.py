"""The numerical integrals that estimators are held against (helpers/exact_bounds.py)."""

import math

import pytest
import torch
from scipy import integrate, stats

from helpers.exact_bounds import F64, LINE, PLANE, exact, exact_elbo, expected_log_mean, f64

pytestmark = pytest.mark.usefixtures("one_thread")


def test_exact_bound_of_one_sample_is_the_closed_form_elbo():
    for problem in (LINE, PLANE):
        for found, wanted in zip(exact(problem, 1), exact_elbo(problem), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_exact_bound_of_two_samples_by_direct_integration(alpha):
    """The integral over (eps_1, eps_2) by SciPy instead, of the first example."""
    problem = LINE._replace(x=LINE.x[:1], mu=LINE.mu[:1], logvar=LINE.logvar[:1])
    model, q = problem.model(), stats.norm(problem.mu.item(), math.exp(problem.logvar.item() / 2))
    noise, prior = stats.norm(scale=problem.noise_variance**0.5), stats.norm()

    def log_weight(e):
        z = q.mean() + q.std() * e
        residual = problem.x[0].numpy() - (model.weight[:, 0] * z + model.bias).numpy()
        return (1 - alpha) * (noise.logpdf(residual).sum() + prior.logpdf(z) - q.logpdf(z))

    grid = torch.linspace(-7, 7, 141, dtype=F64).numpy()
    table = torch.tensor([log_weight(e) for e in grid], dtype=F64)
    pairs = torch.logsumexp(torch.stack(torch.broadcast_tensors(table, table[:, None])), 0)
    density = stats.norm.pdf(grid)
    inner = integrate.simpson((pairs - math.log(2)).numpy() * density, x=grid)
    value = integrate.simpson(inner * density, x=grid) / (1 - alpha)
    assert exact(problem, 2, alpha=alpha).value.item() == pytest.approx(value, rel=1e-5)


def test_the_integral_of_a_known_expectation():
    """Two weights, 1 and 3 with probability 1/2 each: E log mean of two by hand."""
    log_w = torch.log(f64([[1.0], [3.0]]))
    wanted = 0.25 * (math.log(1) + 2 * math.log(2) + math.log(3))
    assert expected_log_mean(log_w, f64([0.5, 0.5]), 2).item() == pytest.approx(wanted, rel=1e-8)
