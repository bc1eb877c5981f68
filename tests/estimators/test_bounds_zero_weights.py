"""Samples of weight zero: no NaN, and they still count."""

import math

import pytest
import torch

from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from helpers.estimates import OPTIONS, generator, run
from helpers.exact_bounds import SPACE, Result

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    *((name, OPTIONS.get(name, {}), 6) for name in ESTIMATORS),
    ("vimco", {}, 2),
    ("reinforce", {}, 2),
    ("jackknife", {"order": 1}, 2),
    ("ciwae", {"mix": 0.0}, 4),
    ("ciwae", {"mix": 1.0}, 4),
    ("elbo-monte-carlo", {"beta": 0.0}, 4),
    ("renyi", {"alpha": -1.0}, 4),
    ("renyi", {"alpha": 1.0}, 4),
    ("renyi", {"alpha": 1.000001}, 4),
    ("renyi", {"alpha": 2.0}, 4),
]


def with_zero_weights(name, options, samples, zero):
    """The samples in ``zero`` of example 0 have log p(x|z) = -inf."""
    mask = torch.zeros(samples, 2, dtype=torch.bool)
    mask[zero, 0] = True
    mu, logvar = (t.clone().requires_grad_() for t in SPACE.q())
    weight = SPACE.weight.clone().requires_grad_()
    model = SPACE.model(weight)

    def log_likelihood(z):
        return torch.where(mask, -torch.inf, model.log_likelihood(SPACE.x, z))

    result = estimate(
        name, mu, logvar, samples, log_likelihood=log_likelihood, generator=generator(), **options
    )
    result.surrogate.sum().backward()
    return Result(result.value, mu.grad, logvar.grad, weight.grad)


@pytest.mark.parametrize(
    ("name", "options", "samples"), CASES, ids=[f"{n} {o} K={k}" for n, o, k in CASES]
)
@pytest.mark.parametrize("zero", [slice(None), slice(1)], ids=["all", "one"])
def test_minus_infinity(name, options, samples, zero):
    """No NaN, and the other example as it was; where all weights are 0 the value is -inf."""
    found = with_zero_weights(name, options, samples, zero)
    assert not any(part.isnan().any() for part in found)
    _, whole = run(name, SPACE, samples, **options)
    torch.testing.assert_close(found.value[1], whole.value[1])
    torch.testing.assert_close(found.mu[1], whole.mu[1])
    torch.testing.assert_close(found.logvar[1], whole.logvar[1])
    if zero == slice(None):
        assert found.value[0] == -torch.inf


@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco", "rws", "piwae", "renyi", "cubo"])
def test_one_sample_of_weight_zero_is_one_zero_in_the_mean(name):
    """log (1/K) sum_k w_k^c / c with a zero among the w_k: K stays K."""
    power = {"renyi": 0.5, "cubo": 2.0}.get(name, 1.0)
    found = with_zero_weights(name, {}, 6, slice(1))
    result, _ = run(name, SPACE, 6)
    wanted = torch.logsumexp(power * result.log_weights[1:, 0], 0) - math.log(6)
    torch.testing.assert_close(found.value[0], wanted / power)
    assert found.mu.isfinite().all()
    assert found.logvar.isfinite().all()


def test_averages_with_a_weight_of_zero_are_minus_infinity():
    for name in ("elbo", "elbo-monte-carlo", "elbo-entropy", "stl", "reinforce", "ciwae"):
        assert with_zero_weights(name, {}, 4, slice(1)).value[0] == -torch.inf
