"""Row sums: of terms as they are computed, or of a buffer.

Sums are pairwise in effect, in 16 to 64 lanes over a tile and in float64 from tile to tile, and so
as accurate as torch's. Threads share a row that is longer than a tile: each writes what its tiles
add up to, and the last one adds that up in the order of the tiles.
"""

import numpy as np
from numba import carray

from .compiler import (
    INTERNAL,
    LANES,
    Restrict,
    elementwise,
    fetch_add,
    helper,
    inline,
    jit,
    pointer,
)
from .memory import QUEUE

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


@inline
def pieces_of_sums(queue, first=0):
    """(tiles of a long row, counts, sums): what the queue has of long rows, from ``first`` on.

    Each row has a count of the tiles that are summed, and behind it the sum of each. Counts and
    sums are the same memory, as integers and as floats.
    """
    start = QUEUE + first * (queue[QUEUE - 1] + 1)
    address, size = queue.ctypes.data + 8 * start, queue.size - start
    floats = carray(pointer(address), size, np.float64)
    return queue[QUEUE - 1], carray(pointer(address), size, np.int64), floats


@helper
def add_piece(total, tile, cols, factor, pieces, sums):
    """Put the sum of a tile of a long row aside; whoever brings the last adds them all up."""
    row, _, col, width = tile
    number, counts, totals = pieces
    start = row * (number + 1)
    if start + number >= counts.size:  # the launcher made no room
        sums[row] = np.nan
        return
    totals[start + 1 + (number - 1 if col + width == cols else col // width)] = total
    if fetch_add(counts, start, 1) == number - 1:
        whole = 0.0
        for i in range(start + 1, start + 1 + number):
            whole += totals[i]
        sums[row] = sums.dtype.type(factor * whole)


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
def add_rows(values, tile, cols, factor, pieces, operand):
    """Write ``factor`` times the sum of each row of ``values`` to an output [rows].

    ``pieces`` has what the tiles of long rows add up to.
    """
    row, count, _, width = tile
    sums = sums_of(operand, tile, values)
    if width == cols < LANES:
        sum_short_rows(values, count, width, factor, sums[row:])
        return
    for line in range(count):
        total = np.float64(lane_sum(values[line * width : (line + 1) * width]))
        if width == cols:
            sums[row + line] = values.dtype.type(factor * total)
        else:
            add_piece(total, tile, cols, factor, pieces, sums)


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
    def add_terms(tensors, tile, cols, factor, pieces, operand, buffer):
        row, count, _, width = tile
        if not whole_registers(width, buffer):
            terms = buffer[: count * width]
            write_terms(tensors, terms)
            add_rows(terms, tile, cols, factor, pieces, operand)
            return
        sums = sums_of(operand, tile, buffer)
        for line in range(count):
            total = np.float64(sum_terms(tensors, line * width, width))
            if width == cols:
                sums[row + line] = buffer.dtype.type(factor * total)
            else:
                add_piece(total, tile, cols, factor, pieces, sums)

    return add_terms
