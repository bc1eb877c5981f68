"""Estimators on the kernels: as on the reference, and as exact."""

import pytest
import torch

from fused_elbo.estimators import bounds, sampling
from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from fused_elbo.estimators.models import LinearGaussianModel
from fused_elbo.estimators.reference import noise, reference
from helpers.exact_bounds import F64, PLANE, check, exact, exact_elbo, replicate
from helpers.machine import KERNELS

pytestmark = pytest.mark.usefixtures("one_thread")


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
    for impl in (KERNELS, "reference"):
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
        name, PLANE, 3, replicates=64, each=256, quasi=False, impl=KERNELS, **options
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
    for impl in (KERNELS, "reference"):
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
