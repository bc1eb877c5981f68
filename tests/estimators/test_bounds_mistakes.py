"""Mistakes of well-known code: the criteria that accept ours reject each."""

import math

import pytest
import torch
from torch.distributions import Normal

from fused_elbo.estimators import bounds
from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from helpers.estimates import ENCODER, GRADIENTS, generator
from helpers.exact_bounds import (
    ERRORS,
    F64,
    PLANE,
    SPACE,
    Result,
    deviations,
    exact,
    exact_elbo,
    mean_and_error,
    replicate,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def iwae_as_weighted_logs(draws):
    """Reported as sum_k v_k log w_k: the gradient is right, the value is no bound."""
    log_w, surrogate, _ = bounds.iwae(draws)
    weighted = (torch.softmax(log_w.detach(), 0) * log_w.detach()).sum(0)
    return log_w, surrogate, weighted


def weights_of_the_loss(draws):
    """softmax(+loss), attached: the worst particle gets the most weight."""
    log_w, _, value = bounds.iwae(draws)
    loss = -log_w
    return log_w, -(torch.softmax(loss, 0) * loss).sum(0), value


def groups_swapped(draws):
    """M groups of K taken for K groups of M."""
    return bounds.miwae(draws, groups=draws.num_samples // 2)


def piwae_swapped(draws):
    return bounds.piwae(draws, groups=draws.num_samples // 2)


def groups_transposed(draws):
    """Groups cut along the wrong axis of a reshape, for the encoder's weights alone."""
    log_w = draws.log_weights()
    weights = torch.softmax(bounds.in_groups(log_w.detach(), 2), 0) / 2
    weights = weights.reshape(log_w.shape)  # where it should be transposed first
    return log_w, (weights * log_w).sum(0), log_mean_exp(log_w)


def log_mean_exp(log_w):
    return torch.logsumexp(log_w.detach(), 0) - math.log(len(log_w))


def dreg_for_the_model_too(draws):
    """v_k^2 for theta as well."""
    z, log_ratio = draws.sample("path")
    log_w = draws.log_target(z) + log_ratio
    weights = torch.softmax(log_w.detach(), 0)
    return log_w, (weights**2 * log_w).sum(0), log_mean_exp(log_w)


def dreg_with_single_weights(draws):
    """v_k for phi: the path derivative of IWAE without its correction."""
    z, log_ratio = draws.sample("path")
    log_w = draws.log_target(z) + log_ratio
    return log_w, (torch.softmax(log_w.detach(), 0) * log_w).sum(0), log_mean_exp(log_w)


def log_k_dropped(draws):
    log_w, surrogate, value = bounds.iwae(draws)
    return log_w, surrogate, value + math.log(len(log_w))


def baseline_with_the_own_sample(draws):
    z = draws.sample()[0].detach()
    log_joint, log_q = draws.log_joint(z), draws.log_q_score(z)
    log_w = (log_joint - log_q).detach()
    return log_w, ((log_w - log_w.mean(0)) * log_q + log_joint).mean(0), log_w.mean(0)


def wrong_by_one_percent(draws):
    log_w, surrogate, value = bounds.iwae(draws)
    return log_w, 1.01 * surrogate, 1.01 * value


def ours(name, **options):
    return lambda draws: ESTIMATORS[name].function(draws, **options)


MISTAKES = {
    # id: (the mistake, ours, K, the exact answer, the parts that are wrong)
    "IWAE reported as -sum v log w": (iwae_as_weighted_logs, "iwae", 3, exact, {"value"}),
    "softmax of the loss": (weights_of_the_loss, "iwae", 3, exact, set(GRADIENTS)),
    "DReG for the model too": (dreg_for_the_model_too, "dreg", 3, exact, {"weight"}),
    "DReG with v for phi": (dreg_with_single_weights, "dreg", 3, exact, set(ENCODER)),
    "log K dropped": (log_k_dropped, "iwae", 3, exact, {"value"}),
    "1 % everywhere": (wrong_by_one_percent, "iwae", 3, exact, set(Result._fields)),
    "baseline with the own sample": (
        baseline_with_the_own_sample,
        "reinforce",
        3,
        lambda problem, _: exact_elbo(problem),
        set(ENCODER),
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_seen(case):
    """A mistake fails where it is wrong and passes where it is right; ours passes everywhere."""
    mistake, name, samples, truth, wrong = MISTAKES[case]
    wanted = truth(PLANE, samples)
    found = deviations(replicate(mistake, PLANE, samples), wanted)
    assert {part for part in found if found[part] > ERRORS} == wrong
    own = deviations(replicate(name, PLANE, samples), wanted)
    assert max(own.values()) <= ERRORS


@pytest.mark.parametrize("mistake", [groups_swapped, piwae_swapped, groups_transposed])
def test_mistaken_groups_are_seen(mistake):
    """Two groups of three: all of these are right where M = K."""
    wanted = exact(PLANE, 3)
    found = deviations(replicate(mistake, PLANE, 6), wanted)
    assert all(found[part] > ERRORS for part in ENCODER[:1])
    name = "miwae" if mistake is groups_swapped else "piwae"
    own = deviations(replicate(name, PLANE, 6, groups=2), wanted)
    assert all(own[part] <= ERRORS for part in ENCODER)


def test_iwae_value_stays_under_the_evidence_where_the_mistake_does_not():
    """Sum_k v_k log w_k tends to log p(x) + KL(p(z|x) || q)."""
    evidence = PLANE.model().log_evidence(PLANE.x)
    wrong, error = mean_and_error(
        replicate(iwae_as_weighted_logs, PLANE, 64, each=50, quasi=False).value
    )
    assert (wrong - evidence > ERRORS * error).all()
    right, error = mean_and_error(replicate("iwae", PLANE, 64, each=50, quasi=False).value)
    assert (evidence - right > ERRORS * error).all()


@pytest.mark.parametrize("name", ["iwae", "miwae", "dreg", "rws", "vimco", "piwae"])
def test_the_best_particle_weighs_the_most(name):
    """d surrogate / d log p(x, z_k) is exactly w_k / sum_j w_j: what theta's gradient sees."""
    seen = []

    def target(z):
        seen.append(SPACE.log_joint(z) + 0 * torch.zeros((), dtype=F64, requires_grad=True))
        return seen[-1]

    mu = SPACE.mu.clone().requires_grad_()
    result = estimate(name, mu, SPACE.logvar, 5, log_joint=target, generator=generator())
    (weights,) = torch.autograd.grad(result.surrogate.sum(), seen[0])
    w = result.log_weights.exp()
    torch.testing.assert_close(weights, w / w.sum(0))
    assert torch.equal(weights.argmax(0), w.argmax(0))


@pytest.mark.parametrize(
    ("mistaken", "above"),
    [
        (lambda model, x, z: model.log_likelihood(x, z) / x.shape[-1], True),
        (
            lambda model, x, z: (
                -0.5
                * (x - z @ model.weight.mT - model.bias).square().sum(-1)
                / model.noise_variance
            ),
            True,
        ),
    ],
    ids=["mean over pixels", "constants dropped"],
)
def test_a_likelihood_that_is_none_exceeds_the_evidence(mistaken, above):
    """Both are seen in the value; the model's own likelihood passes (test_elbo_...)."""
    model = SPACE.model()
    mu, logvar = (t.expand(20_000, 2, 3) for t in SPACE.q())
    result = estimate(
        "elbo",
        mu,
        logvar,
        log_likelihood=lambda z: mistaken(model, SPACE.x, z),
        generator=generator(),
    )
    mean, error = mean_and_error(result.value)
    right = exact_elbo(SPACE).value
    assert ((mean - right) > 10 * ERRORS * error).all() == above
    own = estimate("elbo", mu, logvar, log_likelihood=SPACE.log_likelihood, generator=generator())
    mean, error = mean_and_error(own.value)
    assert ((mean - right).abs() <= ERRORS * error).all()


@pytest.mark.parametrize("options", [{}, {"free_bits": 1e-12}], ids=["kl", "kl per dimension"])
def test_kl_near_the_prior_is_not_negative(options):
    """In float32 the usual form gives 0.5 (exp(1e-4) - 1 - 1e-4) = -0.0 or worse; truth 2.5e-9."""
    logvar = torch.full((1, 3), 1e-4)
    result = estimate(
        "elbo", torch.zeros(1, 3), logvar, log_likelihood=lambda z: 0 * z.sum(-1), **options
    )
    assert -result.value.item() == pytest.approx(3 * 2.5e-9, rel=1e-3)


@pytest.mark.parametrize("name", ["elbo", "elbo-monte-carlo", "elbo-entropy", "iwae", "stl"])
def test_half_precision_does_not_overflow(name):
    """exp(logvar) = 163,000 is past float16's greatest, 65,504; log q is summed in float32."""
    mu, logvar = torch.zeros(1, 64).half(), torch.full((1, 64), 12.0).half()
    result = estimate(
        name, mu, logvar, 3, log_likelihood=lambda z: 0 * z.float().sum(-1), generator=generator()
    )
    z = result.z.double()
    log_q = Normal(0.0, math.exp(6)).log_prob(z).sum(-1)
    wanted = Normal(0.0, 1.0).log_prob(z).sum(-1) - log_q
    assert result.value.isfinite().all()
    # The log ratio is that of the sample before it is rounded to 11 bits, by 2**-11 of |z|.
    rounded = z.square().sum(-1).max().item() * 2.0**-11
    torch.testing.assert_close(result.log_weights.double(), wanted, rtol=0, atol=rounded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_half_precision_weights_are_summed_in_float32(dtype):
    """At q = prior and a likelihood of 1 all log weights are 0."""
    zero = torch.zeros(2, 64, dtype=dtype)
    result = estimate("iwae", zero, zero, 4, log_likelihood=lambda z: 0 * z.float().sum(-1))
    assert result.log_weights.abs().max() < 1e-4
