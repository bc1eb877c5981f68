"""Laplace negative log-density: |x - recon| exp(-log_scale) + log_scale + log 2, row sums."""

import math
from functools import partial

from .compiler import inline
from .location_scale import launch_location_scale, location_scale_kernel


@inline
def magnitude(residual):
    return abs(residual)


@inline
def sign_of(residual):
    """The sign, which is 0 for 0 and NaN, as in torch."""
    real = type(residual)
    negative = real(-1.0) if residual < real(0.0) else real(0.0)
    return real(1.0) if residual > real(0.0) else negative


laplace_nll_kernel = location_scale_kernel(
    "laplace_nll_kernel", magnitude, sign_of, 1.0, math.log(2)
)
launch_laplace_nll = partial(launch_location_scale, laplace_nll_kernel)
