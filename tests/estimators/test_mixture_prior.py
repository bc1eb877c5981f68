"""A mixture as the prior of q: one component is today's prior, gradients by hand and by others."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fused_elbo import Mixture, elbo_loss, iwae_loss, rsample_log_ratio
from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from helpers.samples import IMPLS, at_seed, normal

F32, F64 = torch.float32, torch.float64
GRADIENTS = pytest.mark.parametrize("gradient", ["total", "path", "dreg"])
# Those that can do without the KL in closed form and with any prior.
NAMES = [name for name in ESTIMATORS if name not in ("elbo", "elbo-antithetic")]
OPTIONS = {"miwae": {"groups": 2}, "piwae": {"groups": 2}, "jackknife": {"order": 2}}


def leaves(device, components=3, dtype=F64):
    """(mu, logvar) of q [5, 2], then (mu, logvar, log_weights) of the prior."""
    shapes = (5, 2), (5, 2), (components, 2), (components, 2), (components,)
    return [
        normal(*shape, seed=i, device=device).to(dtype).requires_grad_()
        for i, shape in enumerate(shapes)
    ]


def torchs(z, mu, logvar, log_weights):
    components = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
    return MixtureSameFamily(Categorical(logits=log_weights), components).log_prob(z)


def log_likelihood(z):
    return -(z - 0.7).square().sum(-1)


@GRADIENTS
@IMPLS
def test_one_component_is_the_prior_of_today(gradient, impl, device):
    mu, logvar, m, s, _ = leaves(device, components=1)
    found = []
    for prior in ({"prior": Mixture(m, s)}, {"prior_mu": m, "prior_logvar": s}):
        z, log_ratio = at_seed(
            3, rsample_log_ratio, mu, logvar, 4, **prior, gradient=gradient, impl=impl
        )
        bound = torch.logsumexp(log_ratio + log_likelihood(z), 0).sum()
        found.append([z, log_ratio, *torch.autograd.grad(bound, (mu, logvar, m, s))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@IMPLS
def test_gradients_by_finite_differences(impl, device):
    """Of q and of all that the prior has, at fixed noise."""

    def at_noise(mu, logvar, *prior):
        options = {"prior": Mixture(*prior), "impl": impl}
        return at_seed(1, rsample_log_ratio, mu, logvar, 3, **options)

    assert torch.autograd.gradcheck(at_noise, leaves(device))


@GRADIENTS
@IMPLS
def test_gradients_by_hand(gradient, impl, device):
    """Of IWAE's bound: all paths; without the score of q; each sample's by its weight once more."""
    mu, logvar, *prior = leaves(device)
    z, log_ratio = at_seed(
        2, rsample_log_ratio, mu, logvar, 6, prior=Mixture(*prior), gradient=gradient, impl=impl
    )
    bound = torch.logsumexp(log_ratio + log_likelihood(z), 0).sum()
    found = torch.autograd.grad(bound, (mu, logvar, *prior))

    eps = ((z - mu) * torch.exp(-0.5 * logvar)).detach()
    again = mu + torch.exp(0.5 * logvar) * eps
    q = (mu, logvar) if gradient == "total" else (mu.detach(), logvar.detach())
    log_q = Normal(q[0], torch.exp(0.5 * q[1])).log_prob(again).sum(-1)
    log_weights = log_likelihood(again) + torchs(again, *prior) - log_q
    torch.testing.assert_close(log_ratio, log_weights - log_likelihood(again))
    weights = torch.softmax(log_weights, 0).detach()
    of_q = weights.square() if gradient == "dreg" else weights
    expected = torch.autograd.grad((of_q * log_weights).sum(), (mu, logvar), retain_graph=True)
    expected += torch.autograd.grad((weights * log_weights).sum(), prior)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@IMPLS
def test_estimators_against_a_joint_that_has_the_prior(name, impl, device):
    """Values, and gradients of q and of the prior: the prior is the model's."""
    mu, logvar, *prior = leaves(device)
    targets = (
        {"log_likelihood": log_likelihood, "prior": Mixture(*prior)},
        {"log_joint": lambda z: log_likelihood(z) + torchs(z, *prior)},
    )
    found = []
    for target in targets:
        options = OPTIONS.get(name, {}) | {"impl": impl}
        result = at_seed(5, estimate, name, mu, logvar, 6, **target, **options)
        parameters = mu, logvar, *prior
        gradients = torch.autograd.grad(result.surrogate.sum(), parameters, allow_unused=True)
        found.append([result.value, result.log_weights, result.z, *gradients])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_kl_to_a_mixture_has_no_closed_form():
    mu, logvar, *prior = leaves("cpu")
    with pytest.raises(ValueError, match=r"no closed form.*'elbo-monte-carlo'"):
        estimate("elbo", mu, logvar, log_likelihood=log_likelihood, prior=Mixture(*prior))


@IMPLS
def test_a_vamp_prior_trains(impl, device):
    """Components are q of pseudo-inputs, which get their gradients: by IWAE and by the ELBO."""
    torch.manual_seed(0)
    encoder = torch.nn.Linear(6, 4).to(device)
    decoder = torch.nn.Linear(2, 6).to(device)
    pseudo_inputs = torch.rand(7, 6, device=device, requires_grad=True)
    x = torch.rand(5, 6, device=device).round()
    q, prior = encoder(x).chunk(2, -1), Mixture(*encoder(pseudo_inputs).chunk(2, -1))

    z, log_ratio = rsample_log_ratio(*q, 8, prior=prior, gradient="dreg", impl=impl)
    iwae_loss(decoder(z), x, log_ratio, impl=impl).backward(retain_graph=True)
    first = pseudo_inputs.grad.clone()
    assert first.isfinite().all()
    assert first.abs().min() > 0

    z, log_ratio = rsample_log_ratio(*q, 1, prior=prior, gradient="path", impl=impl)
    elbo_loss(decoder(z[0]), x, kl=-log_ratio[0], impl=impl).backward()
    assert not torch.equal(pseudo_inputs.grad, first)


def test_iwae_loss_refuses_a_gradient_that_does_not_fit():
    mu, logvar, *prior = leaves("cpu", dtype=F32)
    z, log_ratio = rsample_log_ratio(mu, logvar, 4, prior=Mixture(*prior), gradient="path")
    with pytest.raises(ValueError, match="gradient='path' is biased"):
        iwae_loss(z, torch.rand(5, 2), log_ratio)


T = torch.rand
BAD = {
    "a tuple": ({"prior": (T(3, 2), T(3, 2))}, TypeError, "prior must be a Mixture, got tuple"),
    "both": (
        {"prior": Mixture(T(3, 2), T(3, 2)), "prior_mu": T(2)},
        ValueError,
        "a prior or prior_mu and prior_logvar",
    ),
    "latents": (
        {"prior": Mixture(T(3, 4), T(3, 4))},
        ValueError,
        r"one D, got mu \(5, 2\), prior.mu \(3, 4\)",
    ),
    "components": (
        {"prior": Mixture(T(2), T(2))},
        ValueError,
        r"components \[K, D\] with K >= 1, got prior.mu \(2,\)",
    ),
    "weights": (
        {"prior": Mixture(T(3, 2), T(3, 2), T(2))},
        ValueError,
        r"prior.log_weights \[K\].*prior.log_weights \(2,\)",
    ),
    "dtypes": (
        {"prior": Mixture(T(3, 2).long(), T(3, 2))},
        TypeError,
        "prior.mu must have one of the dtypes",
    ),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        rsample_log_ratio(T(5, 2), T(5, 2), 3, **options)
    with pytest.raises(error, match=message):
        estimate("iwae", T(5, 2), T(5, 2), 3, log_likelihood=log_likelihood, **options)


def test_a_joint_has_the_prior_already():
    prior = Mixture(T(3, 2), T(3, 2))
    with pytest.raises(ValueError, match="log_joint is given"):
        estimate("iwae", T(5, 2), T(5, 2), 3, log_joint=log_likelihood, prior=prior)
