"""Poisson negative log-likelihood, row sums: exp(log_rate) - x log_rate + log x!.

With t = exp(log_rate) / x - 1 this is x (t - log(1 + t)) plus the least nll, that at t = 0: nothing
cancels (``counts``). The kernel of ``one_parameter`` serves forward, backward and both.
"""

import triton
import triton.language as tl

from .counts import count_constant, deviance
from .device import exp_scaled
from .launch import most_elements
from .one_parameter import launch_one_parameter


@triton.jit
def terms_of_counts(log_rate, x, PTX: tl.constexpr):
    """The nll of each element and its gradient in log_rate; NaN where x is negative."""
    x = tl.where(x >= 0.0, x, float("nan"))
    rate = exp_scaled(log_rate, 1.0, PTX)
    count = tl.where(x == 0.0, 1.0, x)
    log_x = tl.log(count)
    of_count = count * deviance((rate - count) / count, log_rate - log_x, PTX)
    of_count += count_constant(count, log_x, PTX)
    return tl.where(x == 0.0, rate, of_count), rate - x, -log_rate


def launch_poisson_nll(log_rate, x, **options):
    largest = most_elements(log_rate, x) if options.get("values") else None
    return launch_one_parameter(terms_of_counts, log_rate, x, largest=largest, **options)
