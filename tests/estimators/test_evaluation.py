"""log_likelihood_bound: many samples, in chunks."""

import math

import pytest
import torch

from fused_elbo.estimators.evaluation import log_likelihood_bound
from helpers.estimates import generator
from helpers.exact_bounds import AT_POSTERIOR, ERRORS, F64, SPACE, WIDE, exact, mean_and_error

pytestmark = pytest.mark.usefixtures("one_thread")


def evaluate(problem, samples, **options):
    return log_likelihood_bound(
        problem.mu, problem.logvar, samples, log_likelihood=problem.log_likelihood,
        generator=generator(), **options,
    )  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 7, 100, 250, 1000], ids="chunks of {}".format)
def test_chunks_add_up(chunk):
    """At q = prior the log weights are the log-likelihoods: known ones, in the order of calls."""
    values, seen = torch.randn(250, 2, dtype=F64, generator=generator()).mul(5), 0

    def log_likelihood(z):
        nonlocal seen
        seen += len(z)
        return values[seen - len(z) : seen]

    zero = torch.zeros(2, 3, dtype=F64)
    bound = log_likelihood_bound(zero, zero, 250, log_likelihood=log_likelihood, chunk_size=chunk)
    assert seen == 250
    torch.testing.assert_close(bound, torch.logsumexp(values, 0) - math.log(250))


def test_five_thousand_samples_in_little_memory():
    """No call sees more than a chunk; within 4 errors of the exact evidence, bias < 1 / K."""
    sizes = []

    def log_likelihood(z):
        assert not z.requires_grad
        sizes.append(len(z))
        return WIDE.model().log_likelihood(WIDE.x, z)

    mu, logvar = (t.clone().requires_grad_() for t in WIDE.q())
    n = 40
    bound = log_likelihood_bound(
        mu.expand(n, 2), logvar.expand(n, 2), 5000, log_likelihood=log_likelihood,
        chunk_size=300, generator=generator(),
    )  # fmt: skip
    assert sizes == [300] * 16 + [200]
    assert not bound.requires_grad
    mean, error = mean_and_error(bound)
    wanted = exact(WIDE, 5000).value.item()
    assert error < 0.005
    assert abs(mean - wanted) <= ERRORS * error
    assert WIDE.model().log_evidence(WIDE.x).item() == pytest.approx(wanted, abs=1e-3)


def test_evaluation_takes_a_joint_a_prior_and_progress():
    wrapped = []

    def progress(sizes):
        wrapped.extend(sizes)
        return sizes

    plain = evaluate(SPACE, 25, chunk_size=10, progress=progress)
    assert wrapped == [10, 10, 5]
    joint = log_likelihood_bound(
        *SPACE.q(), 25, log_joint=SPACE.log_joint, chunk_size=10, generator=generator()
    )
    torch.testing.assert_close(joint, plain)
    prior = evaluate(SPACE, 25, chunk_size=10, prior_mu=0 * SPACE.mu[0])
    torch.testing.assert_close(prior, plain)


def test_evaluation_is_exact_at_the_posterior():
    bound = evaluate(AT_POSTERIOR, 30, chunk_size=20)
    wanted = AT_POSTERIOR.model().log_evidence(AT_POSTERIOR.x)
    torch.testing.assert_close(bound, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("argument", ["num_samples", "chunk_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_evaluation_refuses(argument, value):
    options = {"num_samples": 10, "chunk_size": 5} | {argument: value}
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got {value}"):
        evaluate(SPACE, options["num_samples"], chunk_size=options["chunk_size"])
