"""Diagonal-Gaussian negative log-density: -log N(x; recon, diag exp logvar), row sums."""

import math

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


def launch_gaussian_nll(recon, x, logvar, logvar_value, sign, **options):
    operands = recon, x, logvar, logvar_value
    return launch_location_scale(gaussian_nll_kernel, *operands, sign=sign, **options)
