"""The order of bounds, and gradients that are exactly zero at the posterior."""

import pytest
import torch

from helpers.estimates import run
from helpers.exact_bounds import (
    AT_POSTERIOR,
    ERRORS,
    PLANE,
    SPACE,
    exact_elbo,
    mean_and_error,
    replicate,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bounds_rise_with_the_samples_towards_the_evidence():
    """L_1 = ELBO <= L_2 <= L_4 ... <= log p(x): of the estimates, beyond their errors."""
    evidence = PLANE.model().log_evidence(PLANE.x)
    below, slack = exact_elbo(PLANE).value, 0.0
    for samples in (1, 2, 4, 8, 16, 64):
        mean, error = mean_and_error(replicate("iwae", PLANE, samples, each=150, quasi=False).value)
        if samples == 1:
            assert ((mean - below).abs() <= ERRORS * error).all()
        else:
            assert (mean - below > ERRORS * (error**2 + slack**2) ** 0.5).all()
        assert (evidence - mean > ERRORS * error).all()
        below, slack = mean, error


@pytest.mark.parametrize("name", ["stl", "dreg"])
@pytest.mark.parametrize("seed", range(3))
def test_no_variance_at_the_posterior(name, seed):
    """Not small: zero, of each single estimate."""
    _, found = run(name, AT_POSTERIOR, 5, seed=seed)
    assert found.mu.abs().max() <= 1e-12
    assert found.logvar.abs().max() <= 1e-12
    evidence = AT_POSTERIOR.model().log_evidence(AT_POSTERIOR.x)
    torch.testing.assert_close(found.value, evidence, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["elbo", "elbo-monte-carlo", "elbo-entropy", "iwae", "rws"])
def test_variance_at_the_posterior_that_does_not_vanish(name):
    _, found = run(name, AT_POSTERIOR, 5)
    assert found.mu.abs().min() > 1e-3


def test_the_baseline_leaves_no_variance_at_the_posterior():
    """All weights are equal there, so the baseline of each sample is exact."""
    _, found = run("reinforce", AT_POSTERIOR, 5)
    assert found.mu.abs().max() <= 1e-12
    assert found.logvar.abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["stl", "dreg"])
def test_the_path_derivative_varies_off_the_posterior(name):
    (_, a), (_, b) = run(name, SPACE, 5, seed=1), run(name, SPACE, 5, seed=2)
    assert (a.mu - b.mu).abs().max() > 1e-2
