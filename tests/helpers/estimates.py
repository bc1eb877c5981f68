"""One estimate of a bound and its gradients, at a fixed seed."""

import pytest
import torch

from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from helpers.exact_bounds import Result

ENCODER = ("mu", "logvar")
GRADIENTS = (*ENCODER, "weight")
EVERY = pytest.mark.parametrize("name", ESTIMATORS)
# One choice of options for each estimator, with M != K where there are groups.
OPTIONS = {"miwae": {"groups": 3}, "piwae": {"groups": 3}, "jackknife": {"order": 2}}


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
