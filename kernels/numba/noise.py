"""The noise stream: Philox4x32-10 and Box-Muller, four normals per call.

The counter is the logical position (column // 4, row, sample) and the key a 64-bit seed, as in
the Triton kernels and in ``fused_elbo.estimators.noise``: the same seed gives the same normals,
to the rounding of log and sin. See docs/kernels.md for times.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math

import numpy as np
from numba import carray

from .compiler import (
    bits_of_float,
    elementwise,
    float_of_bits,
    helper,
    inline,
    pointer,
    polynomial,
)
from .device import log_of_normal
from .memory import BUFFERS, copy_short_rows

NOISE_BLOCK = 1024  # elements of a tile where noise is drawn: its buffers fit into L1
CALLS = NOISE_BLOCK // 4  # of Philox
HALF_TURN = np.float32(math.pi * 2.0**-31)
# sin r = r + r^3 SIN(r^2) and cos r = 1 + r^2 COS(r^2) for |r| <= pi / 4, to 4e-9 and 3e-8.
SIN = polynomial(-0.16666655242443085, 0.008332177996635437, -0.00019517267355695367)
COS = polynomial(-0.49999895691871643, 0.04165629297494888, -0.0013597793877124786)


@inline
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds on uint32; numba makes 64 bits of whatever it adds or multiplies."""
    for _ in range(10):
        product0 = np.uint64(c0) * np.uint64(0xD2511F53)
        product1 = np.uint64(c2) * np.uint64(0xCD9E8D57)
        c0 = np.uint32(np.uint32(product1 >> np.uint64(32)) ^ c1 ^ k0)
        c2 = np.uint32(np.uint32(product0 >> np.uint64(32)) ^ c3 ^ k1)
        c1, c3 = np.uint32(product1), np.uint32(product0)
        k0, k1 = np.uint32(k0 + 0x9E3779B9), np.uint32(k1 + 0xBB67AE85)
    return c0, c1, c2, c3


@elementwise
def draw_words(seed, sample, row, count, group, groups, a, b, c, d):
    """The words of ``count`` rows of ``groups`` calls each, one row after another."""
    # call // groups = call * reciprocal >> 20 for call < 256; a division would be scalar.
    reciprocal, width = np.int32((2**20 + groups - 1) // groups), np.int32(groups)
    low, high, first = np.uint32(row), np.uint32(row >> 32), np.uint32(group)
    key0, key1 = np.uint32(seed), np.uint32(seed >> 32)
    for i in range(count * groups):
        call = np.int32(i)
        line = np.int32(np.int32(call * reciprocal) >> 20)
        c0 = np.uint32(first + np.int32(call - np.int32(line * width)))
        c1 = np.uint32(low + line)
        c2 = np.uint32(high + 1) if c1 < low else high
        a[i], b[i], c[i], d[i] = philox(c0, c1, c2, np.uint32(sample), key0, key1)


@inline
def radius(word):
    """sqrt(-2 log u), u = (word + 1) / 2**32 > 0."""
    u = np.float32(word) * np.float32(2.0**-32) + np.float32(2.0**-32)
    return np.sqrt(np.float32(-2.0) * log_of_normal(u))


@inline
def cos_sin(word):
    """cos and sin of pi word / 2**31, word read as signed: an octant's polynomial, turned."""
    angle = np.int32(word)
    quadrant = np.int32(np.int32(angle + (1 << 29)) >> 30)
    r = np.float32(np.int32(angle - np.int32(quadrant << 30))) * HALF_TURN
    square = r * r
    sine = r + r * square * SIN(square)
    cosine = np.float32(1.0) + square * COS(square)
    odd = (quadrant & 1) != 0
    cosine, sine = (sine if odd else cosine), (cosine if odd else sine)
    # The quadrant's second lowest bit is the sign.
    cosine = float_of_bits(bits_of_float(cosine) ^ (np.int32(quadrant + 1) >> 1 << 31))
    sine = float_of_bits(bits_of_float(sine) ^ (quadrant >> 1 << 31))
    return cosine, sine


@elementwise
def box_muller(calls, a, b, c, d, normals):
    for i in range(calls):
        radius0, radius1 = radius(a[i]), radius(c[i])
        cosine0, sine0 = cos_sin(b[i])
        cosine1, sine1 = cos_sin(d[i])
        normals[4 * i] = radius0 * cosine0
        normals[4 * i + 1] = radius0 * sine0
        normals[4 * i + 2] = radius1 * cosine1
        normals[4 * i + 3] = radius1 * sine1


@elementwise
def first_of_four(calls, a, b, normals):
    """For rows of one column: the first normal of each call, whose other three are not used."""
    for i in range(calls):
        cosine, _ = cos_sin(b[i])
        normals[i] = radius(a[i]) * cosine


@inline
def noise_buffers(scratch):
    """The buffers in which ``draw`` works: the last rows of the scratch.

    They hold the four words of each call, and normals with and without the padding of their rows.
    """
    words = carray(pointer(scratch[BUFFERS].ctypes.data), (4, CALLS), np.uint32)
    padded = carray(pointer(scratch[BUFFERS + 1].ctypes.data), NOISE_BLOCK, np.float32)
    normals = carray(pointer(scratch[BUFFERS + 2].ctypes.data), NOISE_BLOCK, np.float32)
    return words, padded, normals


@helper
def draw(seed, sample, tile, buffers):
    """The float32 normals of a tile, as a flat array; a row is drawn four columns at a time."""
    row, count, col, width = tile
    words, padded, normals = buffers
    a, b, c, d = words[0], words[1], words[2], words[3]
    groups = (width + 3) // 4
    if width % 4 == 0:
        draw_words(seed, sample, row, count, col // 4, groups, a, b, c, d)
        box_muller(count * groups, a, b, c, d, padded)
        return padded[: count * width]
    most = CALLS // groups  # rows, padded, that the buffers hold
    for first in range(0, count, most):
        lines = min(most, count - first)
        draw_words(seed, sample, row + first, lines, col // 4, groups, a, b, c, d)
        if width == 1:
            first_of_four(lines, a, b, normals[first:])
            continue
        box_muller(lines * groups, a, b, c, d, padded)
        copy_short_rows(padded, 4 * groups, normals[first * width :], width, lines, width)
    return normals[: count * width]
