"""Biased estimators have the bias that theory says."""

import itertools
import math

import pytest
import torch

from bench.harness.memory import cpu_peak
from fused_elbo.estimators.bounds import estimate
from fused_elbo.estimators.models import as_full, renyi_divergence
from helpers.estimates import run
from helpers.exact_bounds import (
    ERRORS,
    F64,
    NARROW,
    PLANE,
    SPACE,
    WIDE,
    check,
    combine,
    exact,
    mean_and_error,
    replicate,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0], ids="alpha={}".format)
def test_renyi_estimate_has_the_expectation_of_its_samples(alpha):
    """Its value and gradient at finite K are those of E[estimate], whose integral is exact."""
    check(
        replicate("renyi", PLANE, 2, alpha=alpha),
        exact(PLANE, 2, alpha=alpha),
    )


def test_cubo_is_renyi_of_negative_order():
    _, cubo = run("cubo", SPACE, order=3.0)
    _, renyi = run("renyi", SPACE, alpha=-2.0)
    assert all(torch.equal(a, b) for a, b in zip(cubo, renyi, strict=True))
    check(replicate("cubo", PLANE, 2), exact(PLANE, 2, alpha=-1.0))


@pytest.mark.parametrize(
    ("problem", "alpha"),
    [(WIDE, -1.0), (WIDE, 0.3), (WIDE, 0.8), (PLANE, 1.2), (NARROW, 1.5)],
    ids=["-1", "0.3", "0.8", "1.2", "1.5"],
)
def test_renyi_estimate_converges_to_the_closed_form(problem, alpha):
    """log p(x) - D_alpha(q || p(z|x)), from below for alpha < 1, from above for alpha > 1."""
    model = problem.model()
    limit = model.log_evidence(problem.x) - renyi_divergence(
        as_full(problem.q()), model.posterior(problem.x), alpha
    )
    side = 1 if alpha > 1 else -1
    biases = [
        (side * (exact(problem, samples, alpha=alpha).value - limit)).item()
        for samples in (2, 16, 128, 1024)
    ]
    assert all(b > 0 for b in biases)
    assert all(later < earlier / 4 for earlier, later in itertools.pairwise(biases))
    assert biases[-1] < 0.004
    estimated = replicate("renyi", problem, 4, alpha=alpha)
    wanted = exact(problem, 4, alpha=alpha).value
    mean, error = mean_and_error(estimated.value)
    assert ((mean - wanted).abs() <= ERRORS * error).all()
    assert (error < (wanted - limit).abs() / 20).all()  # enough to see the bias and its sign


def test_orders_of_renyi_bracket_the_evidence():
    """Decreasing in alpha: cubo >= log p(x) >= IWAE's limit ... >= ELBO; exactly, large K."""
    evidence = WIDE.model().log_evidence(WIDE.x)
    values = [exact(WIDE, 4096, alpha=a).value.item() for a in (-2.0, -1.0, 0.0, 0.5, 1.5)]
    assert values == sorted(values, reverse=True)
    assert values[1] > evidence.item() > values[3]


def jackknife_coefficients(samples, order):
    """From what defines them: sum to 1, and remove the terms in 1/K ... 1/K^order."""
    sizes = torch.arange(samples, samples - order - 1, -1, dtype=F64)
    powers = torch.arange(order + 1, dtype=F64)
    return torch.linalg.solve(sizes ** -powers[:, None], torch.eye(order + 1).double()[0])


@pytest.mark.parametrize(
    ("samples", "order"),
    [(2, 1), (5, 1), (5, 2), (4, 3)],
    ids=["K=2 m=1", "K=5 m=1", "K=5 m=2", "K=4 m=3"],
)
def test_jackknife_is_the_combination_of_smaller_bounds(samples, order):
    sizes, coefficients = (
        range(samples, samples - order - 1, -1),
        jackknife_coefficients(samples, order),
    )
    truth = combine(
        *((c.item(), exact(PLANE, size)) for c, size in zip(coefficients, sizes, strict=True))
    )
    estimated = replicate("jackknife", PLANE, samples, order=order)
    # Coefficients of both signs, up to 10.7: more variance than that of other estimators.
    check(estimated, truth, power=0.06)
    check(estimated, truth, ("value", "weight"), power=0.015)


def test_jackknife_of_order_zero_is_iwae():
    for a, b in zip(run("jackknife", SPACE, order=0)[1], run("iwae", SPACE)[1], strict=True):
        torch.testing.assert_close(a, b)


def by_enumeration(log_weights, order):
    """The jackknife's value, of all subsets, in float64."""
    samples, value = len(log_weights), 0.0
    coefficients = jackknife_coefficients(samples, order)
    for left_out, coefficient in enumerate(coefficients):
        subsets = list(itertools.combinations(range(samples), samples - left_out))
        chosen = log_weights[torch.tensor(subsets)]  # [subsets, size, ...]
        bounds = torch.logsumexp(chosen, 1) - math.log(samples - left_out)
        value = value + coefficient * bounds.mean(0)
    return value


# Weights alike; one that is nearly all of the sum, and one that is all of it even in float64.
@pytest.mark.parametrize("spread", [0.5, 50.0, 5000.0])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_jackknife_is_the_sum_over_subsets(order, spread):
    """Its value, and its gradient in each log weight, by enumeration and autograd."""
    known = spread * torch.randn(7, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    found, wanted = known.clone().requires_grad_(), known.clone().requires_grad_()
    zero = torch.zeros(3, 1, dtype=F64)  # q is the prior: a weight is a likelihood
    result = estimate(
        "jackknife", zero, zero, 7, log_likelihood=lambda z: found + 0 * z.sum(-1), order=order
    )
    value = by_enumeration(wanted, order)
    torch.testing.assert_close(result.value, value.detach(), rtol=1e-11, atol=1e-8)
    result.surrogate.sum().backward()
    value.sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-8, atol=1e-8)


def test_jackknife_of_a_thousand_samples_takes_little_memory():
    """Some buffers of K B numbers, 0.5 MB each, are enough; enumerating subsets takes 1.6 GB."""
    zero = torch.zeros(64, 2)

    def evaluate(mu):
        estimate("jackknife", mu, zero, 1000, log_likelihood=lambda z: z.sum(-1), order=1)

    evaluate(zero)
    peak = cpu_peak(evaluate, zero)
    assert 1000 * 64 * 8 < peak < 32 * 1000 * 64 * 8


def test_bias_of_iwae_and_of_the_jackknife():
    """IWAE: -Var(w) / (2 K p(x)^2) + O(1/K^2) (Nowozin 2018); order 1 removes it."""
    evidence = WIDE.model().log_evidence(WIDE.x)
    ratio = renyi_divergence(WIDE.model().posterior(WIDE.x), as_full(WIDE.q()), 2.0)
    leading = -0.5 * torch.expm1(ratio)
    bound = {k: exact(WIDE, k).value - evidence for k in (31, 32, 63, 64)}
    for samples in (32, 64):
        assert (samples * bound[samples] / leading).item() == pytest.approx(1, abs=2.5 / samples)
    # The exact integrals first, then the estimator itself.
    first = {k: k * bound[k] - (k - 1) * bound[k - 1] for k in (32, 64)}
    assert abs(first[32]) < abs(bound[32]) / 20
    assert abs(first[64]) < abs(first[32]) / 3  # 1/4 is 1/K^2's
    bias = {0: exact(WIDE, 8).value - evidence}
    bias[1] = 8 * bias[0] - 7 * (exact(WIDE, 7).value - evidence)
    assert abs(bias[1]) < abs(bias[0]) / 5
    for order in (0, 1):
        estimated = replicate("jackknife", WIDE, 8, order=order, each=512).value - evidence
        mean, error = mean_and_error(estimated)
        assert (mean - bias[order]).abs() <= ERRORS * error
        assert error < abs(bias[0]) / 40
