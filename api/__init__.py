"""Fused, validated and measured estimators of the evidence lower bound (ELBO).

CUDA tensors take the Triton kernels, all others the PyTorch reference; Triton is not
imported before a kernel is used.
"""

from importlib.metadata import version

from .estimators.functional import (
    bernoulli_nll,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_nll,
    gaussian_rsample,
    rsample_kl,
)
from .estimators.loss import ELBOLoss, ELBOParts, elbo_loss

__version__ = version("fused-elbo")
__all__ = [
    "ELBOLoss",
    "ELBOParts",
    "bernoulli_nll",
    "elbo_loss",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_nll",
    "gaussian_rsample",
    "rsample_kl",
]
