"""Elementary functions and what the families share of q and its prior.

In float32 polynomials, for a call to libm keeps a loop scalar; in float64 libm. Numba makes
float64 of float32 times 0.5: constants are cast to the type of what they meet.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from .compiler import bits_of_float, elementwise, float_of_bits, helper, inline, polynomial
from .memory import load, present

# exp r = 1 + r + r^2 EXP(r) for |r| <= log(2) / 2, with relative error 3e-9
EXP = polynomial(
    0.4999999403953552, 0.16666515171527863, 0.04166845604777336, 0.008369418792426586,
    0.0013813144760206342,
)  # fmt: skip
# 2**f = 1 + f EXP2(f) for |f| <= 1/2, with relative error 2e-9
EXP2 = polynomial(
    0.6931471824645996, 0.24022647738456726, 0.055503323674201965, 0.00961843691766262,
    0.0013398875016719103, 0.00015353361959569156,
)  # fmt: skip
# log(1 + f) = f - f^2 / 2 + f^3 LOG(f) for sqrt(1/2) <= 1 + f <= sqrt(2), with relative error 3e-8
LOG = polynomial(
    0.3333390951156616, -0.2500133812427521, 0.19963063299655914, -0.1657758504152298,
    0.14914768934249878, -0.14267486333847046, 0.08700430393218994,
)  # fmt: skip
# log(1 + x) = x + x^2 LOG1P(x) for 0 <= x <= 1, with relative error 5e-9
LOG1P = polynomial(
    -0.4999993145465851, 0.33330512046813965, -0.24958586692810059, 0.19695399701595306,
    -0.15355394780635834, 0.10680553317070007, -0.0576644204556942, 0.02020457200706005,
    -0.003318469738587737,
)  # fmt: skip
# log(1 - x) = -x - x^2 LOG1M(x) for 0 <= x <= 1/2, with relative error 2e-8
LOG1M = polynomial(
    0.49999523162841797, 0.33363211154937744, 0.2436826080083847, 0.2636909484863281,
    -0.18095238506793976, 1.2087141275405884, -1.639589786529541, 1.4145476818084717,
)  # fmt: skip
# expm1(x) - x = x^2 EXPM1(x) for |x| < 1, with relative error 4e-9; in float64 Taylor's series
EXPM1 = polynomial(
    0.5, 0.1666666716337204, 0.04166673496365547, 0.00833331048488617, 0.001388545148074627,
    0.0001984402333619073, 2.535482963139657e-05, 2.7722830964194145e-06,
)  # fmt: skip
EXPM1_TAYLOR = polynomial(*(1 / math.factorial(n) for n in range(2, 22)))


def exp(x):
    raise NotImplementedError


@overload(exp)
def _(x):
    return (lambda x: exp32(x)) if x == types.float32 else (lambda x: math.exp(x))


@inline
def exp32(x):
    """exp(x) to about one ulp, subnormal results included: 2**n is multiplied in two halves."""
    x = np.float32(89.0) if x > np.float32(89.0) else x
    x = np.float32(-104.0) if x < np.float32(-104.0) else x
    shifted, r = reduced(x)
    series = np.float32(1.0) + (r + r * r * EXP(r))
    exponent = np.int32(bits_of_float(shifted) - 0x4B400000)
    half = np.int32(exponent >> 1)
    return series * power_of_two(half) * power_of_two(exponent - half)


@inline
def reduced(x):
    """(n in the lowest bits of a float, r) with x = n log 2 + r: adding 1.5 * 2**23 rounds."""
    shifted = x * np.float32(1.4426950408889634) + np.float32(12582912.0)
    n = shifted - np.float32(12582912.0)
    r = (x - n * np.float32(0.693145751953125)) - n * np.float32(1.428606765330187e-06)
    return shifted, r


@inline
def power_of_two(n):
    return float_of_bits((n + 127) << 23)


def expm1_series(x):
    raise NotImplementedError


@overload(expm1_series)
def _(x):
    return (lambda x: EXPM1(x)) if x == types.float32 else (lambda x: EXPM1_TAYLOR(x))


@inline
def expm1_minus_x_given(x, exp_x):
    """exp(x) - 1 - x from x and exp(x): never negative, and accurate near zero."""
    real = type(x)
    return x * x * expm1_series(x) if abs(x) < real(1.0) else (exp_x - real(1.0)) - x


@inline
def expm1_given(x, exp_x):
    """exp(x) - 1 from x and exp(x), accurate near zero."""
    real = type(x)
    return x + expm1_minus_x_given(x, exp_x) if abs(x) < real(1.0) else exp_x - real(1.0)


@inline
def halves_of_exp(x):
    """(half, r, q) with exp(x) = 2 half (1 + r + q), half a power of two, r + q small.

    It is half the power of two, because the full one can overflow. x is clamped to [-87, 89].
    Below that exp(x) is negligible beside 1; above it is infinite.
    """
    x = np.float32(89.0) if x > np.float32(89.0) else x
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    shifted, r = reduced(x)
    # The lowest bits of the sum are n; a shift into the exponent drops all others.
    half = float_of_bits(np.int32(np.int32(bits_of_float(shifted) << 23) + np.int32(126 << 23)))
    return half, r, r * r * EXP(r)


def exp_normal(x):
    """exp(x), or exp(-87) where it is less: in three quarters of the instructions of ``exp``."""
    raise NotImplementedError


@overload(exp_normal)
def _(x):
    return (lambda x: exp_normal_32(x)) if x == types.float32 else (lambda x: math.exp(x))


@inline
def exp_normal_32(x):
    half, r, q = halves_of_exp(x)
    return np.float32(2.0) * (half * q + (half * r + half))


def exp2(x):
    """2**x for x < 127, and 0 for x < -125: in two thirds of the instructions of ``exp``."""
    raise NotImplementedError


@overload(exp2)
def _(x):
    return (lambda x: exp2_32(x)) if x == types.float32 else (lambda x: np.exp2(x))


@inline
def exp2_32(x):
    shifted = x + np.float32(12582912.0)  # 1.5 * 2**23: the lowest bits are those of an integer
    f = x - (shifted - np.float32(12582912.0))
    series = np.float32(1.0) + f * EXP2(f)
    value = float_of_bits(np.int32(bits_of_float(series) + np.int32(bits_of_float(shifted) << 23)))
    return np.float32(0.0) if x < np.float32(-125.0) else value


def expm1(x):
    raise NotImplementedError


@overload(expm1)
def _(x):
    return (lambda x: expm1_32(x)) if x == types.float32 else (lambda x: math.expm1(x))


@inline
def expm1_32(x):
    """exp(x) - 1, accurate near zero, where half is 1/2 and r is x."""
    half, r, q = halves_of_exp(x)
    return np.float32(2.0) * (half * q + (half * r + (half - np.float32(0.5))))


def expm1_minus_x(x):
    raise NotImplementedError


@overload(expm1_minus_x)
def _(x):
    if x == types.float32:
        return lambda x: expm1_minus_x_32(x)
    return lambda x: expm1_minus_x_given(x, math.exp(x))


@inline
def expm1_minus_x_32(x):
    """exp(x) - 1 - x, accurate near zero, where it is q."""
    half, r, q = halves_of_exp(x)
    known = half * r + (half - np.float32(0.5))
    # inf - inf must be NaN here; a product with 2, contracted, would hide it.
    return (known + known) - x + np.float32(2.0) * (half * q)


def log(x):
    raise NotImplementedError


@overload(log)
def _(x):
    return (lambda x: log32(x)) if x == types.float32 else (lambda x: math.log(x))


@inline
def log_of_normal(x):
    """log x of a positive float32 that is neither subnormal nor infinite."""
    # x = 2**exponent (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2)
    bits = bits_of_float(x)
    exponent = np.int32(np.int32(bits - 0x3F3504F3) >> 23)
    f = float_of_bits(np.int32(bits - np.int32(exponent << 23))) - np.float32(1.0)
    square = f * f
    series = f * square * LOG(f) - np.float32(0.5) * square + f
    return series + np.float32(exponent) * np.float32(math.log(2))


@inline
def log32(x):
    subnormal = x < np.float32(2.0**-126)
    result = log_of_normal(x * np.float32(2.0**24) if subnormal else x)
    result = result - np.float32(24 * math.log(2)) if subnormal else result
    result = np.float32(-np.inf) if x == np.float32(0.0) else result
    # inf and NaN are returned as they are; a negative x gives NaN
    result = x if not x < np.float32(np.inf) else result
    return np.float32(np.nan) if x < np.float32(0.0) else result


def log1p_unit(x):
    """log(1 + x) for 0 <= x <= 1, accurate near zero."""
    raise NotImplementedError


@overload(log1p_unit)
def _(x):
    if x == types.float32:
        return lambda x: x + x * x * LOG1P(x)
    return lambda x: math.log1p(x)


def log1m_half(x):
    """log(1 - x) for 0 <= x <= 1/2, accurate near zero."""
    raise NotImplementedError


@overload(log1m_half)
def _(x):
    if x == types.float32:
        return lambda x: -x - x * x * LOG1M(x)
    return lambda x: math.log1p(-x)


@inline
def tanh(x):
    """tanh by expm1, which is accurate near zero, at -2 |x|, so that it stays finite."""
    real = type(x)
    lost = expm1(real(-2.0) * abs(x))
    value = -lost / (real(2.0) + lost)
    return value if x >= real(0.0) else -value


@inline
def finite_or_zero(greatest):
    """The number that is subtracted from logarithms before exp: 0 where all of them are -inf."""
    real = type(greatest)
    return greatest if greatest > real(-np.inf) else real(0.0)


@elementwise
def fill(values, value):
    for i in range(values.size):
        values[i] = value


@elementwise
def scale(values, factor):
    real = values.dtype.type
    for i in range(values.size):
        values[i] *= real(factor)


@elementwise
def exp_scaled(x, scale, result):
    """exp(scale x)."""
    real = result.dtype.type
    for i in range(result.size):
        result[i] = exp(real(scale) * x[i])


@elementwise
def to_prior(mu, logvar, std, prior_mu, prior_logvar, distance, logvar_ratio, ratio, root):
    real = ratio.dtype.type
    for i in range(ratio.size):
        inverse = exp(real(-0.5) * prior_logvar[i])
        distance[i] = (mu[i] - prior_mu[i]) * inverse
        logvar_ratio[i] = logvar[i] - prior_logvar[i]
        # exp(logvar_ratio / 2) would multiply the rounding error of that difference.
        ratio[i] = std[i] * inverse
        root[i] = inverse


@helper
def tile_in_units_of_prior(mu, logvar, prior_mu_ptr, prior_logvar_ptr, tile, scratch):
    """(std, distance of means, log of the ratio of variances, ratio of stds, 1 / prior std) of q.

    No prior is the standard one. The root of the precision, not the precision: its square may
    overflow where products with it do not.
    """
    size = mu.size
    std, root = scratch[0][:size], scratch[1][:size]
    exp_scaled(logvar, 0.5, std)
    if not present(prior_mu_ptr):
        fill(root, 1.0)
        return std, mu, logvar, std, root
    distance, logvar_ratio, ratio = scratch[2][:size], scratch[3][:size], scratch[4][:size]
    prior_mu = load(prior_mu_ptr, tile, scratch[5])
    prior_logvar = load(prior_logvar_ptr, tile, scratch[6])
    to_prior(mu, logvar, std, prior_mu, prior_logvar, distance, logvar_ratio, ratio, root)
    return std, distance, logvar_ratio, ratio, root
