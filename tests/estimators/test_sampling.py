"""Independent, antithetic and Sobol samples."""

import itertools
import math

import pytest
import torch
from scipy import stats

from fused_elbo.estimators import sampling
from fused_elbo.estimators.bounds import estimate
from helpers.estimates import generator, run
from helpers.exact_bounds import (
    ERRORS,
    F64,
    PLANE,
    SPACE,
    Result,
    deviations,
    exact_elbo,
    f64,
    replicate,
    weakness,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
    """The variance of mean_k log p(x|z_k), a quadratic: antithetic pairs remove its linear part."""
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
