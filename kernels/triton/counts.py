"""Functions for log-densities of counts, accurate at every size of a count.

Large log-gamma functions cancel: at x = rate = 1e7 a Poisson's nll is 9, the difference of numbers
near 1.5e8. Loader's saddle-point form ("Fast and accurate computation of binomial probabilities",
2000) has small terms only: deviances, and the errors of Stirling's formula.
"""

import triton
import triton.language as tl

from .device import divide, log1p_unit

HALF_LOG_2PI = tl.constexpr(0.9189385332046727)


@triton.jit
def log1p_positive(x, PTX: tl.constexpr):
    """log(1 + x) for x >= 0, accurate near zero."""
    return tl.where(x <= 1.0, log1p_unit(tl.minimum(x, 1.0), PTX), tl.log(1.0 + x))


@triton.jit
def atanh_series(q):
    """(atanh(v) / v - 1) / q for q = v^2 <= 1/9: a Chebyshev fit, or Taylor's series in float64."""
    if q.dtype == tl.float64:
        series = 1.0 / 37 + q * (1.0 / 39)
        for i in tl.static_range(17):
            series = 1.0 / (35 - 2 * i) + q * series
    else:
        series = 0.11612164974212646 * q + 0.1085328757762909
        series = series * q + 0.142961785197258
        series = series * q + 0.19999852776527405
        series = series * q + 0.3333333432674408
    return series


@triton.jit
def deviance(t, log_u, PTX: tl.constexpr):
    """t - log(1 + t), never negative, from t and ``log_u`` = log(1 + t).

    With t = b / a - 1 it is the deviance a log(a / b) + b - a, over a. Near t = 0 the difference
    cancels; there log(1 + t) is computed as 2 atanh(v) with v = t / (2 + t).
    """
    close = tl.abs(t - 0.25) <= 0.75
    v = tl.where(close, t, 0.0)
    v = divide(v, 2.0 + v, PTX)
    q = v * v
    return tl.where(close, v * (t - 2.0 * q * atanh_series(q)), t - log_u)


@triton.jit
def stirling_tail(y, PTX: tl.constexpr):
    """log y! - (y + 1/2) log y + y - log(2 pi) / 2 for y >= 1.

    In float64, y is first raised to 16 in steps of 1. A step adds (y + 1/2) log(1 + 1 / y) - 1,
    which is atanh(v) / v - 1 with v = 1 / (2 y + 1).
    """
    if y.dtype == tl.float64:
        steps = tl.zeros(y.shape, y.dtype)
        for _ in range(16):
            few = y < 16.0
            v = 1.0 / (2.0 * y + 1.0)
            q = v * v
            steps += tl.where(few, q * atanh_series(q), 0.0)
            y = tl.where(few, y + 1.0, y)
        s = 1.0 / y
        q = s * s
        series = 1.0 / 1188 + q * (-691.0 / 360360 + q * (1.0 / 156))
        series = 1.0 / 1260 + q * (-1.0 / 1680 + q * series)
        return steps + s * (1.0 / 12 + q * (-1.0 / 360 + q * series))
    s = divide(1.0, y, PTX)
    series = -1.8348238882026635e-05 * s + 0.0002027003065450117
    series = series * s - 0.0007224709261208773
    series = series * s + 0.0011103959986940026
    series = series * s - 7.479310443159193e-05
    series = series * s - 0.0027689451817423105
    series = series * s - 4.0759195485406963e-07
    return s * (series * s + 0.0833333358168602)


@triton.jit
def slope_tail(y, PTX: tl.constexpr):
    """y times the derivative of ``stirling_tail``: y (digamma(y) - log y) + 1/2, for y >= 1."""
    if y.dtype == tl.float64:
        steps = tl.zeros(y.shape, y.dtype)
        z = y
        for _ in range(16):
            few = z < 16.0
            v = 1.0 / (2.0 * z + 1.0)
            q = v * v
            step = 2.0 * v * q * (atanh_series(q) - 1.0 / (1.0 - q))
            steps += tl.where(few, step, 0.0)
            z = tl.where(few, z + 1.0, z)
        q = 1.0 / (z * z)
        series = -1.0 / 132 + q * (691.0 / 32760 + q * (-1.0 / 12))
        series = -1.0 / 252 + q * (1.0 / 240 + q * series)
        return y * (steps + q * (-1.0 / 12 + q * (1.0 / 120 + q * series)))
    s = divide(1.0, y, PTX)
    series = -0.0005329560372047126 * s + 0.002679348224774003
    series = series * s - 0.005332195665687323
    series = series * s + 0.004487348720431328
    series = series * s + 0.0007116124616004527
    series = series * s - 0.004282763227820396
    series = series * s + 5.882243931409903e-05
    series = series * s + 0.008328292518854141
    series = series * s + 1.596473424569922e-07
    return s * (series * s - 0.0833333358168602)


@triton.jit
def few_factorial(y, PTX: tl.constexpr):
    """log y! for 0 < y < 1: in float32 y (y - 1) P(y), with relative error 6e-8."""
    if y.dtype == tl.float64:
        tail = stirling_tail(y + 1.0, PTX) + (HALF_LOG_2PI - 1.0)
        return tail + ((y + 0.5) * log1p_unit(y, PTX) - y)
    series = -0.00044927851 * y + 0.003855986
    series = series * y - 0.01499567
    series = series * y + 0.035862435
    series = series * y - 0.061683591
    series = series * y + 0.086982004
    series = series * y - 0.11407664
    series = series * y + 0.15531996
    series = series * y - 0.24524653
    series = series * y + 0.57721561
    return y * (y - 1.0) * series


@triton.jit
def stirling_error(y, log_y, PTX: tl.constexpr):
    """``stirling_tail`` for y >= 1; below 1 log y! - y log y + y, which is 0 at 0.

    The second is greater than the first by log(2 pi y) / 2.
    """
    few = few_factorial(tl.minimum(y, 1.0), PTX) - y * (log_y - 1.0)
    return tl.where(y < 1.0, few, stirling_tail(tl.maximum(y, 1.0), PTX))


@triton.jit
def stirling_slope(y, log_y, PTX: tl.constexpr):
    """y (digamma(y) - log y) + 1/2. Below 1, digamma(y) = digamma(y + 1) - 1 / y."""
    z = tl.where(y < 1.0, y + 1.0, y)
    value = slope_tail(z, PTX)
    shifted = divide(value - 0.5, z, PTX) + (tl.log(z) - log_y)
    return tl.where(y < 1.0, y * shifted - 0.5, value)


@triton.jit
def count_constant(x, log_x, PTX: tl.constexpr):
    """log x! - x log x + x for x > 0: the least nll of a Poisson, at rate x."""
    error = stirling_error(x, log_x, PTX)
    return tl.where(x < 1.0, error, error + (0.5 * log_x + HALF_LOG_2PI))
