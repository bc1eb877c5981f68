"""Bernoulli negative log-likelihood, row sums.

From logits it is softplus(logits) - x logits; from probabilities, as in ``F.binary_cross_entropy``,
-x log p - (1 - x) log(1 - p).
"""

import torch
import triton
import triton.language as tl

from .device import divide, exp_scaled, log1m_half, log1p_unit
from .one_parameter import launch_one_parameter

# torch divides the gradient by p (1 - p), or by this if it is greater: a float32, in float64 too.
LEAST_VARIANCE = tl.constexpr(torch.tensor(1e-12, dtype=torch.float32, device="cpu").item())


@triton.jit
def terms_of_logits(logits, x, PTX: tl.constexpr):
    """The nll of each element, and its gradients in logits and x."""
    odds = exp_scaled(tl.abs(logits), -1.0, PTX)
    nll = tl.maximum(logits, 0.0) - x * logits + log1p_unit(odds, PTX)
    mean = divide(tl.where(logits >= 0.0, 1.0, odds), 1.0 + odds, PTX)
    return nll, mean - x, -logits


@triton.jit
def log_probability(p):
    """log p, also of subnormal numbers, which libdevice's float32 logarithm flushes to 0."""
    if p.dtype == tl.float64:
        return tl.log(p)
    tiny = p < 1.1754943508222875e-38
    return tl.log(tl.where(tiny, p * 16777216.0, p)) - tl.where(tiny, 16.635532333438686, 0.0)


@triton.jit
def terms_of_probabilities(p, x, PTX: tl.constexpr):
    """The nll of each element, and its gradients in p and x, clamped where torch clamps them.

    The gradient in x is not clamped. Where p or x is outside [0, 1], all three are NaN. Values are
    clamped by comparisons, because ``tl.maximum`` would drop a NaN.
    """
    p = tl.where((p >= 0.0) & (p <= 1.0) & (x >= 0.0) & (x <= 1.0), p, float("nan"))
    rest = 1.0 - p
    low = p < rest
    smaller = tl.where(low, p, rest)  # exact, because 1 - p is exact from p = 1/2 on
    log_smaller, log_larger = log_probability(smaller), log1m_half(smaller, PTX)
    dx = tl.where(low, log_larger - log_smaller, log_smaller - log_larger)
    log_smaller = tl.where(log_smaller < -100.0, -100.0, log_smaller)
    log_p = tl.where(low, log_smaller, log_larger)
    log_rest = tl.where(low, log_larger, log_smaller)
    nll = -x * log_p - (1.0 - x) * log_rest
    variance = p * rest
    variance = tl.where(variance < LEAST_VARIANCE, LEAST_VARIANCE, variance)
    return nll, divide(p - x, variance, PTX), dx


def launch_bernoulli_nll(recon, x, probabilities, **options):
    terms = terms_of_probabilities if probabilities else terms_of_logits
    return launch_one_parameter(terms, recon, x, **options)
