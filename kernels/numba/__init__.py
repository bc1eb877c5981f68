"""The ops for CPUs, in numba: launchers under the names, and with the arguments, of the ops.

Nothing here is imported until a CPU tensor meets a kernel, and each kernel is compiled at its
first call. One family a file; ``device.py`` and ``noise.py`` hold the functions of numbers they
share, ``memory.py`` how a kernel reaches its tensors, ``launch.py`` the threads, and
``compiler.py`` what numba is asked for.
"""

from .bernoulli_nll import bernoulli_nll, bernoulli_nll_backward
from .elbo_loss import elbo_loss, scale_
from .gaussian_kl import gaussian_kl, gaussian_kl_backward
from .gaussian_nll import gaussian_nll, gaussian_nll_backward
from .gaussian_rsample import (
    rsample,
    rsample_backward,
    rsample_log_ratio,
    rsample_log_ratio_backward,
)
from .importance_weights import importance_weights
from .rsample_kl import rsample_kl, rsample_kl_backward

__all__ = [
    "bernoulli_nll",
    "bernoulli_nll_backward",
    "elbo_loss",
    "gaussian_kl",
    "gaussian_kl_backward",
    "gaussian_nll",
    "gaussian_nll_backward",
    "importance_weights",
    "rsample",
    "rsample_backward",
    "rsample_kl",
    "rsample_kl_backward",
    "rsample_log_ratio",
    "rsample_log_ratio_backward",
    "scale_",
]
