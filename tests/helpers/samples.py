"""Values and noise for tests of K samples."""

import pytest
import torch

from helpers.machine import KERNELS

SAMPLES = [1, 2, 3, 64, 1000]
IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])


def normal(*shape, seed=0, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, dtype=dtype, generator=generator).to(device)


def q_and_prior(rows, cols, device):
    """Leaves (mu, logvar, prior_mu, prior_logvar)."""
    return [
        (scale * normal(rows, cols, seed=i, device=device)).requires_grad_()
        for i, scale in enumerate((1.0, 0.5, 0.3, 0.3))
    ]


def at_seed(seed, function, *args, **kwargs):
    torch.manual_seed(seed)
    return function(*args, **kwargs)
