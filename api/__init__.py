"""Fused, validated and measured estimators of the evidence lower bound (ELBO).

CUDA tensors take Triton's kernels and CPU tensors numba's; all others, and what no kernel can do,
take the PyTorch reference. Neither Triton nor numba is imported before a kernel is used.
"""

from importlib.metadata import version

from .estimators.counts import (
    multinomial_nll,
    negative_binomial_nll,
    softmax_negative_binomial_nll,
)
from .estimators.discretized import discretized_mix_logistic_nll
from .estimators.functional import (
    gaussian_kl,
    gaussian_log_prob,
    gaussian_rsample,
    rsample_kl,
    rsample_log_ratio,
)
from .estimators.hierarchical import BalancedKL, balanced_kl, rsample_kl_log_std
from .estimators.importance import (
    ImportanceWeights,
    IWAEParts,
    chunked_iwae_loss,
    importance_weights,
    iwae_loss,
)
from .estimators.likelihoods import (
    bernoulli_nll,
    categorical_nll,
    gaussian_nll,
    laplace_nll,
    poisson_nll,
)
from .estimators.loss import ELBOLoss, ELBOParts, elbo_loss
from .estimators.mixtures import (
    ELBOTCParts,
    KLDecomposition,
    Mixture,
    elbo_tc_loss,
    kl_decomposition,
    mixture_log_prob,
)

__version__ = version("fused-elbo")
__all__ = [
    "BalancedKL",
    "ELBOLoss",
    "ELBOParts",
    "ELBOTCParts",
    "IWAEParts",
    "ImportanceWeights",
    "KLDecomposition",
    "Mixture",
    "balanced_kl",
    "bernoulli_nll",
    "categorical_nll",
    "chunked_iwae_loss",
    "discretized_mix_logistic_nll",
    "elbo_loss",
    "elbo_tc_loss",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_nll",
    "gaussian_rsample",
    "importance_weights",
    "iwae_loss",
    "kl_decomposition",
    "laplace_nll",
    "mixture_log_prob",
    "multinomial_nll",
    "negative_binomial_nll",
    "poisson_nll",
    "rsample_kl",
    "rsample_kl_log_std",
    "rsample_log_ratio",
    "softmax_negative_binomial_nll",
]
