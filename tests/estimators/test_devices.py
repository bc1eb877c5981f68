"""Other devices than the CPU's and CUDA's, and other default devices: every docstring's example."""

import doctest
import functools
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._device import _device_constructors

import fused_elbo
import fused_elbo.estimators
from fused_elbo.estimators import bounds, diagnostics, evaluation, sampling

HELPERS = Path(__file__).parents[1] / "helpers"
MODULES = sorted(
    info.name
    for package in (fused_elbo, fused_elbo.estimators)
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if ".kernels" not in info.name
)


class OnCPU:
    """torch, or a module of it, for a user who names the CPU wherever something is made."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        found = getattr(self._module, name)
        if inspect.ismodule(found):
            return OnCPU(found)
        factory = found is torch.Generator or found in _device_constructors()
        if factory or (inspect.isclass(found) and issubclass(found, torch.nn.Module)):
            return functools.partial(found, device="cpu")
        return found


@pytest.mark.parametrize("name", MODULES)
def test_another_default_device(name):
    """New tensors follow the operands' device: meta holds no numbers that could be right."""
    for test in doctest.DocTestFinder().find(importlib.import_module(name)):
        test.examples = [e for e in test.examples if e.source != "import torch\n"]
        test.globs["torch"] = OnCPU(torch)
        with torch.device("meta"):
            assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


def test_what_no_docstring_runs_under_another_default_device():
    mu = torch.zeros(3, 2, requires_grad=True)
    log_weights = torch.randn(100, 3)

    def target(z):
        return -0.5 * (z - 1).square().sum(-1)

    def results():
        torch.manual_seed(3)
        for name in bounds.ESTIMATORS:
            found = bounds.estimate(name, mu, mu.detach(), 4, log_likelihood=target)
            yield found.value
            yield from torch.autograd.grad(found.surrogate.sum(), mu)
        for how in sampling.SAMPLINGS:
            yield sampling.draw(4, mu, sampling=how)
        if diagnostics.HAS_ARVIZ:
            yield diagnostics.pareto_k(log_weights)
        noise = diagnostics.gradient_noise(
            lambda: (mu * torch.randn(3, 2, device="cpu")).sum(), [mu]
        )
        yield torch.tensor(noise, device="cpu")
        yield evaluation.log_likelihood_bound(mu, mu.detach(), 40, log_likelihood=target).smoothed

    expected = list(results())
    with torch.device("meta"):
        actual = list(results())
    for a, e in zip(actual, expected, strict=True):
        assert a is e is None or torch.equal(a, e)


def test_a_device_without_float64():
    """As Apple's MPS. Values in float64 are those of the CPU, and results come back."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(HELPERS.parent)}
    command = [sys.executable, str(HELPERS / "no_float64.py"), *MODULES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
