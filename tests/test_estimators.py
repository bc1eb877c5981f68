"""Every estimator against exact bounds and gradients, and every known mistake against the same.

Statistics: fixed seeds, comparisons at four standard errors from independent replicates, and
those errors at most 0.25 % of what is compared, so that a 1 % error fails (exact.check). The
posteriors of PLANE and SPACE are not diagonal, and q is off its optimum in all three problems.
"""

import itertools
import math

import pytest
import torch
from exact import (
    ERRORS,
    F64,
    LINE,
    PLANE,
    POWER,
    SPACE,
    Result,
    check,
    combine,
    deviations,
    differentiated,
    exact,
    exact_elbo,
    expected_log_mean,
    f64,
    log_weights_at,
    mean_and_error,
    nodes,
    replicate,
    weakness,
)
from scipy import integrate, stats
from torch.distributions import Independent, Normal, kl_divergence

from fused_elbo.estimators import bounds, noise, reference, sampling
from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from fused_elbo.estimators.evaluation import log_likelihood_bound
from fused_elbo.estimators.models import (
    DiagonalGaussian,
    LinearGaussianModel,
    as_full,
    renyi_divergence,
)
from fused_elbo.estimators.models import kl_divergence as full_kl

ENCODER = ("mu", "logvar")
GRADIENTS = (*ENCODER, "weight")
SCORE = ("reinforce", "vimco", "rws")  # no gradient of the log-likelihood in z
EVERY = pytest.mark.parametrize("name", ESTIMATORS)
# One choice of options for each estimator, with M != K where there are groups.
OPTIONS = {"miwae": {"groups": 3}, "piwae": {"groups": 3}, "jackknife": {"order": 2}}


# Wider than the posterior: weights have a finite variance, and orders below 1 converge fast.
WIDE = PLANE._replace(logvar=f64([[0.1, 0.2]]))
# Narrower: and so do orders above 1.
NARROW = PLANE._replace(logvar=f64([[-0.8, -1.3]]))


pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run(name, problem, samples=6, *, seed=0, joint=False, **options):
    """One estimate and its gradients, at a fixed seed."""
    mu, logvar, weight = (
        t.clone().requires_grad_() for t in (problem.mu, problem.logvar, problem.weight)
    )
    model = problem.model(weight)
    density = model.log_joint if joint else model.log_likelihood
    target = {"log_joint" if joint else "log_likelihood": lambda z: density(problem.x, z)}
    result = estimate(name, mu, logvar, samples, generator=generator(seed), **target, **options)
    result.surrogate.sum().backward()
    return result, Result(result.value, mu.grad, logvar.grad, weight.grad)


# The numerical integrals themselves.


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


# Unbiased: values and gradients.


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


# Biased: the bias that theory says.


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


def test_bias_of_iwae_and_of_the_jackknife():
    """IWAE: -Var(w) / (2 K p(x)^2) + O(1/K^2) (Nowozin 2018); order 1 removes it."""
    evidence = WIDE.model().log_evidence(WIDE.x)
    ratio = renyi_divergence(WIDE.model().posterior(WIDE.x), as_full(WIDE.q()), 2.0)
    leading = -0.5 * torch.expm1(ratio)
    bound = {k: exact(WIDE, k).value - evidence for k in (31, 32, 63, 64)}
    for samples in (32, 64):
        assert (samples * bound[samples] / leading).item() == pytest.approx(1, abs=2.5 / samples)
    # By the exact integrals, and by the estimator itself.
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


# Order, and exact zeros.


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


# Columns at right angles: the posterior is diagonal, and q can be it.
DIAGONAL = SPACE._replace(
    weight=f64([[0.9, 0.0, 0.0], [0.0, -0.7, 0.0], [0.0, 0.0, 0.4], [0.0, 0.0, 0.8]])
)
_posterior = DIAGONAL.model().posterior(DIAGONAL.x)
AT_POSTERIOR = DIAGONAL._replace(
    mu=_posterior.mean, logvar=_posterior.covariance.diagonal(dim1=-2, dim2=-1).log()
)


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


# Mistakes of well-known code: the criteria of this file reject each, and accept ours.


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
    """What is wrong with it fails, what is right passes, and ours passes everywhere."""
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


# One interface.


def test_registry_covers_the_issue():
    assert set(ESTIMATORS) == {
        "elbo", "elbo-monte-carlo", "elbo-entropy", "stl", "reinforce", "vimco", "iwae", "miwae",
        "ciwae", "piwae", "dreg", "rws", "renyi", "cubo", "jackknife",
    }  # fmt: skip
    for estimator in ESTIMATORS.values():
        assert estimator.paper
        assert estimator.bound
        assert estimator.function.__doc__


@EVERY
def test_needs_reparameterisation_as_the_registry_says(name):
    """Only score functions train q from a log-likelihood without a gradient in z."""
    mu = SPACE.mu.clone().requires_grad_()

    def black_box(z):
        return SPACE.log_likelihood(z.detach())

    if ESTIMATORS[name].reparameterised:
        with pytest.raises(ValueError, match=r"log_likelihood\(z\) has no gradient in z"):
            estimate(name, mu, SPACE.logvar, 6, log_likelihood=black_box)
    else:
        estimate(name, mu, SPACE.logvar, 6, log_likelihood=black_box).surrogate.sum().backward()
        assert mu.grad.abs().min() > 0
    assert ESTIMATORS[name].reparameterised == (name not in SCORE)


@EVERY
def test_extra_batch_dimensions_and_the_order_of_examples(name):
    """[T, B, D] is [T B, D]: the same noise, so the same numbers."""
    stacked = torch.stack([SPACE.mu, SPACE.mu + 0.3])
    logvar, x = SPACE.logvar.expand(2, 2, 3), SPACE.x
    model = SPACE.model()
    options = OPTIONS.get(name, {})
    shaped = estimate(
        name,
        stacked,
        logvar,
        6,
        log_likelihood=lambda z: model.log_likelihood(x, z),
        generator=generator(),
        **options,
    )
    flat = estimate(
        name, stacked.flatten(0, 1), logvar.flatten(0, 1), 6,
        log_likelihood=lambda z: model.log_likelihood(x.repeat(2, 1), z),
        generator=generator(), **options,
    )  # fmt: skip
    assert shaped.value.shape == shaped.surrogate.shape == (2, 2)
    assert shaped.log_weights.shape == (6, 2, 2)
    assert shaped.z.shape == (6, 2, 2, 3)
    torch.testing.assert_close(shaped.value.flatten(), flat.value)
    torch.testing.assert_close(shaped.surrogate.flatten(), flat.surrogate)


@EVERY
def test_an_example_does_not_see_the_others(name):
    """The gradient of one example's surrogate is zero in the other's parameters."""
    mu = SPACE.mu.clone().requires_grad_()
    result = estimate(
        name, mu, SPACE.logvar, 6, log_likelihood=SPACE.log_likelihood, **OPTIONS.get(name, {})
    )
    result.surrogate[0].backward()
    assert mu.grad[1].abs().max() == 0
    assert mu.grad[0].abs().min() > 0


@EVERY
def test_log_joint_in_place_of_log_likelihood(name):
    if name == "elbo":
        with pytest.raises(ValueError, match="needs log_likelihood, and got log_joint"):
            run(name, SPACE, joint=True)
        return
    options = OPTIONS.get(name, {})
    for a, b in zip(
        run(name, SPACE, joint=True, **options)[1], run(name, SPACE, **options)[1], strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "given", [("prior_mu",), ("prior_logvar",), ("prior_mu", "prior_logvar")], ids=" and ".join
)
@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "elbo"])  # which takes no joint
def test_priors_given(name, given):
    """The same as a joint with that prior, by torch.distributions; in its parameters too."""
    start = {"prior_mu": f64([0.3, -0.2, 0.5]), "prior_logvar": f64([0.4, -0.6, 0.1])}
    options, found = OPTIONS.get(name, {}), []
    for joint in (False, True):
        prior = {k: start[k].clone().requires_grad_() for k in given}
        mu = SPACE.mu.clone().requires_grad_()

        def log_joint(z, prior=prior):
            loc = prior.get("prior_mu", torch.zeros(3, dtype=F64))
            scale = (0.5 * prior.get("prior_logvar", torch.zeros(3, dtype=F64))).exp()
            return SPACE.log_likelihood(z) + Normal(loc, scale).log_prob(z).sum(-1)

        target = (
            {"log_joint": log_joint} if joint else {"log_likelihood": SPACE.log_likelihood, **prior}
        )
        result = estimate(name, mu, SPACE.logvar, 6, generator=generator(), **target, **options)
        result.surrogate.sum().backward()
        found.append([result.value, mu.grad, *(p.grad for p in prior.values())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("free_bits", [0.0, 1e-9], ids=["total", "per dimension"])
@pytest.mark.parametrize(
    "given", [("prior_mu",), ("prior_logvar",), ("prior_mu", "prior_logvar")], ids=" and ".join
)
def test_priors_given_to_the_analytic_form(given, free_bits):
    start = {"prior_mu": f64([0.3, -0.2, 0.5]), "prior_logvar": f64([[0.4, -0.6, 0.1]])}
    prior = {k: start[k] for k in given}
    p = Normal(
        prior.get("prior_mu", torch.zeros(3, dtype=F64)),
        (0.5 * prior.get("prior_logvar", torch.zeros(3, dtype=F64))).exp(),
    )
    q = Normal(SPACE.mu, (0.5 * SPACE.logvar).exp())
    result = estimate(
        "elbo", *SPACE.q(), log_likelihood=lambda z: 0 * z.sum(-1), free_bits=free_bits, **prior
    )
    torch.testing.assert_close(result.value, -kl_divergence(q, p).sum(-1))
    z = result.z
    torch.testing.assert_close(result.log_weights, (p.log_prob(z) - q.log_prob(z)).sum(-1))


@EVERY
def test_log_weights_are_the_weights_of_the_samples(name):
    result, _ = run(name, SPACE, **OPTIONS.get(name, {}))
    q = Independent(Normal(SPACE.mu, (0.5 * SPACE.logvar).exp()), 1)
    wanted = SPACE.log_joint(result.z) - q.log_prob(result.z)
    torch.testing.assert_close(result.log_weights, wanted)
    assert not any(t.requires_grad for t in (result.value, result.log_weights, result.z))


@EVERY
def test_a_batch_of_one_example(name):
    result, found = run(name, PLANE, **OPTIONS.get(name, {}))
    assert result.value.shape == (1,)
    assert all(part.isfinite().all() for part in found)


@EVERY
def test_float32(name):
    """float32 in, float32 out, and the value that float64 has at the same samples."""
    low = SPACE._replace(
        **{k: getattr(SPACE, k).float() for k in ("x", "weight", "bias", "mu", "logvar")}
    )
    options = OPTIONS.get(name, {})
    result, found = run(name, low, **options)
    assert {t.dtype for t in (*result, *found)} == {torch.float32}
    q = Independent(Normal(SPACE.mu, (0.5 * SPACE.logvar).exp()), 1)
    z = result.z.double()
    torch.testing.assert_close(
        result.log_weights.double(), SPACE.log_joint(z) - q.log_prob(z), rtol=0, atol=2e-5
    )
    # The same noise in float64: that of the float32 samples.
    eps = (z - SPACE.mu) * torch.exp(-0.5 * SPACE.logvar)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds.samplers, "draw", lambda *_, **__: eps)
        _, wide = run(name, SPACE, **options)
    for part, wanted in zip(found, wide, strict=True):
        # The jackknife multiplies rounding errors by its coefficients, up to 25 at K = 6.
        torch.testing.assert_close(part.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha", [1 - 1e-3, 1 - 1e-6, 1.0, 1 + 1e-6], ids="{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
def test_renyi_is_continuous_at_one(alpha, dtype):
    """In float32 log_mean_exp of weights to the power 1e-6 cancels, by 0.1 nats."""
    zero = torch.zeros(1, 3, dtype=dtype)

    def value(a):
        return estimate(
            "renyi", zero, zero, 8, alpha=a, generator=generator(),
            log_likelihood=lambda z: -100 - 0.5 * z.square().sum(-1),
        ).value.item()  # fmt: skip

    assert value(alpha) == pytest.approx(value(1), abs=5e-3 if alpha == 1 - 1e-3 else 1e-4)


@pytest.mark.parametrize(
    ("name", "sampled"),
    [
        (name, sampled)
        for name in ESTIMATORS
        for sampled in sampling.SAMPLINGS
        if sampled == "independent" or name not in bounds.INDEPENDENT_ONLY
    ],
)
def test_kernels_and_reference_agree(name, sampled, device, monkeypatch):
    """The same noise through the fused kernels, interpreted on a CPU: values and gradients."""

    def draw(num_samples, like, *, sampling, generator):
        draws = num_samples // 2 if sampling == "antithetic" else num_samples
        eps = noise.stream(
            noise.draw_seed(device, generator), draws, like[..., 0].numel(), 2
        ).double()
        eps = reference.with_antithetic(eps) if sampling == "antithetic" else eps
        return eps.view(num_samples, *like.shape)

    if sampled != "sobol":  # that one is torch's own for both
        monkeypatch.setattr(bounds.samplers, "draw", draw)
    problem, found = PLANE, []
    options = {"miwae": {"groups": 2}, "piwae": {"groups": 2}}.get(name, {})
    model = LinearGaussianModel(
        problem.weight.to(device), problem.bias.to(device), problem.noise_variance
    )
    prior = torch.tensor([0.3, -0.2], dtype=F64, device=device), torch.zeros(2).to(device, F64)
    for impl in ("triton", "reference"):
        leaves = [t.to(device).clone().requires_grad_() for t in (*problem.q(), *prior)]
        mu, logvar, prior_mu, prior_logvar = leaves
        result = estimate(
            name, mu, logvar, 4, impl=impl, sampling=sampled, **options,
            prior_mu=prior_mu, prior_logvar=prior_logvar,
            generator=torch.Generator(device).manual_seed(3),
            log_likelihood=lambda z: model.log_likelihood(problem.x.to(device), z),
        )  # fmt: skip
        result.surrogate.sum().backward()
        found.append([*result, *(leaf.grad for leaf in leaves)])
    for fused, expected in zip(*found, strict=True):
        # The noise, float32, agrees to its last bits.
        torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "truth"),
    [
        ("elbo", {}, exact_elbo),
        ("stl", {}, exact_elbo),
        ("iwae", {}, lambda problem: exact(problem, 3)),
        ("dreg", {}, lambda problem: exact(problem, 3)),
        ("renyi", {"alpha": 0.5}, lambda problem: exact(problem, 3, alpha=0.5)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kernels_meet_the_exact_answers(name, options, truth):
    """Their own noise, values and gradients: means of 16,384 estimates, four standard errors.

    On a CPU, where the exact model of this file is: interpreted.
    """
    estimated = replicate(
        name, PLANE, 3, replicates=64, each=256, quasi=False, impl="triton", **options
    )
    check(estimated, truth(PLANE), power=0.045)


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "elbo"])
def test_kernels_and_reference_agree_on_a_joint(name, device, monkeypatch):
    """Without a prior to weigh, the kernels' log ratio is -log q alone."""

    def draw(num_samples, like, **_):
        seed = noise.draw_seed(device, torch.Generator(device).manual_seed(3))
        eps = noise.stream(seed, num_samples, 2, 2).double()
        return eps.view(num_samples, *like.shape)

    monkeypatch.setattr(bounds.samplers, "draw", draw)
    options = {"miwae": {"groups": 2}, "piwae": {"groups": 2}}.get(name, {})
    found = []
    for impl in ("triton", "reference"):
        leaves = [
            t.to(device, F64).requires_grad_()
            for t in (torch.tensor([[0.3, -1.0], [0.0, 2.0]]), torch.tensor([[-1.0, 0.5], [0, 1]]))
        ]
        result = estimate(
            name, *leaves, 4, impl=impl, **options,
            generator=torch.Generator(device).manual_seed(3),
            log_joint=lambda z: -(z - 1).square().sum(-1) - z.pow(4).sum(-1) / 20,
        )  # fmt: skip
        result.surrogate.sum().backward()
        found.append([*result, *(leaf.grad for leaf in leaves)])
    for fused, expected in zip(*found, strict=True):
        torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)


# Sampling.


def test_antithetic_pairs():
    eps = sampling.draw(6, torch.zeros(2, 3), sampling="antithetic", generator=generator())
    assert torch.equal(eps[::2], -eps[1::2])
    assert eps[::2].unique().numel() == eps[::2].numel()


@pytest.mark.parametrize("kind", sampling.SAMPLINGS)
def test_noise_is_standard_normal(kind):
    """Each sample over independent examples, by Kolmogorov-Smirnov; p of a fixed seed."""
    like = torch.zeros(4000, 3, dtype=F64)
    eps = sampling.draw(4, like, sampling=kind, generator=generator(5))
    for sample, dimension in itertools.product(range(4), range(3)):
        assert stats.kstest(eps[sample, :, dimension].numpy(), "norm").pvalue > 1e-3
    # Dimensions are uncorrelated, to four standard errors.
    correlation = torch.corrcoef(eps[0].T)
    off = correlation - torch.eye(3)
    assert off.abs().max() < 4 / math.sqrt(4000)
    if kind == "independent":  # of each other, too
        assert torch.corrcoef(eps[..., 0])[0, 1:].abs().max() < 4 / math.sqrt(4000)
    assert not torch.equal(eps[:, 0], eps[:, 1])


@pytest.mark.parametrize("kind", ["antithetic", "sobol"])
@pytest.mark.parametrize("name", ["elbo", "elbo-entropy", "stl"])
def test_structured_samples_are_unbiased_for_the_elbo(name, kind):
    """Averages need no independence. Sobol: over seeds, each with its own scramble."""
    draws = [
        replicate(name, PLANE, 8, sampling=kind, replicates=1, each=500, seed=seed, quasi=False)
        for seed in range(40)
    ]
    # One mean a seed, so that no independence within a call is assumed.
    estimated = Result(
        *(torch.stack([part.mean(0) for part in parts]) for parts in zip(*draws, strict=True))
    )
    off = deviations(estimated, exact_elbo(PLANE))
    assert max(off.values()) <= ERRORS
    assert max(weakness(estimated, exact_elbo(PLANE)).values()) <= 0.015


@pytest.mark.parametrize(("kind", "factor"), [("antithetic", 1.5), ("sobol", 5)])
def test_structured_samples_reduce_variance(kind, factor):
    """Of mean_k log p(x|z_k), a quadratic: antithetic pairs remove its linear part."""
    spread = {
        sampled: replicate(
            "elbo", PLANE, 64, sampling=sampled, each=1, replicates=500, quasi=False
        ).value.var(0)
        for sampled in ("independent", kind)
    }
    assert (spread[kind] * factor < spread["independent"]).all()


def test_antithetic_pairs_are_exact_for_a_linear_integrand():
    mu = f64([[0.3, -0.7]])
    result = estimate(
        "elbo", mu, 0 * mu, 2, log_likelihood=lambda z: z.sum(-1), sampling="antithetic"
    )
    assert result.value.item() == pytest.approx(mu.sum().item() - 0.5 * 0.58, abs=1e-14)


def test_sobol_converges_faster():
    """Standard deviation: better than K^(-0.8) in two dimensions, where independence has -1/2."""
    spread = [
        replicate(
            "elbo", PLANE, samples, sampling="sobol", each=1, replicates=400, quasi=False
        ).value.std()
        for samples in (16, 256)
    ]
    assert math.log(spread[0] / spread[1]) / math.log(16) > 0.8


def test_sobol_shifts_every_example_on_its_own():
    """Errors of two examples in one call do not go together: 4 / sqrt(n) of a correlation."""
    errors = replicate(
        "elbo", PLANE, 16, sampling="sobol", each=1, replicates=4000, quasi=False
    ).value[:, 0]
    pairs = torch.corrcoef(errors.view(2, -1))[0, 1]
    assert pairs.abs() < 4 / math.sqrt(2000)


def test_sobol_in_every_shape_and_dtype():
    eps = sampling.draw(3, torch.zeros(2, 5, 3), sampling="sobol", generator=generator())
    assert eps.shape == (3, 2, 5, 3)
    assert eps.dtype == torch.float32
    assert eps.isfinite().all()
    again = sampling.draw(3, torch.zeros(2, 5, 3), sampling="sobol", generator=generator())
    assert torch.equal(eps, again)


@pytest.mark.parametrize("kind", ["antithetic", "sobol"])
@pytest.mark.parametrize("name", ["reinforce", "vimco", "dreg"])
def test_correlated_samples_are_refused(name, kind):
    """Baselines, and dreg's second reparameterisation, need samples independent of each other.

    dreg with pairs: mu's gradient in LINE at K = 2 is 0.46 where the bound's is 0.11.
    """
    with pytest.raises(ValueError, match=f"{name} needs sampling='independent', got '{kind}'"):
        run(name, SPACE, sampling=kind)


def test_antithetic_needs_pairs():
    with pytest.raises(ValueError, match="antithetic sampling needs an even num_samples, got 3"):
        run("iwae", SPACE, 3, sampling="antithetic")


def test_sobol_has_a_greatest_dimension():
    most = torch.quasirandom.SobolEngine.MAXDIM
    with pytest.raises(ValueError, match=f"up to {most} dimensions, got {most + 1}"):
        sampling.draw(2, torch.zeros(1, most + 1), sampling="sobol")


# Evaluation.


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


# Bad input, and weights of zero.


def broken(change):
    """A log-likelihood, changed."""
    return lambda z: change(SPACE.log_likelihood(z), z)


BAD_CALLABLES = {
    "wrong shape": (lambda v, z: v.sum(0), ["log_likelihood(z)", "(6, 2)", "(6, 2, 3)", "(2,)"]),
    "one number a pixel": (lambda v, z: z, ["must have shape (6, 2)", "got (6, 2, 3)"]),
    "a trailing 1": (lambda v, z: v.unsqueeze(-1), ["(6, 2)", "got (6, 2, 1)"]),
    "no tensor": (lambda v, z: 0.0, ["log_likelihood(z)", "got float"]),
    "nan": (
        lambda v, z: torch.where(v == v.max(), torch.nan, v),
        ["log_likelihood(z)", "is NaN at 1 sample"],
    ),
}


@pytest.mark.parametrize("case", BAD_CALLABLES)
@EVERY
def test_bad_callable(name, case):
    change, words = BAD_CALLABLES[case]
    mu = SPACE.mu.clone().requires_grad_()
    with pytest.raises(ValueError, match="log_likelihood") as error:
        estimate(name, mu, SPACE.logvar, 6, log_likelihood=broken(change), generator=generator())
    assert [word for word in words if word not in str(error.value)] == []


def test_bad_callable_is_named_joint_where_it_is_one():
    with pytest.raises(ValueError, match=r"log_joint\(z\) must have shape \(6, 2\)"):
        estimate("iwae", *SPACE.q(), 6, log_joint=lambda z: z)


@pytest.mark.parametrize(
    ("name", "samples", "options", "kind", "words"),
    [
        ("iwae", 0, {}, ValueError, "num_samples must be at least 1, got 0"),
        ("elbo", -1, {}, ValueError, "num_samples must be at least 1, got -1"),
        ("iwae", 2.0, {}, TypeError, "num_samples must be an int.*float"),
        ("iwae", True, {}, TypeError, "num_samples must be an int.*bool"),
        ("iwae", None, {}, TypeError, "num_samples must be an int.*NoneType"),
        ("reinforce", 1, {}, ValueError, "reinforce needs num_samples >= 2, got 1"),
        ("vimco", 1, {}, ValueError, "vimco needs num_samples >= 2, got 1"),
        ("iwea", 2, {}, ValueError, "name must be one of 'elbo'.*'jackknife', got 'iwea'"),
        ("iwae", 2, {"alpha": 1}, ValueError, "iwae takes no options, got alpha"),
        ("elbo", 2, {"bits": 1}, ValueError, "elbo takes beta, free_bits.*got bits"),
        ("elbo", 2, {"free_bits_per": "x"}, ValueError, "free_bits_per must be one of.*'x'"),
        ("elbo", 2, {"free_bits": -1.0}, ValueError, "free_bits.*-1"),
        ("elbo", 2, {"beta": math.nan}, ValueError, "beta.*nan"),
        ("elbo-monte-carlo", 2, {"beta": "1"}, TypeError, "beta must be a number, got str"),
        ("miwae", 6, {"groups": 4}, ValueError, "multiple of groups, got 6 and 4"),
        ("piwae", 6, {"groups": 12}, ValueError, "multiple of groups, got 6 and 12"),
        ("miwae", 6, {"groups": 0}, ValueError, "groups.*0"),
        ("piwae", 6, {"groups": 2.0}, TypeError, "groups must be an int, got float"),
        ("ciwae", 6, {"mix": 1.5}, ValueError, "mix.*1.5"),
        ("ciwae", 6, {"mix": -0.1}, ValueError, "mix.*-0.1"),
        ("renyi", 6, {"alpha": math.nan}, ValueError, "alpha.*nan"),
        ("renyi", 6, {"alpha": "a"}, TypeError, "alpha must be a number, got str"),
        ("cubo", 6, {"order": 0}, ValueError, "order must be positive, got 0"),
        ("jackknife", 6, {"order": 6}, ValueError, "order.*6"),
        ("jackknife", 6, {"order": -1}, ValueError, "order.*-1"),
        ("jackknife", 6, {"order": 1.5}, TypeError, "order must be an int, got float"),
        ("jackknife", 60, {"order": 9}, ValueError, "order 9 with 60 samples needs .* subsets"),
        ("iwae", 6, {"sampling": "halton"}, ValueError, "sampling must be one of.*'halton'"),
        ("iwae", 6, {"impl": "fast"}, ValueError, "impl must be one of.*'fast'"),
        ("iwae", 6, {"prior_mu": torch.zeros(4).double()}, ValueError, r"prior_mu \(4,\)"),
        ("iwae", 6, {"log_joint": sum}, ValueError, "exactly one of log_likelihood and log_joint"),
        ("iwae", 6, {"log_likelihood": None}, ValueError, "exactly one of log_likelihood and"),
        (
            "iwae",
            6,
            {"log_likelihood": None, "log_joint": SPACE.log_joint, "prior_mu": SPACE.mu},
            ValueError,
            "prior_mu and prior_logvar go with log_likelihood",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (str, int, float)) else "",
)
def test_bad_argument(name, samples, options, kind, words):
    arguments = {"log_likelihood": SPACE.log_likelihood} | options
    with pytest.raises(kind, match=words):
        estimate(name, *SPACE.q(), samples, **arguments)


def test_bad_tensors():
    with pytest.raises(ValueError, match=r"mu \(3, 4\), logvar \(3, 5\)"):
        estimate("iwae", torch.zeros(3, 4), torch.zeros(3, 5), log_likelihood=sum)
    with pytest.raises(TypeError, match="mu and logvar must have one dtype"):
        estimate("iwae", torch.zeros(3, 4), torch.zeros(3, 4).double(), log_likelihood=sum)
    with pytest.raises(TypeError, match=r"mu must have one of the dtypes.*int64"):
        estimate("iwae", torch.zeros(3, 4).long(), torch.zeros(3, 4), log_likelihood=sum)


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
    """Of example 0 the samples in ``zero`` have log p(x|z) = -inf."""
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


def test_the_integral_of_a_known_expectation():
    """Two weights, 1 and 3 with probability 1/2 each: E log mean of two by hand."""
    log_w = torch.log(f64([[1.0], [3.0]]))
    wanted = 0.25 * (math.log(1) + 2 * math.log(2) + math.log(3))
    assert expected_log_mean(log_w, f64([0.5, 0.5]), 2).item() == pytest.approx(wanted, rel=1e-8)
