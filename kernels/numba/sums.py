"""Row sums: of terms as they are computed, or of a buffer.

Sums are pairwise in effect, in 16 to 64 lanes over a tile and in float64 from tile to tile, and so
as accurate as torch's. A row is summed by one thread, in one order.
"""

import numpy as np
from numba import carray

from .compiler import INTERNAL, LANES, Restrict, elementwise, helper, inline, jit, pointer

REASSOCIATED = INTERNAL | {"fastmath": {"contract", "reassoc"}}


@jit(**REASSOCIATED)
def lane_sum(values):
    """The sum of an array of a tile's size or less."""
    total = values.dtype.type(0.0)
    for i in range(values.size):
        total += values[i]
    return total


@inline
def sums_of(operand, tile, buffer):
    """The part of the output [rows] that belongs to the tile, in the buffers' dtype."""
    row, count, _, _ = tile
    return carray(pointer(operand[0]), row + count, buffer.dtype)


@helper
def sum_short_rows(values, count, width, factor, sums):
    """Rows shorter than a register: a plain loop, which is faster than ``lane_sum`` there."""
    real = values.dtype.type
    for line in range(count):
        total = real(0.0)
        for i in range(width):
            total += values[line * width + i]
        sums[line] = real(factor) * total


@helper
def add_rows(values, tile, cols, factor, partial, operand):
    """Write ``factor`` times the sum of each row of ``values`` to an output [rows].

    ``partial`` has what the tiles of a long row add up to.
    """
    row, count, col, width = tile
    sums = sums_of(operand, tile, values)
    if width == cols < LANES:
        sum_short_rows(values, count, width, factor, sums[row:])
        return
    for line in range(count):
        total = np.float64(lane_sum(values[line * width : (line + 1) * width]))
        partial[line] = total if col == 0 else partial[line] + total
        if col + width == cols:
            sums[row + line] = values.dtype.type(factor * partial[line])


@inline
def whole_registers(width, buffer):
    """Whether rows are long enough, and few of their columns left over, to be summed one by one."""
    long_enough = width >= 512 or (width >= 64 and width % LANES == 0)
    return buffer.itemsize == 4 and long_enough


def row_sums(term):
    """Like ``add_rows``, for ``term(tensors, i)``: a function of a tuple of tensors and an index.

    From 64 columns on the terms of a row are summed in registers, which is faster than through the
    buffer. The buffer is for short rows, for rows whose last columns fill no register and would be
    computed one by one, and for float64, whose loops call libm and would sum in one lane.
    """
    term = inline(term)

    @elementwise
    def write_terms(tensors, result):
        for i in range(result.size):
            result[i] = term(tensors, i)

    @jit(pipeline_class=Restrict, **REASSOCIATED)
    def sum_terms(tensors, first, count):
        total = tensors[0].dtype.type(0.0)
        for i in range(count):  # unsigned: LLVM packs no loop whose index may be negative
            total += term(tensors, np.uint64(first) + np.uint64(i))
        return total

    @helper
    def add_terms(tensors, tile, cols, factor, partial, operand, buffer):
        row, count, col, width = tile
        if not whole_registers(width, buffer):
            terms = buffer[: count * width]
            write_terms(tensors, terms)
            add_rows(terms, tile, cols, factor, partial, operand)
            return
        sums = sums_of(operand, tile, buffer)
        for line in range(count):
            total = np.float64(sum_terms(tensors, line * width, width))
            partial[line] = total if col == 0 else partial[line] + total
            if col + width == cols:
                sums[row + line] = buffer.dtype.type(factor * partial[line])

    return add_terms
