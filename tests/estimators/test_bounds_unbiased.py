"""Every unbiased estimator against exact bounds and gradients.

Statistics: fixed seeds, comparisons at four standard errors from independent replicates, and
those errors at most 0.25 % of what is compared, so that a 1 % error fails (exact_bounds.check).
The posteriors of PLANE and SPACE are not diagonal, and q is off its optimum in all three
problems.
"""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from fused_elbo.estimators.bounds import estimate
from fused_elbo.estimators.models import DiagonalGaussian, as_full
from fused_elbo.estimators.models import kl_divergence as full_kl
from helpers.estimates import ENCODER
from helpers.exact_bounds import (
    ERRORS,
    F64,
    LINE,
    PLANE,
    POWER,
    SPACE,
    WIDE,
    Result,
    check,
    combine,
    deviations,
    differentiated,
    exact,
    exact_elbo,
    f64,
    log_weights_at,
    mean_and_error,
    nodes,
    replicate,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("problem", [PLANE, SPACE], ids=["plane", "space"])
@pytest.mark.parametrize("samples", [1, 3], ids="K={}".format)
@pytest.mark.parametrize("name", ["elbo", "elbo-monte-carlo", "elbo-entropy", "stl"])
def test_elbo_by_reparameterisation(name, samples, problem):
    joint = name != "elbo"
    check(replicate(name, problem, samples, joint=joint, each=2048), exact_elbo(problem))


@pytest.mark.parametrize("samples", [2, 5], ids="K={}".format)
def test_elbo_by_score_function(samples):
    """PLANE: the variance of the score grows with the dimension."""
    check(
        replicate("reinforce", PLANE, samples, each=8192 if samples == 2 else 4096),
        exact_elbo(PLANE),
    )


@pytest.mark.parametrize(
    ("name", "options", "truth"),
    [
        ("miwae", {"groups": 2}, exact_elbo),  # M = 2, K = 1
        ("piwae", {"groups": 2}, lambda p: exact_elbo(p)._replace(value=exact(p, 2).value)),
        ("ciwae", {"mix": 1.0}, exact_elbo),
        ("renyi", {"alpha": 1}, exact_elbo),
        ("renyi", {"alpha": 1 + 1e-6}, exact_elbo),
        ("renyi", {"alpha": 1 - 1e-6}, exact_elbo),
    ],
    ids=["miwae K=1", "piwae K=1", "ciwae mix=1", "renyi 1", "renyi 1+", "renyi 1-"],
)
def test_limits_that_are_the_elbo(name, options, truth):
    parts = ("value", *ENCODER) if name == "piwae" else Result._fields
    check(replicate(name, PLANE, 2, **options), truth(PLANE), parts)


@pytest.mark.parametrize("problem", [LINE, PLANE], ids=["line", "plane"])
@pytest.mark.parametrize("samples", [2, 5], ids="K={}".format)
@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco"])
def test_importance_weighted_bound(name, samples, problem):
    estimated = replicate(name, problem, samples, each=8192 if name == "vimco" else 4096)
    # vimco's signal is infinite in variance where one of few samples has all of the weight.
    check(estimated, exact(problem, samples), power=POWER * (2 if name == "vimco" else 1))


@pytest.mark.parametrize(("groups", "size"), [(2, 3), (3, 2)], ids=["M=2 K=3", "M=3 K=2"])
def test_groups_of_samples(groups, size):
    """M != K: the bound's K is the size of a group."""
    truth = exact(PLANE, size)
    check(replicate("miwae", PLANE, groups * size, groups=groups), truth)
    tight = exact(PLANE, groups * size)
    split = Result(tight.value, truth.mu, truth.logvar, tight.weight)
    check(replicate("piwae", PLANE, groups * size, groups=groups), split)


@pytest.mark.parametrize("mix", [0.3, 0.0], ids="mix={}".format)
def test_mixture_of_elbo_and_iwae(mix):
    truth = combine((mix, exact_elbo(PLANE)), (1 - mix, exact(PLANE, 3)))
    check(replicate("ciwae", PLANE, 3, mix=mix), truth)


@pytest.mark.parametrize("beta", [0.3, 2.0], ids="beta={}".format)
@pytest.mark.parametrize("name", ["elbo", "elbo-monte-carlo"])
def test_beta_weighs_the_kl(name, beta):
    """E log p(x|z) - beta KL = ELBO + (1 - beta) KL, the KL from torch.distributions."""

    def weighted(mu, logvar, weight):
        elbo = PLANE.model(weight).elbo(PLANE.x, DiagonalGaussian(mu, logvar))
        q = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
        prior = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
        return elbo + (1 - beta) * kl_divergence(q, prior)

    check(replicate(name, PLANE, 2, each=2048, beta=beta), differentiated(weighted, PLANE))


# Some dimensions lie under the threshold and some over it: min in place of max is visible.
@pytest.mark.parametrize("per", ["dimension", "total"])
@pytest.mark.parametrize("nats", [0.2, 0.9], ids="{} nats".format)
def test_free_bits_cost_nothing(nats, per):
    mu, logvar = f64([[0.1, 1.5], [0.2, 0.1]]), f64([[0.1, -0.2], [0.0, -0.3]])
    q, prior = Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros(2).double(), 1.0)
    kl = kl_divergence(q, prior)
    wanted = [
        sum(max(nats, k.item()) for k in row) if per == "dimension" else max(nats, row.sum().item())
        for row in kl
    ]
    result = estimate(
        "elbo",
        mu,
        logvar,
        2,
        log_likelihood=lambda z: 0 * z.sum(-1),
        free_bits=nats,
        free_bits_per=per,
    )
    torch.testing.assert_close(result.value, -f64(wanted))


def test_free_bits_leave_no_gradient_below_them():
    mu = f64([[0.1, 1.5]]).requires_grad_()
    estimate(
        "elbo",
        mu,
        torch.zeros(1, 2).double(),
        log_likelihood=lambda z: 0 * z.sum(-1),
        free_bits=0.2,
    ).surrogate.sum().backward()
    assert mu.grad.tolist() == [[0.0, -1.5]]


def test_reweighted_wake_sleep():
    """theta: IWAE's gradient. phi: E sum_k v_k grad log q(z_k), by the integral for any K."""
    samples, (eps, probability) = 3, nodes(2)
    with torch.no_grad():
        log_w = log_weights_at(PLANE, eps, PLANE.mu, PLANE.logvar, PLANE.weight)[:, 0]
    # E w_1 g_1 / sum_k w_k = int_0^inf E[w g exp(-t w)] phi(t)^(K - 1) dt, t = exp(r).
    r = torch.arange(-36.0, 60.0, 0.125, dtype=F64)
    damped = torch.exp(-torch.exp(r[:, None] + log_w - log_w.max())) * probability
    share = damped * torch.exp(r[:, None] + log_w - log_w.max())
    weights = (share * (damped.sum(1) ** (samples - 1))[:, None]).sum(0) * 0.125 * samples
    assert weights.sum().item() == pytest.approx(1, abs=1e-8)
    score_mu = eps[:, 0] * torch.exp(-0.5 * PLANE.logvar)
    score_logvar = 0.5 * (eps[:, 0].square() - 1)
    truth = exact(PLANE, samples)._replace(
        mu=(weights[:, None] * score_mu).sum(0, keepdim=True),
        logvar=(weights[:, None] * score_logvar).sum(0, keepdim=True),
    )
    check(replicate("rws", PLANE, samples, each=8192), truth)


def test_wake_update_of_one_sample_is_noise_of_mean_zero():
    estimated = replicate("rws", PLANE, 1, each=2048)
    off = deviations(
        estimated,
        Result(exact_elbo(PLANE).value, 0 * PLANE.mu, 0 * PLANE.logvar, exact_elbo(PLANE).weight),
    )
    assert max(off.values()) <= ERRORS


def test_wake_update_tends_to_the_inclusive_kl():
    """To -grad KL(p(z|x) || q), its bias falling as 1 / K."""
    posterior = WIDE.model().posterior(WIDE.x)
    wanted = differentiated(
        lambda mu, logvar, weight: (
            -full_kl(posterior, as_full(DiagonalGaussian(mu, logvar))) + 0 * weight.sum()
        ),
        WIDE,
    )
    bias, error = {}, {}
    for samples in (8, 64, 512):
        estimated = replicate("rws", WIDE, samples, each=2048 // samples, quasi=False)
        mean, errors = mean_and_error(torch.cat([estimated.mu, estimated.logvar], -1))
        bias[samples] = (mean - torch.cat([wanted.mu, wanted.logvar], -1)).abs().max()
        error[samples] = errors.max()
    assert bias[64] < bias[8] / 5
    assert bias[512] < bias[8] / 30 + ERRORS * error[512]
