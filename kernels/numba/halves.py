"""float16 and bfloat16 as the 16 bits that lie in memory: numba has neither type."""

import numpy as np
from numba.extending import overload

from .compiler import bits_of_float, float_of_bits, inline


@inline
def float_of_half(half):
    """A float16's 16 bits, without the instruction that processors before 2012 lack."""
    bits = np.int32(half)
    magnitude = np.int32((bits & 0x7FFF) << 13)
    if (bits & 0x7C00) == 0x7C00:  # infinite or NaN
        value = float_of_bits(np.int32(magnitude | 0x7F800000))
    else:  # exact, of subnormal numbers too
        value = float_of_bits(magnitude) * np.float32(2.0**112)
    return -value if bits & 0x8000 else value


@inline
def half_of_float(value):
    """The 16 bits of a float32 rounded to float16, to nearest even."""
    bits = bits_of_float(value)
    magnitude = np.int32(bits & 0x7FFFFFFF)
    if magnitude >= 0x47800000:  # from 2**16 on, infinite or NaN
        half = np.int32(0x7E00 if magnitude > 0x7F800000 else 0x7C00)
    elif magnitude < 0x38800000:  # a subnormal float16: adding 1/2 rounds to its last bit
        half = np.int32(bits_of_float(float_of_bits(magnitude) + np.float32(0.5)) - 0x3F000000)
    else:
        odd = np.int32(magnitude >> 13 & 1)
        half = np.int32(np.int32(magnitude - 0x38000000 + 0xFFF + odd) >> 13)
    return np.int16(half | (bits >> 16 & 0x8000))


def widen(value):
    raise NotImplementedError


@overload(widen)
def _(value):
    """A number from what lies in memory: a float16 from int16, a bfloat16 from uint16."""
    if value.bitwidth != 16:
        return lambda value: value
    if value.signed:
        return lambda value: float_of_half(value)
    return lambda value: float_of_bits(value << 16)


@inline
def bfloat_of_float(value):
    """The 16 bits of a float32 rounded to bfloat16, to nearest even; NaN stays NaN."""
    bits = bits_of_float(value)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.uint16(rounded if value == value else 0x7FC0)
