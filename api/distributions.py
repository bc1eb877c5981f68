"""The fused operations as torch.distributions."""

from .estimators.count_distributions import GammaPoisson, NegativeBinomial
from .estimators.distributions import DiagonalNormal

__all__ = ["DiagonalNormal", "GammaPoisson", "NegativeBinomial"]
