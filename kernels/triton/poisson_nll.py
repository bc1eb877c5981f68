"""Poisson negative log-likelihood, row sums: exp(log_rate) - x log_rate + log x!.

The kernel of ``one_parameter`` serves forward, backward and both at once.
"""

import triton
import triton.language as tl

from .device import divide, exp_scaled
from .one_parameter import launch_one_parameter


@triton.jit
def stirling(x, PTX: tl.constexpr):
    """log x! - x (log x - 1) - log(x) / 2 from x = 4 on, in float64 from 16 on."""
    inverse = divide(1.0, x, PTX)
    square = inverse * inverse
    series = -1.0 / 1680
    if x.dtype == tl.float64:
        series = 1.0 / 1188 + square * (-691.0 / 360360)
        series = -1.0 / 1680 + square * series
    series = 1.0 / 1260 + square * series
    series = 1.0 / 12 + square * (-1.0 / 360 + square * series)
    return 0.9189385332046727 + inverse * series


@triton.jit
def log_factorial_of_few(x):
    """log y! = y (y - 1) P(y) for 0 <= y <= 3/2, with relative error 6e-8."""
    series = -0.00044927851 * x + 0.003855986
    series = series * x - 0.01499567
    series = series * x + 0.035862435
    series = series * x - 0.061683591
    series = series * x + 0.086982004
    series = series * x - 0.11407664
    series = series * x + 0.15531996
    series = series * x - 0.24524653
    series = series * x + 0.57721561
    return x * (x - 1.0) * series


@triton.jit
def log_factorial(x, PTX: tl.constexpr):
    """log Gamma(x + 1) for x >= 0; libdevice's does not run in the interpreter."""
    product = tl.full(x.shape, 1.0, x.dtype)
    y = x
    if x.dtype == tl.float64:
        # x! = y! / ((x + 1) ... y) for the first y from 16 on: to 2e-14, for log y! is up to 31.
        for _ in tl.static_range(16):
            few = y < 16.0
            y = tl.where(few, y + 1.0, y)
            product = tl.where(few, product * y, product)
        return y * (tl.log(y) - 1.0) + (0.5 * tl.log(y) + stirling(y, PTX)) - tl.log(product)
    # x! = x (x - 1) ... y!: exact where x is an integer below 4.
    for _ in tl.static_range(3):
        product = tl.where(y >= 1.5, product * y, product)
        y = tl.where(y >= 1.5, y - 1.0, y)
    log = tl.log(tl.where(x < 4.0, product, x))
    large = x * (log - 1.0) + (0.5 * log + stirling(x, PTX))
    return tl.where(x >= 4.0, large, log + log_factorial_of_few(y))


@triton.jit
def terms_of_counts(log_rate, x, PTX: tl.constexpr):
    """The nll of each element and its gradient in log_rate; NaN where x is negative."""
    x = tl.where(x >= 0.0, x, float("nan"))
    rate = exp_scaled(log_rate, 1.0, PTX)
    return rate - x * log_rate + log_factorial(x, PTX), rate - x, -log_rate


def launch_poisson_nll(log_rate, x, **options):
    return launch_one_parameter(terms_of_counts, log_rate, x, **options)
