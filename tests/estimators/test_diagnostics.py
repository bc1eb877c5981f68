"""Diagnostics against exact limits, known tails, and the numbers of another library."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fused_elbo.estimators.bounds import estimate
from fused_elbo.estimators.diagnostics import (
    active_units,
    effective_sample_size,
    kl_per_dimension,
    pareto_k,
)
from fused_elbo.estimators.models import as_full, chi_square_divergence
from helpers.exact_bounds import F64, PLANE, SPACE, f64


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


@pytest.mark.parametrize(("name", "samples"), ARVIZ, ids=lambda v: str(v))
def test_pareto_k_is_that_of_arviz(name, samples):
    k = pareto_k(log_weights_of(name, samples)).item()
    assert k == pytest.approx(ARVIZ[name, samples], abs=1e-10)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.7, 1.2])
def test_pareto_k_of_a_generalised_pareto_tail(k):
    """w = ((1 - u)^(-k) - 1) / k: its tail has this k at any threshold."""
    u = quantiles(200_000)
    assert pareto_k((torch.expm1(-k * u.log()) / k).log()).item() == pytest.approx(k, abs=0.03)


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


def test_pareto_k_is_batched_and_keeps_the_dtype():
    log_weights = torch.randn(100, 2, 3, generator=generator())
    k = pareto_k(log_weights)
    assert k.shape == (2, 3)
    assert k.dtype == torch.float32
    alone = pareto_k(log_weights[:, 1, 2])
    assert k[1, 2].item() == pytest.approx(alone.item(), rel=1e-6)
    shifted = pareto_k(log_weights.double() + 700)
    torch.testing.assert_close(shifted, pareto_k(log_weights.double()))


@pytest.mark.parametrize("samples", [1, 5, 24])
def test_pareto_k_needs_a_tail(samples):
    assert pareto_k(torch.randn(samples, 2)).isnan().all()
    assert pareto_k(torch.randn(25, 2)).isfinite().all()


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


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 3, 4)], ids=str)
def test_active_units_need_a_data_set(shape):
    with pytest.raises(ValueError, match=r"expected mu \[N, D\] with N >= 2, got mu"):
        active_units(torch.zeros(shape))
