"""The fused operations as torch.distributions."""

from .estimators.distributions import DiagonalNormal

__all__ = ["DiagonalNormal"]
