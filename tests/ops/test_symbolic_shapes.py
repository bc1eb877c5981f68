"""Batches of any size in one graph, beside operands [D] without a batch: learned priors, sigmas."""

import pytest
import torch
from torch.distributions import kl_divergence

import fused_elbo
from fused_elbo import elbo_loss
from fused_elbo.distributions import DiagonalNormal
from helpers.machine import KERNELS

LATENT, EVENT = 4, 6
BATCHES = [3, 5, LATENT, EVENT, 7]  # those of the other sizes among them
IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])


def diagonal(mu, logvar, impl):
    return DiagonalNormal(mu, logvar, validate_args=False, impl=impl)


def iwae(m, mu, logvar, recon, x, impl):
    _, log_ratio = fused_elbo.rsample_log_ratio(mu, logvar, 2, m.mu, m.logvar, impl=impl)
    recon = recon.expand(2, *recon.shape)
    return fused_elbo.iwae_loss(recon, x, 0.0 * log_ratio, impl=impl)


# Scalars that do not depend on noise; m has the Parameters mu and logvar [D], and sigma.
STEPS = {
    "gaussian_kl": lambda m, mu, logvar, recon, x, impl: fused_elbo.gaussian_kl(
        mu, logvar, m.mu, m.logvar, impl=impl
    ).sum(),
    "gaussian_kl of half a prior": lambda m, mu, logvar, recon, x, impl: fused_elbo.gaussian_kl(
        mu, logvar, prior_logvar=m.logvar, impl=impl
    ).sum(),
    "gaussian_log_prob": lambda m, mu, logvar, recon, x, impl: fused_elbo.gaussian_log_prob(
        mu, m.mu, m.logvar, impl=impl
    ).sum(),
    "gaussian_rsample": lambda m, mu, logvar, recon, x, impl: (
        0.0 * fused_elbo.gaussian_rsample(mu, m.logvar, impl=impl)
    ).sum(),
    "rsample_kl": lambda m, mu, logvar, recon, x, impl: fused_elbo.rsample_kl(
        mu, logvar, m.mu, m.logvar, impl=impl
    )[1].sum(),
    "gaussian_nll": lambda m, mu, logvar, recon, x, impl: fused_elbo.gaussian_nll(
        recon, x, m.sigma, impl=impl
    ).sum(),
    "gaussian_nll of one sigma": lambda m, mu, logvar, recon, x, impl: fused_elbo.gaussian_nll(
        recon, x, m.sigma[:1], impl=impl
    ).sum(),
    "elbo_loss": lambda m, mu, logvar, recon, x, impl: elbo_loss(
        recon, x, mu, logvar, prior_mu=m.mu, prior_logvar=m.logvar, likelihood="gaussian",
        recon_logvar=m.sigma, impl=impl,
    ),
    "iwae_loss": iwae,
    "log_prob": lambda m, mu, logvar, recon, x, impl: (
        diagonal(mu, m.logvar, impl).log_prob(m.mu).sum()
    ),
    "kl_divergence": lambda m, mu, logvar, recon, x, impl: kl_divergence(
        diagonal(mu, logvar, impl), diagonal(m.mu, m.logvar, impl)
    ).sum(),
}  # fmt: skip


class Model(torch.nn.Module):
    def __init__(self, step, impl):
        super().__init__()
        self.step, self.impl = STEPS[step], impl
        self.mu = torch.nn.Parameter(torch.linspace(-1, 1, LATENT))
        self.logvar = torch.nn.Parameter(torch.linspace(-0.5, 0.5, LATENT))
        self.sigma = torch.nn.Parameter(torch.linspace(-0.3, 0.4, EVENT))

    def forward(self, mu, logvar, recon, x):
        return self.step(self, mu, logvar, recon, x, self.impl)


def batch_of(size, device):
    generator = torch.Generator().manual_seed(size)
    values = [torch.rand(size, d, generator=generator) for d in (LATENT, LATENT, EVENT, EVENT)]
    return [v.to(device).requires_grad_() for v in values]


@IMPLS
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "default"])
def test_compiled(step, impl, dynamic, device):
    torch._dynamo.reset()
    model = Model(step, impl).to(device)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in BATCHES:
        arguments = batch_of(size, device)
        leaves = [*arguments, *model.parameters()]
        results = []
        for function in (compiled, model):
            value = function(*arguments)
            results += [(value, torch.autograd.grad(value, leaves, allow_unused=True))]
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@IMPLS
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_exported_for_every_batch(step, impl, strict, device):
    """A guard "B is not D" would make export refuse."""
    model = Model(step, impl).to(device)
    batch = torch.export.Dim("batch", min=2, max=4096)
    shapes = ({0: batch},) * 4
    program = torch.export.export(
        model, tuple(batch_of(3, device)), dynamic_shapes=shapes, strict=strict
    )
    for size in BATCHES:
        arguments = batch_of(size, device)
        value = program.module()(*arguments)
        torch.testing.assert_close(value, model(*arguments), rtol=1e-5, atol=1e-5)
