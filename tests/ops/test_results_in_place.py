"""Results are tensors of their own: they can be written to in place, and differentiated then."""

import pytest
import torch

import fused_elbo as fe
from helpers.machine import KERNELS

SHAPES = [(4, 5), (3, 1500), (2, 3, 5)]  # a tile a row, several, and rows of two dimensions


def leaf(*shape, device):
    return torch.rand(shape, device=device).requires_grad_()


def calls(shape, device, impl):
    """{name: a function of no arguments that returns fresh results}, over all public operations."""
    impl = {"impl": impl}
    mu, logvar, x, recon = (leaf(*shape, device=device) for _ in range(4))
    x = x.detach()
    classes = torch.zeros(shape[:-1], dtype=torch.int64, device=device)
    log_weights, samples = leaf(3, shape[0], device=device), leaf(3, *shape, device=device)
    decoder = torch.nn.Identity()
    return {
        "gaussian_log_prob": lambda: (fe.gaussian_log_prob(x, mu, logvar, **impl),),
        "gaussian_kl": lambda: (fe.gaussian_kl(mu, logvar, **impl),),
        "gaussian_rsample": lambda: (fe.gaussian_rsample(mu, logvar, **impl),),
        "gaussian_rsample of K": lambda: (fe.gaussian_rsample(mu, logvar, 3, **impl),),
        "rsample_kl": lambda: fe.rsample_kl(mu, logvar, **impl),
        "rsample_log_ratio": lambda: fe.rsample_log_ratio(mu, logvar, 3, **impl),
        "gaussian_nll": lambda: (fe.gaussian_nll(recon, x, **impl),),
        "gaussian_nll learned": lambda: (fe.gaussian_nll(recon, x, logvar, **impl),),
        "bernoulli_nll": lambda: (fe.bernoulli_nll(recon, x, **impl),),
        "laplace_nll": lambda: (fe.laplace_nll(recon, x, logvar, **impl),),
        "poisson_nll": lambda: (fe.poisson_nll(recon, x, **impl),),
        "negative_binomial_nll": lambda: (fe.negative_binomial_nll(recon, x, logvar, **impl),),
        "multinomial_nll": lambda: (fe.multinomial_nll(recon, x, **impl),),
        "categorical_nll": lambda: (fe.categorical_nll(recon, classes, **impl),),
        "importance_weights": lambda: fe.importance_weights(log_weights, **impl),
        "iwae_loss": lambda: fe.iwae_loss(samples, x, log_weights, return_parts=True, **impl),
        "chunked_iwae_loss": lambda: fe.chunked_iwae_loss(
            decoder, x.flatten(1), mu.flatten(1), logvar.flatten(1), 4, chunk_size=2,
            return_parts=True, **impl,
        ),
        "elbo_loss": lambda: fe.elbo_loss(recon, x, mu, logvar, return_parts=True, **impl),
        "elbo_loss of each": lambda: fe.elbo_loss(
            recon, x, mu, logvar, return_parts=True, reduction="none", **impl
        ),
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", calls((1, 1), "cpu", KERNELS))
@pytest.mark.parametrize("impl", [KERNELS, "reference"])
def test_arithmetic_in_place(name, shape, impl, device):
    """`kl *= beta` is what code for CPUs does; its gradient is that of `kl * beta`."""
    call = calls(shape, device, impl)[name]
    for index in range(len(call())):
        torch.manual_seed(1)
        result = call()[index]
        plain = result.detach().clone()
        result *= 3.0
        torch.testing.assert_close(result, plain * 3.0, rtol=0, atol=0)
        if result.requires_grad:
            result.sum().backward()
