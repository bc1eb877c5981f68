"""Laplace negative log-density, row sums: |x - recon| exp(-log_scale) + log_scale + log 2."""

import math

import triton
import triton.language as tl

from .location_scale import launch_location_scale


@triton.jit
def magnitude(residual):
    """Return (|r|, sign(r)); the sign is 0 for 0 and NaN, as in torch."""
    sign = tl.where(residual > 0.0, 1.0, tl.where(residual < 0.0, -1.0, 0.0))
    return tl.abs(residual), sign


def launch_laplace_nll(recon, x, log_scale, log_scale_value, **options):
    options |= {"DISTANCE": magnitude, "RATE": 1.0, "CONSTANT": math.log(2)}
    return launch_location_scale(recon, x, log_scale, log_scale_value, **options)
