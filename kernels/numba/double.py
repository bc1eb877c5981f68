"""Elementary functions in float64 by polynomials: a call to libm would keep a loop scalar.

``device`` has those in float32, by the same steps.
"""

import math

import numpy as np

from .compiler import bits_of_double, double_of_bits, inline, polynomial

# exp r = 1 + r + r^2 EXP(r) for |r| <= log(2) / 2, with relative error 2e-18
EXP = polynomial(
    0.5, 0.1666666666666667099, 0.04166666666666666975, 0.008333333333326135126,
    0.00138888888888837483, 0.0001984126987482062527, 0.00002480158732554774122,
    2.755725540020642443e-6, 2.755727364311029533e-7, 2.510521700472074516e-8,
    2.091468696808687723e-9,
)  # fmt: skip
# atanh s = s + s^3 ATANH(s^2) for |s| <= 1/3, with relative error 2e-18
ATANH = polynomial(
    0.3333333333333333344, 0.1999999999999976125, 0.1428571428580004965, 0.1111111109911838528,
    0.09090909948981357191, 0.07692271982430274643, 0.06667589315724627918, 0.0586713953065159873,
    0.05422589197440007411, 0.0374607189777538365, 0.07815288900461425223,
)  # fmt: skip
ROUNDER = 1.5 * 2.0**52  # adding it rounds to an integer, which the lowest bits hold
ROUNDER_BITS = 0x4338000000000000
# log 2 in two parts: products of the first with an exponent are exact
LOG_2_HIGH, LOG_2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


@inline
def power_of_two(n):
    return double_of_bits((n + 1023) << 52)


@inline
def reduced(x):
    """(n in the lowest bits of a float, r) with x = n log 2 + r."""
    shifted = x * math.log2(math.e) + ROUNDER
    n = shifted - ROUNDER
    return shifted, (x - n * LOG_2_HIGH) - n * LOG_2_LOW


@inline
def exp(x):
    """The power of two is multiplied in two halves, for results that are subnormal."""
    x = 710.0 if x > 710.0 else x
    x = -746.0 if x < -746.0 else x
    shifted, r = reduced(x)
    exponent = bits_of_double(shifted) - ROUNDER_BITS
    half = exponent >> 1
    return (1.0 + (r + r * r * EXP(r))) * power_of_two(half) * power_of_two(exponent - half)


@inline
def exp2(x):
    """2**x for x < 1023, and 0 for x < -1021."""
    shifted = x + ROUNDER
    r = (x - (shifted - ROUNDER)) * math.log(2)
    value = (1.0 + (r + r * r * EXP(r))) * power_of_two(bits_of_double(shifted) - ROUNDER_BITS)
    return 0.0 if x < -1021.0 else value


@inline
def halves_of_exp(x):
    """(half, r, q) with exp(x) = 2 half (1 + r + q), half a power of two, r + q small."""
    x = 710.0 if x > 710.0 else x
    x = -708.0 if x < -708.0 else x
    shifted, r = reduced(x)
    return power_of_two(bits_of_double(shifted) - ROUNDER_BITS - 1), r, r * r * EXP(r)


@inline
def exp_normal(x):
    half, r, q = halves_of_exp(x)
    return 2.0 * (half * q + (half * r + half))


@inline
def expm1(x):
    half, r, q = halves_of_exp(x)
    return 2.0 * (half * q + (half * r + (half - 0.5)))


@inline
def expm1_minus_x(x):
    half, r, q = halves_of_exp(x)
    known = half * r + (half - 0.5)
    return (known + known) - x + 2.0 * (half * q)


@inline
def log1p(x):
    """log(1 + x) for -1/2 <= x <= 1, accurate near zero: 2 atanh s, less the rounding of s."""
    s = x / (2.0 + x)
    square, half = s * s, 0.5 * x * x
    return x - (half - s * (half + 2.0 * square * ATANH(square)))


@inline
def log(x):
    # x = 2**exponent (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2)
    subnormal = x < 2.0**-1022
    bits = bits_of_double(x * 2.0**54 if subnormal else x)
    exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
    f = double_of_bits(bits - (exponent << 52)) - 1.0
    number = double_of_bits(exponent + ROUNDER_BITS) - ROUNDER
    number = number - 54.0 if subnormal else number
    result = number * LOG_2_HIGH + (log1p(f) + number * LOG_2_LOW)
    result = -np.inf if x == 0.0 else result
    # inf and NaN come out as they are, and NaN for what is negative
    result = x if not x < np.inf else result
    return np.nan if x < 0.0 else result
