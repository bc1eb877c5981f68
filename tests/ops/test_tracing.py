"""torch.jit.trace and torch.export: no constant that loses digits, no batch that is held to."""

import warnings

import pytest
import torch
from torch.distributions import Distribution, Independent, Normal, kl_divergence

import fused_elbo as fe
from fused_elbo.distributions import DiagonalNormal

F64 = torch.float64
A, B, C = torch.randn(3, 5, 7, dtype=F64, generator=torch.Generator().manual_seed(1))
SEVERAL, IMAGE = torch.stack((A, B)), C.sigmoid()
REFERENCE = {"impl": "reference"}  # what is traced; here without a compilation for what is not
TRACED = {
    "gaussian_log_prob": (lambda a, b: fe.gaussian_log_prob(a, b, b, **REFERENCE), A, B),
    "gaussian_kl": (lambda a, b: fe.gaussian_kl(a, b, b, a, **REFERENCE), A, B),
    "gaussian_nll": (lambda a, b: fe.gaussian_nll(a, b, **REFERENCE), A, B),
    "a width": (lambda a, b: fe.gaussian_nll(a, b, 0.3, **REFERENCE), A, B),
    "a learned width": (lambda a, b: fe.gaussian_nll(a, b, a, **REFERENCE), A, B),
    "laplace_nll": (lambda a, b: fe.laplace_nll(a, b, 0.3, **REFERENCE), A, B),
    "a learned scale": (lambda a, b: fe.laplace_nll(a, b, a, **REFERENCE), A, B),
    "bernoulli_nll": (lambda a, x: fe.bernoulli_nll(a, x, **REFERENCE), A, IMAGE),
    "poisson_nll": (lambda a, x: fe.poisson_nll(a, x, **REFERENCE), A, IMAGE),
    "elbo_loss": (
        lambda a, b: fe.elbo_loss(a, b, a, b, likelihood="gaussian", recon_logvar=0.3, **REFERENCE),
        A,
        B,
    ),
    "iwae_loss": (
        lambda k, x: fe.iwae_loss(k, x, k.sum(-1), alpha=0.3, **REFERENCE),
        SEVERAL,
        IMAGE,
    ),
    "mixture_log_prob": (lambda a, b: fe.mixture_log_prob(a, b, b, **REFERENCE), A, B),
    "kl_decomposition": (lambda a, b: fe.kl_decomposition(a, a, b, 100, **REFERENCE), A, B),
    "DiagonalNormal.log_prob": (
        lambda a, b: DiagonalNormal(a, b, validate_args=False, **REFERENCE).log_prob(b),
        A,
        B,
    ),
    "DiagonalNormal.entropy": (
        lambda a, b: DiagonalNormal(a, b, validate_args=False, **REFERENCE).entropy(),
        A,
        B,
    ),
}


@pytest.mark.parametrize("name", TRACED)
def test_jit_trace_in_float64(name):
    """A traced size is a tensor, and its product with a number in float32."""
    function, *arguments = TRACED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is constant, and of torch.jit's end
        traced = torch.jit.trace(function, arguments, check_trace=False)
    torch.testing.assert_close(traced(*arguments), function(*arguments), rtol=1e-13, atol=1e-13)


class Module(torch.nn.Module):
    """One of the functions below; its prior [3] is a parameter."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.prior_mu, self.prior_logvar = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))

    def forward(self, mu, logvar):
        return self.function(mu, logvar, self.prior_mu, self.prior_logvar)


def distribution(mu, logvar, prior_mu, prior_logvar):
    q, p = DiagonalNormal(mu, logvar), DiagonalNormal(prior_mu, prior_logvar)
    other = Independent(Normal(prior_mu, prior_logvar.exp()), 1)
    return q.rsample(), kl_divergence(q, p), kl_divergence(q, other), q.log_prob(mu)


EXPORTED = {
    "gaussian_kl": fe.gaussian_kl,
    "rsample_kl": fe.rsample_kl,
    "gaussian_rsample": lambda mu, logvar, *_: fe.gaussian_rsample(mu, logvar, 3),
    "bernoulli_nll": lambda mu, logvar, *_: fe.bernoulli_nll(mu, logvar),
    "laplace_nll": lambda mu, logvar, *_: fe.laplace_nll(mu, logvar, mu),
    "elbo_loss": lambda mu, logvar, *_: fe.elbo_loss(mu, logvar, mu, logvar, likelihood="gaussian"),
    "DiagonalNormal": distribution,
}


@pytest.mark.parametrize("name", EXPORTED)
def test_export_holds_no_batch(name):
    """Thresholds between torch and kernels are none for a graph: 1024 numbers are 1024/3 rows."""
    batch = torch.export.Dim("batch", min=1)
    Distribution.set_default_validate_args(False)
    try:
        module = Module(EXPORTED[name])
        example = torch.randn(8, 3), torch.randn(8, 3)
        shapes = {"mu": {0: batch}, "logvar": {0: batch}}
        exported = torch.export.export(module, example, dynamic_shapes=shapes)
    finally:
        Distribution.set_default_validate_args(__debug__)
    for rows in (1, 341, 342, 2**16):
        exported.module()(torch.randn(rows, 3), torch.randn(rows, 3))
