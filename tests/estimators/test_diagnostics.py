"""Diagnostics against exact limits, known tails, and the numbers of another library."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fused_elbo import bernoulli_nll, gaussian_kl
from fused_elbo.estimators.bounds import estimate
from fused_elbo.estimators.diagnostics import (
    active_units,
    effective_sample_size,
    gradient_noise,
    kl_per_dimension,
    pareto_k,
)
from fused_elbo.estimators.models import as_full, chi_square_divergence
from helpers.exact_bounds import F64, PLANE, SPACE, f64
from helpers.machine import NEEDS_ARVIZ


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quantiles(samples):
    """(k - 1/2) / K: where the numbers of this file are the same on every machine."""
    return (torch.arange(samples, dtype=F64) + 0.5) / samples


# Effective sample size.


def test_effective_sample_size_of_known_weights():
    log_weights = torch.log(f64([[1.0, 2.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]))
    assert effective_sample_size(log_weights).tolist() == pytest.approx([4.0, 16 / 6])


@pytest.mark.parametrize("shift", [-800.0, 0.0, 800.0])
def test_effective_sample_size_does_not_see_the_scale(shift):
    log_weights = torch.randn(50, 3, dtype=F64, generator=generator())
    wanted = log_weights.exp().sum(0) ** 2 / log_weights.exp().square().sum(0)
    torch.testing.assert_close(effective_sample_size(log_weights + shift), wanted)


def test_effective_share_tends_to_its_exact_limit():
    """1 / (1 + chi^2(p(z|x) || q)), to four standard errors of 20 replicates, under 1 % each."""
    problem = PLANE._replace(logvar=f64([[0.4, 0.5]]))
    replicates, samples = 20, 20_000
    result = estimate(
        "iwae",
        *(t.expand(replicates, 1, 2) for t in problem.q()),
        samples,
        log_likelihood=problem.log_likelihood,
        generator=generator(),
    )
    share = effective_sample_size(result.log_weights) / samples
    mean, error = share.mean(), share.std() / math.sqrt(replicates)
    posterior = problem.model().posterior(problem.x)
    wanted = 1 / (1 + chi_square_divergence(posterior, as_full(problem.q())))
    assert error < 0.0025 * wanted
    assert (mean - wanted).abs() <= 4 * error


def test_effective_sample_size_of_infinite_weights():
    """None of weight counts as none; one that outweighs all others as one."""
    inf = math.inf
    log_weights = f64([[-inf, inf, 0.0], [-inf, 0.0, -inf], [-inf, 0.0, -inf]])
    assert effective_sample_size(log_weights).tolist() == [0.0, 1.0, 1.0]


# Pareto's k.

# arviz 0.23.4: float(arviz.psislw(log_weights)[1]) at these inputs. K = 100 and 400 have tails
# of 20 and 60, integers, so that rounding up (arviz) or down does not matter.
ARVIZ = {
    ("pareto 0.2", 100): 0.3196208843338415,
    ("pareto 0.5", 100): 0.49196002019884816,
    ("pareto 0.9", 100): 0.720596743489738,
    ("wave", 100): -0.1879674712869844,
    ("pareto 0.2", 400): 0.25510334816479635,
    ("pareto 0.5", 400): 0.49649375053459033,
    ("pareto 0.9", 400): 0.8183704168942157,
    ("wave", 400): -0.7011153545830942,
}


def log_weights_of(name, samples):
    if name == "wave":  # bounded weights: a negative k
        i = torch.arange(samples, dtype=F64)
        return 2 * torch.sin(1.7 * i) + torch.cos(0.3 * i.square())
    return -float(name.split()[1]) * quantiles(samples).log()


@NEEDS_ARVIZ
@pytest.mark.parametrize(("name", "samples"), ARVIZ, ids=lambda v: str(v))
def test_pareto_k_is_that_of_arviz(name, samples):
    k = pareto_k(log_weights_of(name, samples)).item()
    assert k == pytest.approx(ARVIZ[name, samples], abs=1e-10)


@NEEDS_ARVIZ
@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.7, 1.2])
def test_pareto_k_of_a_generalised_pareto_tail(k):
    """w = ((1 - u)^(-k) - 1) / k: its tail has this k at any threshold."""
    u = quantiles(200_000)
    assert pareto_k((torch.expm1(-k * u.log()) / k).log()).item() == pytest.approx(k, abs=0.03)


@NEEDS_ARVIZ
@pytest.mark.parametrize("scale", [0.9, 0.6, 0.4])
def test_pareto_k_of_a_gaussian_importance_ratio(scale):
    """q = N(0, s^2), p = N(0, 1), s < 1: k = 1 - s^2.

    log w = (1/s^2 - 1) z^2 / 2 + c, and P(|z| > t) falls as exp(-t^2 / (2 s^2)) up to powers of
    t: so P(w > v) as v^(-1/k), with 1/k = (1/s^2) / (1/s^2 - 1), up to powers of log v, which
    make the approach slow and from below.
    """
    z = scale * torch.special.ndtri(quantiles(1_000_000))
    log_weights = 0.5 * (1 / scale**2 - 1) * z.square()
    wanted = 1 - scale**2
    found = pareto_k(log_weights).item()
    assert wanted - 0.09 < found < wanted


@NEEDS_ARVIZ
def test_pareto_k_tells_a_good_q_from_a_bad_one():
    """Wider than the posterior: weights are bounded, k <= 0 ... narrower by far: past 0.7."""
    k = {}
    for logvar in (1.0, -3.0):
        problem = SPACE._replace(logvar=torch.full_like(SPACE.logvar, logvar))
        result = estimate(
            "iwae", *problem.q(), 4000, log_likelihood=problem.log_likelihood,
            generator=generator(),
        )  # fmt: skip
        k[logvar] = pareto_k(result.log_weights)
    assert k[1.0].max() < 0.3
    assert k[-3.0].min() > 0.7


@NEEDS_ARVIZ
def test_pareto_k_is_batched_and_keeps_the_dtype():
    log_weights = torch.randn(100, 2, 3, generator=generator())
    k = pareto_k(log_weights)
    assert k.shape == (2, 3)
    assert k.dtype == torch.float32
    alone = pareto_k(log_weights[:, 1, 2])
    assert k[1, 2].item() == pytest.approx(alone.item(), rel=1e-6)
    shifted = pareto_k(log_weights.double() + 700)
    torch.testing.assert_close(shifted, pareto_k(log_weights.double()))


@NEEDS_ARVIZ
@pytest.mark.parametrize("samples", [1, 5, 24])
def test_pareto_k_needs_a_tail(samples):
    assert pareto_k(torch.randn(samples, 2)).isnan().all()
    assert pareto_k(torch.randn(25, 2)).isfinite().all()


@NEEDS_ARVIZ
def test_pareto_k_of_constant_weights_is_not_a_number():
    log_weights = torch.zeros(100, 2)
    log_weights[:, 1] = torch.randn(100, generator=generator())
    k = pareto_k(log_weights)
    assert k[0].isnan()
    assert k[1].isfinite()


# Latents.


def test_kl_per_dimension():
    """Each as torch.distributions has it, and their sum the KL."""
    q = Normal(SPACE.mu, (0.5 * SPACE.logvar).exp())
    wanted = kl_divergence(q, Normal(torch.zeros(3).double(), torch.ones(3).double()))
    found = kl_per_dimension(*SPACE.q())
    torch.testing.assert_close(found, wanted)
    elbo = estimate("elbo", *SPACE.q(), log_likelihood=lambda z: 0 * z.sum(-1)).value
    torch.testing.assert_close(found.sum(-1), -elbo)


def test_kl_per_dimension_of_a_collapsed_latent():
    mu, logvar = torch.zeros(4, 2), torch.zeros(4, 2)
    mu[:, 1] = 1.0
    assert kl_per_dimension(mu, logvar).tolist() == [[0.0, 0.5]] * 4


def test_kl_per_dimension_with_a_prior():
    """As torch.distributions has it; either half of the prior alone, too."""
    prior_mu, prior_logvar = f64([0.3, -1.0, 2.0]), f64([0.5, -0.7, 0.1])
    q = Normal(SPACE.mu, (0.5 * SPACE.logvar).exp())
    for given in ((prior_mu, prior_logvar), (prior_mu, None), (None, prior_logvar)):
        mean, logvar = (f64([0.0]) if p is None else p for p in given)
        wanted = kl_divergence(q, Normal(mean.expand(3), (0.5 * logvar).exp().expand(3)))
        torch.testing.assert_close(kl_per_dimension(*SPACE.q(), *given), wanted)
    found = kl_per_dimension(*SPACE.q(), prior_mu, prior_logvar)
    torch.testing.assert_close(found.sum(-1), gaussian_kl(*SPACE.q(), prior_mu, prior_logvar))


def test_active_units_in_units_of_the_prior():
    """A latent that follows a conditional prior's mean, or is small beside its width, is idle."""
    mu = torch.randn(200, 3, dtype=F64, generator=generator())
    wide = f64([0.0, 0.0, math.log(400.0)])
    assert active_units(mu, prior_logvar=wide).tolist() == [True, True, False]
    follows = mu.clone()
    follows[:, 1] += 1.0
    follows[:, 0] = 0.0
    assert active_units(mu, prior_mu=follows).tolist() == [True, False, False]
    assert active_units(mu / 20, 0.01, prior_logvar=f64([-9.0, 0.0, 0.0])).tolist() == [
        True, False, False,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="prior_logvar"):
        active_units(mu, prior_logvar=torch.zeros(2, dtype=F64))


# Gradients.

MEANS, DEVIATIONS = f64([0.5, -2.0, 8.0]), f64([1.0, 2.0, 4.0])


def noisy_loss(theta, noise):
    """Its gradient is N(MEANS, DEVIATIONS^2), independent from call to call."""
    return lambda: (theta * (MEANS + DEVIATIONS * torch.randn(3, dtype=F64, generator=noise))).sum()


def test_gradient_noise_of_known_gradients():
    """Variance 7, SNR 1 (the median of 0.5, 1 and 2); errors are those of repeated measuring."""
    theta = torch.ones(3, dtype=F64, requires_grad=True)
    noise = generator(1)
    found = [gradient_noise(noisy_loss(theta, noise), [theta], 640) for _ in range(30)]
    for statistic, wanted in (("variance", 7.0), ("snr", 1.0)):
        values = f64([getattr(f, statistic) for f in found])
        errors = f64([getattr(f, f"{statistic}_error") for f in found])
        assert abs(values.mean() - wanted) < 4 * values.std() / 30**0.5
        assert 0.7 < errors.mean() / values.std() < 1.4
    assert theta.grad is None


def test_gradient_noise_of_a_users_model():
    """DReG's encoder against IWAE's, at K = 64: the one that does not drown in noise."""
    encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    x = torch.rand(8, 6, generator=generator()).round()

    def loss_of(name):
        def loss():
            mu, logvar = encoder(x).chunk(2, -1)
            likelihood = lambda z: -bernoulli_nll(decoder(z), x)  # noqa: E731
            return -estimate(name, mu, logvar, 64, log_likelihood=likelihood).surrogate.mean()

        return loss

    torch.manual_seed(0)
    dreg, iwae = (gradient_noise(loss_of(n), encoder.parameters(), 320) for n in ("dreg", "iwae"))
    assert dreg.variance + 4 * dreg.variance_error < iwae.variance - 4 * iwae.variance_error
    assert dreg.snr - 3 * dreg.snr_error > iwae.snr + 3 * iwae.snr_error
    decoders = [gradient_noise(loss_of(n), decoder.parameters(), 320) for n in ("dreg", "iwae")]
    ratio = decoders[0].variance / decoders[1].variance
    assert ratio == pytest.approx(1, abs=4 * decoders[0].variance_error / decoders[0].variance)


@pytest.mark.parametrize(
    ("loss", "parameters", "replicates", "match"),
    [
        (lambda t: t.sum(), 1, 100, "num_replicates must be a multiple of 32, got 100"),
        (lambda t: t.sum(), 0, 32, "parameters must be tensors that require gradients"),
        (lambda t: t * 2, 1, 32, "a tensor of one number"),
        (lambda t: 1.0, 1, 32, "a tensor of one number"),
    ],
    ids=["replicates", "no parameters", "a vector", "a float"],
)
def test_gradient_noise_refuses(loss, parameters, replicates, match):
    theta = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=match):
        gradient_noise(lambda: loss(theta), [theta][:parameters], replicates)


def test_active_units():
    """The variance over the data, not the distance from 0: a constant is not in use."""
    signs = torch.tensor([[1.0], [-1.0]]).repeat(50, 1)
    variance = 100 / 99  # of signs, with n - 1
    scale = f64([0.0, 0.09, 0.11, 1.0])
    mu = 5.0 + scale * signs.double()
    assert active_units(mu).tolist() == [False, False, True, True]
    assert active_units(mu, 0.5).tolist() == [False, False, False, True]
    assert active_units(mu, variance - 1e-9)[3]
    assert not active_units(mu, variance + 1e-9)[3]


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 3, 4)], ids=str)
def test_active_units_need_a_data_set(shape):
    with pytest.raises(ValueError, match=r"expected mu \[N, ...\] with N >= 2, got mu"):
        active_units(torch.zeros(shape))
