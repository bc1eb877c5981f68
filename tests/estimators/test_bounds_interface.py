"""One interface for every estimator."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from fused_elbo.estimators import bounds
from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from helpers.estimates import EVERY, OPTIONS, generator, run
from helpers.exact_bounds import F64, PLANE, SPACE, f64

SCORE = ("reinforce", "vimco", "rws")  # no gradient of the log-likelihood in z

pytestmark = pytest.mark.usefixtures("one_thread")


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
