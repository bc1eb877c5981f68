"""A mixture as the prior of q: one component is today's prior, gradients by hand and by others."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fused_elbo import (
    Mixture,
    chunked_iwae_loss,
    elbo_loss,
    gaussian_nll,
    iwae_loss,
    rsample_kl,
    rsample_log_ratio,
)
from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from fused_elbo.estimators.evaluation import log_likelihood_bound
from fused_elbo.estimators.reference import reference
from helpers.samples import IMPLS, at_seed, normal

F32, F64 = torch.float32, torch.float64
GRADIENTS = pytest.mark.parametrize("gradient", ["total", "path", "dreg"])
# The estimators that need no KL in closed form and take any prior.
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
    """Gradients of q and of all that the prior has, at fixed noise."""

    def at_noise(mu, logvar, *prior):
        options = {"prior": Mixture(*prior), "impl": impl}
        return at_seed(1, rsample_log_ratio, mu, logvar, 3, **options)

    assert torch.autograd.gradcheck(at_noise, leaves(device))


@IMPLS
def test_rsample_kl_to_one_component(impl, device):
    """z of today; for the KL in closed form its estimate, from that z."""
    mu, logvar, m, s, _ = leaves(device, components=1)
    z, kl = at_seed(3, rsample_kl, mu, logvar, prior=Mixture(m, s), impl=impl)
    today, _ = at_seed(3, rsample_kl, mu, logvar, m, s, impl=impl)
    torch.testing.assert_close(z, today, rtol=1e-12, atol=1e-12)
    _, log_ratio = at_seed(3, rsample_log_ratio, mu, logvar, 1, m, s, impl=impl)
    torch.testing.assert_close(kl, -log_ratio[0], rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(-log_ratio.sum(), (mu, logvar, m, s))
    for a, b in zip(torch.autograd.grad(kl.sum(), (mu, logvar, m, s)), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rsample_kl_estimates_the_kl():
    """The mean of 20,000 is the integral, by scipy, to four standard errors."""
    centres, widths, shares = np.array([-2.0, 0.5, 3.0]), np.array([0.5, 1.0, 2.0]), [0.2, 0.5, 0.3]
    q = stats.norm(0.4, 0.7)

    def difference(z):
        p = np.dot(shares, stats.norm.pdf(z, centres, widths))
        return q.pdf(z) * (q.logpdf(z) - np.log(p))

    exact, _ = integrate.quad(difference, -8, 9)
    mixture = (2 * np.log(widths)[:, None], np.log(shares))
    prior = Mixture(torch.tensor(centres[:, None]), *(torch.from_numpy(t) for t in mixture))
    mu = torch.full((20_000, 1), 0.4, dtype=F64)
    _, kl = at_seed(0, rsample_kl, mu, torch.full_like(mu, 2 * math.log(0.7)), prior=prior)
    assert exact > 0.1
    assert abs(kl.mean() - exact) < 4 * kl.std() / math.sqrt(len(kl))


def again_with_log_q(z, mu, logvar, gradient):
    """z as a function of q at the noise that it has, and log q(z), of which "total" has a score."""
    eps = ((z - mu) * torch.exp(-0.5 * logvar)).detach()
    again = mu + torch.exp(0.5 * logvar) * eps
    q = (mu, logvar) if gradient == "total" else (mu.detach(), logvar.detach())
    return again, Normal(q[0], torch.exp(0.5 * q[1])).log_prob(again).sum(-1)


class Vamp:
    """An encoder, a decoder and pseudo-inputs in float64; q of data, the prior of the latter."""

    def __init__(self, device):
        self.encoder = torch.nn.Linear(6, 4, dtype=F64, device=device)
        self.decoder = torch.nn.Linear(2, 6, dtype=F64, device=device)
        for i, parameter in enumerate([*self.encoder.parameters(), *self.decoder.parameters()]):
            parameter.data = 0.5 * normal(*parameter.shape, seed=i, device=device)
        self.pseudo_inputs = normal(7, 6, seed=5, device=device).requires_grad_()
        self.log_weights = normal(7, seed=6, device=device).requires_grad_()
        self.x = (normal(5, 6, seed=7, device=device) > 0).to(F64)
        self.of_prior = [self.pseudo_inputs, self.log_weights]
        self.parameters = [*self.of_prior, *self.decoder.parameters(), *self.encoder.parameters()]

    def q(self):
        return self.encoder(self.x).chunk(2, -1)

    def prior(self):
        return Mixture(*self.encoder(self.pseudo_inputs).chunk(2, -1), self.log_weights)

    def log_likelihood(self, z):
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        recon = self.decoder(z)
        return -loss(recon, self.x.expand_as(recon), reduction="none").sum(-1)


@pytest.mark.parametrize("gradient", ["total", "path"])
@IMPLS
def test_gradients_of_a_vamp_prior_by_rsample_kl(gradient, impl, device):
    """The ELBO's gradients reach pseudo-inputs and encoder, through q and through the prior."""
    vamp = Vamp(device)
    z, kl = at_seed(4, rsample_kl, *vamp.q(), prior=vamp.prior(), gradient=gradient, impl=impl)
    loss = elbo_loss(vamp.decoder(z), vamp.x, kl=kl, reduction="sum", impl=impl)
    found = torch.autograd.grad(loss, vamp.parameters)

    again, log_q = again_with_log_q(z, *vamp.q(), gradient)
    expected = (log_q - torchs(again, *vamp.prior()) - vamp.log_likelihood(again)).sum()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(found, torch.autograd.grad(expected, vamp.parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert b.abs().max() > 1e-3


@pytest.mark.parametrize("chunk_size", [2, 6])
@GRADIENTS
@IMPLS
def test_gradients_of_a_vamp_prior_in_chunks(gradient, chunk_size, impl, device, monkeypatch):
    """Gradients of IWAE's bound, or with "path" the ELBO; with components in parts as well."""
    monkeypatch.setattr(reference, "COMPARED", 30)
    vamp, drawn = Vamp(device), []

    def decoder(z):
        drawn.append(z.detach())
        return vamp.decoder(z)

    alpha = 1.0 if gradient == "path" else 0.0
    loss = at_seed(
        4, chunked_iwae_loss, decoder, vamp.x, *vamp.q(), 6, chunk_size=chunk_size,
        prior=vamp.prior(), gradient=gradient, alpha=alpha, reduction="sum", impl=impl,
    )  # fmt: skip
    z = torch.cat(drawn)
    found = torch.autograd.grad(loss, vamp.parameters)

    mu, logvar = (t.detach().requires_grad_() for t in vamp.q())
    again, log_q = again_with_log_q(z, mu, logvar, gradient)
    log_weights = vamp.log_likelihood(again) + torchs(again, *vamp.prior()) - log_q
    bound = log_weights.mean(0) if alpha else torch.logsumexp(log_weights, 0) - math.log(6)
    torch.testing.assert_close(loss, -bound.sum())
    weights = torch.full_like(log_weights, 1 / 6) if alpha else torch.softmax(log_weights, 0)
    of_q = weights.detach().square() if gradient == "dreg" else weights.detach()
    at_q = torch.autograd.grad(-(of_q * log_weights).sum(), (mu, logvar), retain_graph=True)
    of_model = -(weights.detach() * log_weights).sum()
    expected = list(torch.autograd.grad(of_model, vamp.parameters, retain_graph=True))
    of_encoder = list(vamp.encoder.parameters())
    through_q = torch.autograd.grad(vamp.q(), of_encoder, at_q)
    expected[-2:] = [e + g for e, g in zip(expected[-2:], through_q, strict=True)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@IMPLS
def test_log_likelihood_bound_of_a_known_evidence(impl, device):
    """x = z + noise makes p(x) a mixture too; examples in batches, which the prior is not."""
    _, _, *prior = (t.detach() for t in leaves(device, components=4))
    x = 2 * normal(3, 2, seed=9, device=device)

    def of_noise(z, x):
        return -gaussian_nll(z, x, math.log(0.5), impl=impl)

    q = x, torch.full_like(x, -0.5)
    options = {"data": x, "batch_size": 2, "chunk_size": 12, "prior": Mixture(*prior)}
    found = at_seed(8, log_likelihood_bound, *q, 20, log_likelihood=of_noise, **options, impl=impl)
    m, s, log_weights = prior
    exact = torchs(x, m, torch.log(s.exp() + 0.5), log_weights)
    assert ((found.bound - exact).abs() < 4 * found.standard_error).all()
    assert (found.standard_error < 0.3).all()


def test_rsample_kl_compiles_in_one_graph():
    mu, logvar, *prior = leaves("cpu")

    def kl(mu, logvar, *prior):
        return rsample_kl(mu, logvar, prior=Mixture(*prior), gradient="path")[1]

    compiled = torch.compile(kl, backend="aot_eager", fullgraph=True)
    wanted, found = (at_seed(1, f, mu, logvar, *prior) for f in (
        kl, compiled
    ))  # fmt: skip
    torch.testing.assert_close(found, wanted)


@GRADIENTS
@IMPLS
def test_gradients_by_hand(gradient, impl, device):
    """IWAE's bound: all paths; without the score of q; each sample's weighted once more."""
    mu, logvar, *prior = leaves(device)
    z, log_ratio = at_seed(
        2, rsample_log_ratio, mu, logvar, 6, prior=Mixture(*prior), gradient=gradient, impl=impl
    )
    bound = torch.logsumexp(log_ratio + log_likelihood(z), 0).sum()
    found = torch.autograd.grad(bound, (mu, logvar, *prior))

    again, log_q = again_with_log_q(z, mu, logvar, gradient)
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
    with pytest.raises(error, match=message):
        rsample_kl(T(5, 2), T(5, 2), **options)
    with pytest.raises(error, match=message):
        chunked_iwae_loss(lambda z: z, T(5, 2), T(5, 2), T(5, 2), 3, chunk_size=2, **options)
    with pytest.raises(error, match=message):
        log_likelihood_bound(T(5, 2), T(5, 2), 3, log_likelihood=log_likelihood, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "path"}, "gradient='path' needs a mixture as prior"),
        ({"gradient": "dreg", "prior": Mixture(T(3, 2), T(3, 2))}, "gradient must be"),
    ],
)
def test_rsample_kl_refuses_a_gradient_that_it_has_not(options, message):
    with pytest.raises(ValueError, match=message):
        rsample_kl(T(5, 2), T(5, 2), **options)


def test_a_joint_has_the_prior_already():
    prior = Mixture(T(3, 2), T(3, 2))
    with pytest.raises(ValueError, match="log_joint is given"):
        estimate("iwae", T(5, 2), T(5, 2), 3, log_joint=log_likelihood, prior=prior)
