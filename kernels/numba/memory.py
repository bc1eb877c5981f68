"""How kernels reach the tensors: tiles of one or two thousand elements, as flat arrays.

A tile is as many whole rows as fit, or a piece of one long row. ``load`` returns it in the dtype of
sums. Where the tensor has that dtype and no gaps, the tile is used in place. Otherwise it is
converted into a buffer that stays in the cache. Dtypes, strides and absent tensors thus concern
this file alone, and a kernel is compiled once for float32 and once for float64.
"""

import numpy as np
import torch
from numba import carray

from .compiler import (
    LANES,
    copy_four,
    fetch_add,
    helper,
    inline,
    pointer,
    store_lanes,
    unowned,
)
from .halves import bfloat_of_float, half_of_float, widen

TILE = 2048  # elements per tile
SHORT = 64  # columns from which LLVM's own loop over a row is as fast as four columns at once
BUFFERS = 18  # buffers of a tile's size that a kernel works in; three more are for noise
SCRATCH = (BUFFERS + 3, TILE + LANES)
QUEUE = 4  # numbers of a queue, before the sums of long rows
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = range(4)
ABSENT = (0, 0, 0, FLOAT32)
NO_STRIDES = (0, 0)

CODES = {
    torch.float32: FLOAT32,
    torch.float64: FLOAT64,
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
}


def operand(tensor):
    """(address, row stride, column stride, dtype) of a tensor, or of None.

    Kernels call the operand of a tensor x ``x_ptr``, and a bare address ``x_address``. In a tensor
    [rows] all columns of a row share one number, and in a scalar all elements do. An address keeps
    no tensor alive: the caller must.
    """
    if tensor is None:
        return ABSENT
    stride = tensor.stride() + NO_STRIDES
    return tensor.data_ptr(), stride[0], stride[1], CODES[tensor.dtype]


def operands(first, second):
    """Operands of two tensors, or of the first one's two halves if the second is None."""
    if first is None or second is not None:
        return operand(first), operand(second)
    # Slices of the tensor would take longer on the host.
    address, row_stride, col_stride, code = operand(first)
    there = address + first.shape[1] // 2 * col_stride * first.element_size()
    return (address, row_stride, col_stride, code), (there, row_stride, col_stride, code)


def as_row(tensor):
    """The operand [1, size] of a tensor [size], without making a view."""
    address, stride, _, dtype = operand(tensor)
    return address, 0, stride, dtype


@inline
def workspace(scratch, queue):
    """This thread's buffers, as an array without an owner.

    The references of an owner are counted at every slice, which takes a third of a cheap kernel's
    time.
    """
    return unowned(scratch[fetch_add(queue, 2, 1)])


@inline
def sample_of(tile, sample, rows):
    """The same tile of another sample, in operands [samples * rows, cols]."""
    row, count, col, width = tile
    return row + sample * rows, count, col, width


@helper
def present(operand):
    return operand[0] != 0


@inline
def rows_of_tile(cols, size=TILE):
    """How many rows a tile has at most."""
    return max(1, size // cols)


@helper
def tiles_of(lo, hi, cols, size=TILE):
    """(row, count, col, width) of each tile of the rows [lo, hi)."""
    most = rows_of_tile(cols, size)
    for row in range(lo, hi, most):
        for col in range(0, cols, size):
            yield row, min(most, hi - row), col, min(size, cols - col)


@helper
def tiles(queue, step, rows, cols, size=TILE):
    """The tiles of this thread, which takes ``step`` parts at a time until the queue is empty.

    A part is a row, or one tile of a row that is longer than a tile. ``queue`` is [parts that are
    taken, parts that are done, threads, tiles of a long row], the first three 0 at first; behind
    them is what ``pieces_of_sums`` finds.
    """
    pieces, most = (cols + size - 1) // size, rows_of_tile(cols, size)
    parts = rows * pieces
    while True:
        lo = fetch_add(queue, 0, step)
        if lo >= parts:
            break
        hi = min(lo + step, parts)
        for part in range(lo, hi, most):
            col = part % pieces * size
            yield part // pieces, min(most, hi - part), col, min(size, cols - col)
        fetch_add(queue, 1, hi - lo)


@helper
def start_of(operand, tile):
    """Where a tile begins, in elements."""
    _, row_stride, col_stride, _ = operand
    row, _, col, _ = tile
    return row * row_stride + col * col_stride


@inline
def is_own(code, buffer):
    """Whether a tensor has the dtype of the buffers, so that it need not be converted."""
    return code == (FLOAT32 if buffer.itemsize == 4 else FLOAT64)


@helper
def broadcast_rows(source, tile, stride, buffer):
    """Fill rows with one number each, sixteen columns at a time.

    It may write past the end of a row; the next row overwrites that.
    """
    real = buffer.dtype.type
    _, count, _, width = tile
    for line in range(count):
        value = real(widen(source[line * stride]))
        for start in range(line * width, (line + 1) * width, LANES):
            store_lanes(buffer, start, value)


@helper
def gather(source, tile, row_stride, col_stride, buffer):
    real = buffer.dtype.type
    _, count, _, width = tile
    for line in range(count):
        values = source[line * row_stride : line * row_stride + (width - 1) * col_stride + 1]
        out = buffer[line * width : (line + 1) * width]
        if col_stride == 1:
            for i in range(width):
                out[i] = real(widen(values[i]))
        else:
            for i in range(width):
                out[i] = real(widen(values[i * col_stride]))


@helper
def copy_short_rows(source, source_stride, result, result_stride, count, width):
    """Copy rows four columns at a time.

    It may write past the end of a row; the next row overwrites that.
    """
    for line in range(count):
        for col in range(0, width, 4):
            copy_four(source, line * source_stride + col, result, line * result_stride + col)


@helper
def gather_short_rows(source, tile, row_stride, buffer):
    """Gather rows of the buffer's dtype. Nothing is read past the end of the last row."""
    _, count, _, width = tile
    copy_short_rows(source, row_stride, buffer, width, count - 1, width)
    for i in range(width):
        buffer[(count - 1) * width + i] = source[(count - 1) * row_stride + i]


@helper
def copy(source, tile, row_stride, col_stride, buffer):
    if col_stride == 0:
        broadcast_rows(source, tile, row_stride, buffer)
    else:
        gather(source, tile, row_stride, col_stride, buffer)


@helper
def in_place(address, start, size, buffer):
    """A tile in its place in memory."""
    return carray(pointer(address + buffer.itemsize * start), size, buffer.dtype)


@inline
def in_line(operand, tile):
    """Whether the elements of a tile lie one after another."""
    _, row_stride, col_stride, _ = operand
    _, count, _, width = tile
    return (col_stride == 1 or width == 1) and (row_stride == width or count == 1)


@helper
def load(operand, tile, buffer):
    """A tile: in its place if it can be used there, else a copy in the buffer."""
    address, row_stride, col_stride, code = operand
    _, count, _, width = tile
    start = start_of(operand, tile)
    if in_line(operand, tile) and is_own(code, buffer):
        return in_place(address, start, count * width, buffer)
    extent = (count - 1) * row_stride + (width - 1) * col_stride + 1
    short = width < SHORT and (width + 3) // 4 * 4 <= row_stride
    if short and col_stride == 1 and is_own(code, buffer):
        gather_short_rows(in_place(address, start, extent, buffer), tile, row_stride, buffer)
    elif code == FLOAT32:
        single = carray(pointer(address + 4 * start), extent, np.float32)
        copy(single, tile, row_stride, col_stride, buffer)
    elif code == FLOAT64:
        double = carray(pointer(address + 8 * start), extent, np.float64)
        copy(double, tile, row_stride, col_stride, buffer)
    elif code == FLOAT16:
        half = carray(pointer(address + 2 * start), extent, np.int16)
        copy(half, tile, row_stride, col_stride, buffer)
    else:
        brain = carray(pointer(address + 2 * start), extent, np.uint16)
        copy(brain, tile, row_stride, col_stride, buffer)
    return buffer[: count * width]


@helper
def target(operand, tile, buffer):
    """Where a tile of an output is to be written: in its place, or in the buffer for ``store``."""
    address, _, _, code = operand
    _, count, _, width = tile
    if present(operand) and is_own(code, buffer) and in_line(operand, tile):
        return in_place(address, start_of(operand, tile), count * width, buffer)
    return buffer[: count * width]


@helper
def store(operand, tile, values):
    """Write an output that ``target`` put into a buffer; nothing for an absent output.

    Of an output that is a part of the columns of another, as a half of them, row by row.
    """
    if not present(operand):
        return
    if in_line(operand, tile):
        if not is_own(operand[3], values):
            store_in_line(operand, tile, values)
        return
    row, count, col, width = tile
    if is_own(operand[3], values):
        scatter(operand, tile, values)
        return
    for line in range(count):
        part = values[line * width : (line + 1) * width]
        store_in_line(operand, (row + line, 1, col, width), part)


@helper
def scatter(operand, tile, values):
    address, row_stride, _, _ = operand
    _, count, _, width = tile
    first = address + values.itemsize * start_of(operand, tile)
    out = carray(pointer(first), (count - 1) * row_stride + width, values.dtype)
    if width < SHORT and width % 4 == 0:
        copy_short_rows(values, width, out, row_stride, count, width)
        return
    for line in range(count):
        for i in range(width):
            out[line * row_stride + i] = values[line * width + i]


@helper
def store_in_line(operand, tile, values):
    address, _, _, code = operand
    start = start_of(operand, tile)
    if code == BFLOAT16:
        brain = carray(pointer(address + 2 * start), values.size, np.uint16)
        for i in range(values.size):
            brain[i] = bfloat_of_float(np.float32(values[i]))
    elif code == FLOAT16:
        half = carray(pointer(address + 2 * start), values.size, np.int16)
        for i in range(values.size):
            half[i] = half_of_float(np.float32(values[i]))
    else:
        single = carray(pointer(address + 4 * start), values.size, np.float32)
        for i in range(values.size):
            single[i] = np.float32(values[i])
