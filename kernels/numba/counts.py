"""Functions for log-densities of counts, to full accuracy at every size of a count.

log-gamma functions of large arguments cancel: at x = rate = 1e7 a Poisson's nll is 9, the
difference of numbers near 1.5e8. Loader's saddle point ("Fast and accurate computation of binomial
probabilities", 2000) has small terms only: what Stirling's formula misses, and deviances.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from .compiler import bits_of_float, float_of_bits, helper, inline, polynomial
from .device import LOG, log

# log y! = y (y - 1) FEW(y) for 0 <= y <= 3/2, with relative error 6e-8
FEW = polynomial(
    0.5772156119346619, -0.2452465295791626, 0.1553199589252472, -0.1140766367316246,
    0.08698200434446335, -0.061683591455221176, 0.03586243465542793, -0.014995669946074486,
    0.0038559860549867153, -0.0004492785083130002,
)  # fmt: skip
# stirling_error(y) = STIRLING(1 / y) / y for y >= 1, with relative error 5e-8
STIRLING = polynomial(
    0.0833333358168602, -4.0759195485406963e-07, -0.0027689451817423105, -7.479310443159193e-05,
    0.0011103959986940026, -0.0007224709261208773, 0.0002027003065450117, -1.8348238882026635e-05,
)  # fmt: skip
# y stirling_error'(y) = STIRLING_SLOPE(1 / y) / y for y >= 1, with relative error 3e-8
STIRLING_SLOPE = polynomial(
    -0.0833333358168602, 1.596473424569922e-07, 0.008328292518854141, 5.882243931409903e-05,
    -0.004282763227820396, 0.0007116124616004527, 0.004487348720431328, -0.005332195665687323,
    0.002679348224774003, -0.0005329560372047126,
)  # fmt: skip
# For float64, from y = 16 on, in 1 / y**2: Bernoulli numbers B_2n / (2n (2n - 1)), and B_2n / 2n.
STIRLING_SERIES = polynomial(
    1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156
)
SLOPE_SERIES = polynomial(-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760, -1 / 12)
# atanh(v) = v + v^3 ATANH(v^2) for |v| <= 1/3, with relative error 3e-8 of the second term
ATANH = polynomial(
    0.3333333432674408, 0.19999852776527405, 0.142961785197258, 0.1085328757762909,
    0.11612164974212646,
)  # fmt: skip
ATANH_TAYLOR = polynomial(*(1 / (2 * n + 3) for n in range(18)))
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def log1p(x):
    """log(1 + x) for x > -1, accurate near zero."""
    raise NotImplementedError


@overload(log1p)
def _(x):
    return (lambda x: log1p_32(x)) if x == types.float32 else (lambda x: math.log1p(x))


@inline
def log1p_32(x):
    """Where 1 + x is near 1 the digits of x are kept, which the sum would lose."""
    bits = bits_of_float(np.float32(1.0) + x)
    exponent = np.int32(np.int32(bits - 0x3F3504F3) >> 23)
    scaled = float_of_bits(np.int32(bits - np.int32(exponent << 23)))
    f = x if exponent == 0 else scaled - np.float32(1.0)
    square = f * f
    series = f * square * LOG(f) - np.float32(0.5) * square + f
    result = series + np.float32(exponent) * np.float32(math.log(2))
    return result if x < np.float32(np.inf) else x


def atanh_series(q):
    raise NotImplementedError


@overload(atanh_series)
def _(q):
    return (lambda q: ATANH(q)) if q == types.float32 else (lambda q: ATANH_TAYLOR(q))


@inline
def deviance(t, log_u):
    """t - log(1 + t), never negative, from t and log(1 + t): with t = b / a - 1 it is 1 / a of
    a log(a / b) + b - a.

    Near t = 0, where the difference cancels, by atanh of v = t / (2 + t): log(1 + t) is twice it.
    """
    real = type(t)
    v = t / (real(2.0) + t)
    q = v * v
    near = v * (t - real(2.0) * q * atanh_series(q))
    return near if abs(t - real(0.25)) <= real(0.75) else t - log_u


@inline
def stirling_error(y, log_y):
    """log y! - (y + 1/2) log y + y - log(2 pi) / 2 for y >= 1.

    Below 1 it is log y! - y log y + y, which is 0 at 0: half of log(2 pi y) more.
    """
    real = type(y)
    tail = stirling_tail(y if y >= real(1.0) else real(1.0))
    return y * (few_factorial(y) - (log_y - real(1.0))) if y < real(1.0) else tail


@inline
def stirling_slope(y, log_y):
    """y (digamma(y) - log y) + 1/2: y times the derivative of the first form above.

    Below 1 from y + 1, of which digamma is less by 1 / y.
    """
    real = type(y)
    low = y < real(1.0)
    z = y + real(1.0) if low else y
    value = slope_tail(z)
    shifted = (value - real(0.5)) / z + (log(z) - log_y)
    return y * shifted - real(0.5) if low else value


def few_factorial(y):
    """log y! / y for 0 < y <= 1."""
    raise NotImplementedError


@overload(few_factorial)
def _(y):
    if y == types.float32:
        return lambda y: (y - np.float32(1.0)) * FEW(y)
    return lambda y: math.lgamma(y + 1.0) / y


def stirling_tail(y):
    """The error of Stirling's formula, for y >= 1."""
    raise NotImplementedError


@overload(stirling_tail)
def _(y):
    if y == types.float32:
        return lambda y: (np.float32(1.0) / y) * STIRLING(np.float32(1.0) / y)
    return lambda y: stirling_tail_64(y)


def slope_tail(y):
    """y times its derivative."""
    raise NotImplementedError


@overload(slope_tail)
def _(y):
    if y == types.float32:
        return lambda y: (np.float32(1.0) / y) * STIRLING_SLOPE(np.float32(1.0) / y)
    return lambda y: slope_tail_64(y)


@helper
def stirling_tail_64(y):
    """Up to 16 in steps of (y + 1/2) log(1 + 1 / y) - 1: atanh(v) / v - 1, v = 1 / (2 y + 1)."""
    steps = 0.0
    while y < 16.0:
        q = 1.0 / (2.0 * y + 1.0) ** 2
        steps += q * ATANH_TAYLOR(q)
        y += 1.0
    return steps + STIRLING_SERIES(1.0 / (y * y)) / y


@helper
def slope_tail_64(y):
    steps, z = 0.0, y
    while z < 16.0:
        v = 1.0 / (2.0 * z + 1.0)
        q = v * v
        steps += 2.0 * v * q * (ATANH_TAYLOR(q) - 1.0 / (1.0 - q))
        z += 1.0
    square = 1.0 / (z * z)
    return y * (steps + SLOPE_SERIES(square) * square)


@inline
def count_constant(x, log_x):
    """log x! - x log x + x for x > 0: what a Poisson's nll is at its least."""
    real = type(x)
    error = stirling_error(x, log_x)
    more = real(0.5) * log_x + real(HALF_LOG_2PI)
    return error if x < real(1.0) else error + more
