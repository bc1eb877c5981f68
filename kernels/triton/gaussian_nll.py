"""Diagonal-Gaussian negative log-density: -log N(x; recon, diag exp logvar), row sums."""

import math

from .device import square
from .location_scale import launch_location_scale


def launch_gaussian_nll(recon, x, logvar, logvar_value, sign, **options):
    options |= {"DISTANCE": square, "RATE": 0.5, "CONSTANT": math.log(2 * math.pi), "sign": sign}
    return launch_location_scale(recon, x, logvar, logvar_value, **options)
