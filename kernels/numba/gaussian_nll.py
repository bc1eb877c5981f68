"""Diagonal-Gaussian negative log-density: -log N(x; recon, diag exp logvar), row sums."""

import math
from functools import partial

from .compiler import inline
from .location_scale import launch_location_scale, location_scale_kernel


@inline
def square(residual):
    return residual * residual


@inline
def itself(residual):
    return residual


gaussian_nll_kernel = location_scale_kernel(
    "gaussian_nll_kernel", square, itself, 0.5, math.log(2 * math.pi)
)
launch_gaussian_nll = partial(launch_location_scale, gaussian_nll_kernel)


def gaussian_nll(recon, x, logvar, logvar_value, sign):
    """The nll of each row of recon, or with ``sign`` -1 the log-density."""
    return launch_gaussian_nll(recon, x, logvar, logvar_value, sign=sign, values=True)[0]


def gaussian_nll_backward(dnll, recon, x, logvar, logvar_value, sign, needs):
    """The wanted gradients, from dnll [rows of recon]."""
    return launch_gaussian_nll(
        recon, x, logvar, logvar_value, dnll=dnll, sign=sign, values=False, needs=needs
    )[1]
