"""log_likelihood_bound: many samples, in chunks; data in batches; and how far to trust it."""

import math

import pytest
import torch

from fused_elbo.estimators import diagnostics
from fused_elbo.estimators.evaluation import log_likelihood_bound
from helpers.estimates import generator
from helpers.exact_bounds import AT_POSTERIOR, ERRORS, F64, SPACE, WIDE, exact, mean_and_error
from helpers.machine import NEEDS_ARVIZ

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
    found = log_likelihood_bound(zero, zero, 250, log_likelihood=log_likelihood, chunk_size=chunk)
    assert seen == 250
    torch.testing.assert_close(found.bound, torch.logsumexp(values, 0) - math.log(250))


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
    ).bound  # fmt: skip
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
    torch.testing.assert_close(joint, plain, equal_nan=True)
    prior = evaluate(SPACE, 25, chunk_size=10, prior_mu=0 * SPACE.mu[0])
    torch.testing.assert_close(prior, plain, equal_nan=True)


def test_evaluation_is_exact_at_the_posterior():
    found = evaluate(AT_POSTERIOR, 30, chunk_size=20)
    wanted = AT_POSTERIOR.model().log_evidence(AT_POSTERIOR.x)
    torch.testing.assert_close(found.bound, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.ess, torch.full_like(wanted, 30.0))
    assert (found.standard_error < 1e-6).all()


def of_weights(log_weights, **options):
    """The result for known log weights [K, B]: at q = prior they are the log-likelihoods."""
    zero = torch.zeros(*log_weights.shape[1:], 1, dtype=log_weights.dtype)
    options = {"log_likelihood": lambda z: log_weights, "chunk_size": len(log_weights)} | options
    return log_likelihood_bound(zero, zero, len(log_weights), **options)


def test_standard_error_and_effective_samples():
    """The error is the bounds' standard deviation over 400 replicates, to its own four errors."""
    n, samples = 400, 300
    found = log_likelihood_bound(
        WIDE.mu.expand(n, 2), WIDE.logvar.expand(n, 2), samples,
        log_likelihood=lambda z: WIDE.model().log_likelihood(WIDE.x, z), generator=generator(),
    )  # fmt: skip
    deviation = found.bound.std()
    typical = found.standard_error.square().mean().sqrt()
    assert abs(typical / deviation - 1) < 4 / math.sqrt(2 * n)
    log_weights = torch.randn(50, 3, dtype=F64, generator=generator())
    share = torch.softmax(log_weights, 0)
    torch.testing.assert_close(of_weights(log_weights).ess, 1 / share.square().sum(0))
    weights = log_weights.exp()  # d log w = dw / w, of the mean of 50 weights
    error = weights.std(0) / weights.mean(0) / math.sqrt(50)
    torch.testing.assert_close(of_weights(log_weights).standard_error, error)
    assert of_weights(log_weights[:1]).standard_error.isnan().all()


# The weights of N(0, s^2) for N(0, 1) have k = 1 - s^2: within reach of smoothing, and past it.
@NEEDS_ARVIZ
@pytest.mark.parametrize(("scale", "trusted"), [(0.64, True), (0.35, False)])
def test_smoothing_helps_where_k_says_so(scale, trusted):
    """log p = 0: the smoothed estimate has the smaller error, and k tells if it is to be had."""
    z = scale * torch.randn(2000, 300, dtype=F64, generator=generator())
    found = of_weights(0.5 * (1 / scale**2 - 1) * z.square() + math.log(scale))
    wrong = {name: getattr(found, name).square().mean().sqrt() for name in ("bound", "smoothed")}
    assert (found.pareto_k.median() < 0.7) == trusted
    if trusted:
        assert wrong["smoothed"] < 0.95 * wrong["bound"]
    else:
        assert min(wrong.values()) > 0.2


@NEEDS_ARVIZ
def test_smoothed_weights_are_those_of_arviz():
    """Its weights are normalised: by the smallest, which no tail has, they are put to scale."""
    from arviz_stats.base import array_stats

    log_weights = 40 + 2 * torch.randn(500, 3, dtype=F64, generator=generator())
    found = of_weights(log_weights)
    for i, column in enumerate(log_weights.T.numpy()):
        smoothed, k = array_stats.psislw(-column)
        at = column.argmin()
        assert found.pareto_k[i].item() == pytest.approx(float(k), rel=1e-12)
        wanted = column[at] - smoothed[at] - math.log(500)
        assert found.smoothed[i].item() == pytest.approx(wanted, rel=1e-12)
    assert (found.smoothed != found.bound).all()
    shifted = of_weights((log_weights - 900).float())
    assert shifted.smoothed.dtype == torch.float32
    torch.testing.assert_close(shifted.smoothed.double(), found.smoothed - 900, rtol=1e-6, atol=0)


@NEEDS_ARVIZ
def test_what_cannot_be_smoothed_is_left_as_it_is():
    noise = torch.randn(100, 5, dtype=F64, generator=generator())
    noise[0, 0] += 2000  # all of the sum
    noise[:, 1] *= 5000  # a few are
    noise[:, 2] = 3.0
    noise[:, 3] = -math.inf
    noise[:60, 4] = -math.inf
    found = of_weights(noise)
    assert found.pareto_k[:2].tolist() == [math.inf, math.inf]
    assert found.pareto_k[2:4].isnan().all()
    assert found.pareto_k[4].isfinite()
    assert torch.equal(found.smoothed[:4], found.bound[:4])
    assert abs(found.smoothed[4] - found.bound[4]) < 0.1
    few = of_weights(noise[:24, 4:])
    assert few.pareto_k.isnan().all()
    assert torch.equal(few.smoothed, few.bound)


def test_without_arviz(monkeypatch):
    """The bound and its error all the same; what needs the library says so."""
    monkeypatch.setattr(diagnostics, "HAS_ARVIZ", False)
    found = of_weights(torch.randn(50, 3, generator=generator()))
    assert found.smoothed is None
    assert found.pareto_k is None
    assert found.standard_error.isfinite().all()
    assert "needs arviz-stats" in str(found)
    with pytest.raises(RuntimeError, match="pip install arviz-stats"):
        diagnostics.pareto_k(torch.zeros(50))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 5, None])
def test_data_in_batches(batch_size, joint):
    """At the posterior of each example the weights are its evidence, whatever the noise."""
    model = AT_POSTERIOR.model()
    x = torch.cat([AT_POSTERIOR.x + shift for shift in (0.0, 1.0, -2.0)])
    q, seen = model.optimal_diagonal(x), []

    def target(z, batch):
        seen.append(len(batch))
        return (model.log_joint if joint else model.log_likelihood)(batch, z)

    wrapped = []

    def progress(sizes):
        wrapped.extend(sizes)
        return sizes

    found = log_likelihood_bound(
        *q, 30, data=x, batch_size=batch_size, chunk_size=20, progress=progress,
        **{"log_joint" if joint else "log_likelihood": target},
    )  # fmt: skip
    torch.testing.assert_close(found.bound, model.log_evidence(x), rtol=1e-12, atol=1e-12)
    assert found.ess.shape == found.standard_error.shape == (len(x),)
    assert found.num_samples == 30
    assert max(seen) == min(batch_size or len(x), len(x))
    assert sum(seen) == 2 * len(x)
    assert wrapped == [20, 10] * -(-len(x) // (batch_size or len(x)))


def test_batches_have_their_own_prior():
    """One a model's [D], one an example's [N, D]: log-likelihoods 0, so the evidence is 1."""
    mu = torch.randn(5, 2, dtype=F64, generator=generator())
    logvar = torch.zeros(5, 2, dtype=F64)
    for prior_mu in (mu, mu[0]):
        found = log_likelihood_bound(
            prior_mu.expand(5, 2), logvar, 3, log_likelihood=lambda z, x: 0 * z.sum(-1),
            data=mu, batch_size=2, prior_mu=prior_mu,
        )  # fmt: skip
        torch.testing.assert_close(found.bound, torch.zeros(5, dtype=F64), rtol=0, atol=1e-12)


@NEEDS_ARVIZ
def test_the_result_says_what_is_a_bound():
    log_weights = torch.randn(400, 2, dtype=F64, generator=generator())
    log_weights[0, 1] += 800
    text = str(of_weights(log_weights))
    found = of_weights(log_weights)
    assert "mean over 2" in text
    assert f"lower bound (in expectation)  {found.bound.mean():.3f} +- " in text
    assert "K = 400" in text
    assert f"Pareto-smoothed, no bound     {found.smoothed.mean():.3f}" in text
    assert "Pareto k over 0.7 or unknown  1 of 2" in text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 2}, "batch_size needs data"),
        ({"data": torch.zeros(7, 3)}, r"expected data \[N, ...\] for mu \[N, ..., D\].*\(7, 3\)"),
        ({"data": torch.zeros(2, 3), "batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
    ids=["no data", "another length", "no batch"],
)
def test_batches_refuse(options, match):
    with pytest.raises(ValueError, match=match):
        of_weights(torch.zeros(4, 2), **options)


@pytest.mark.parametrize("argument", ["num_samples", "chunk_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_evaluation_refuses(argument, value):
    options = {"num_samples": 10, "chunk_size": 5} | {argument: value}
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got {value}"):
        evaluate(SPACE, options["num_samples"], chunk_size=options["chunk_size"])
