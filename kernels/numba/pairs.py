"""Shared by mixtures, marginals and the KL in three terms, which compare rows with components.

Log densities may be to base 2, where an exponential takes a third less: see ``to_base_two``.
"""

import math

import numpy as np

from .compiler import LANES, elementwise, helper, inline
from .device import exp, fill, log
from .memory import load

DEEP = 8  # latents of a partial sum: one sum of 64 would round twice as much
STRETCH = 256  # components, or rows, of a partial sum, which then rounds as torch's sums do
LOG2_E = math.log2(math.e)
# Distances in standard deviations are scaled by it, so that their squares are logarithms to base 2.
SCALE = math.sqrt(0.5 * LOG2_E)


@inline
def log_density(z, mu, inverse, constant):
    distance = (z - mu) * inverse
    return constant - distance * distance


@elementwise
def to_base_two(logvar, inverse, constant):
    """(1 / std, the constant of a log density), in these units."""
    real = logvar.dtype.type
    for i in range(logvar.size):
        inverse[i] = exp(real(-0.5) * logvar[i]) * real(SCALE)
        constant[i] = real(-0.5 * LOG2_E) * logvar[i]


@elementwise
def conclude(greatest, total):
    real = total.dtype.type
    for i in range(total.size):
        total[i] = greatest[i] + log(total[i]) * real(LOG2_E)


@elementwise
def put_aside(partial, result):
    """result += partial, and partial = 0."""
    real = partial.dtype.type
    for i in range(result.size):
        result[i] += partial[i]
        partial[i] = real(0.0)


@helper
def zeros(size, like):
    values = np.empty(size, like.dtype)
    fill(values, 0.0)
    return values


@helper
def buffer_of(size, like):
    """A buffer with room for what ``load`` may write past its end."""
    return np.empty(size + LANES, like.dtype)


@helper
def lines_of(operand, start, stop, cols, size, buffer, value):
    """Rows [start, stop) as [size, cols]; missing rows are filled with ``value``."""
    filled, whole = (stop - start) * cols, size * cols
    found = load(operand, (start, stop - start, 0, cols), buffer)
    if filled == whole:
        return found
    for i in range(filled):
        buffer[i] = found[i]
    for i in range(filled, whole):
        buffer[i] = value
    return buffer[:whole]


@helper
def columns_of(operand, start, stop, cols, size, buffer, value, block):
    """Rows [start, stop) as [cols, size]; missing rows are filled with ``value``."""
    lines = lines_of(operand, start, stop, cols, size, buffer, value)
    for d in range(cols):
        for i in range(size):
            block[d * size + i] = lines[i * cols + d]
    return block[: cols * size]


@inline
def whole_blocks(size, of):
    return (size + of - 1) // of * of
