"""The host side that every launcher shares: 2-D views, tile choice, the launch itself."""

from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..rows import accumulator, samples_in

INTERPRET = triton.knobs.runtime.interpret
# Inline PTX: not on AMD, and not in the interpreter.
PTX = torch.version.hip is None and not INTERPRET

NUM_WARPS = 4
MOST_SAMPLES = 65_535  # a limit of the grid's second dimension
MAX_BLOCK_COLS = 1024
UNALIGNED = 1024  # the most elements of a tile whose rows do not start at multiples of 16 bytes


class Tiling(NamedTuple):
    """How a [rows, cols] problem is cut: one program per tile, straight-line code."""

    rows: int
    cols: int
    acc: torch.dtype  # of sums
    block_rows: int
    block_cols: int
    col_tiles: int
    programs: int
    vector: int


def divide_up(a, b):
    return -(-a // b)


def power_of_two(n):
    """The least power of two that is no less than n."""
    return 1 << (n - 1).bit_length()


def tile_shape(rows, cols, dtype):
    """(block_rows, block_cols): up to 1024 columns per tile, and several rows where they are short.

    A thread has 16 elements where there is enough work to fill a GPU (132 SMs x 8 programs): they
    share the address and reduction code of their tile. It has 8 otherwise, and in float64, whose
    elements take two registers.
    """
    block_cols = min(max(power_of_two(cols), 4), MAX_BLOCK_COLS)
    elements = 2048 if rows * cols >= 2**21 and dtype != torch.float64 else 1024
    return max(1, elements // block_cols), block_cols


def vector_width(cols, tensors):
    """Elements in 16 bytes if every row of every tensor starts on such a boundary, else 1.

    Kernels take column counts and strides in this unit and multiply it back. Triton infers the
    alignment of an integer argument only if it is a multiple of 16; this way it vectorises rows of
    8 floats too.
    """
    width = max(16 // t.element_size() for t in tensors)
    fits = cols % width == 0 and all(t.stride(0) % width == 0 for t in tensors)
    return width if fits else 1


def tiling_of(rows, cols, *tensors, samples=1, largest=None):
    """The tiling for operands that are [rows, cols], [samples * rows, cols] or None.

    No tile crosses from one sample to the next. ``largest`` bounds its elements.
    """
    present = [t for t in tensors if t is not None]
    acc = accumulator(*present)
    vector = vector_width(cols, present)
    if vector == 1:  # an address per element: those of a larger tile do not fit into registers
        largest = min(largest or UNALIGNED, UNALIGNED)
    block_rows, block_cols = tile_shape(samples * rows, cols, acc)
    if largest is not None:
        block_rows = max(1, min(block_rows, largest // block_cols))
    if samples > 1:
        block_rows = min(block_rows, power_of_two(rows))
    col_tiles = divide_up(cols, block_cols)
    programs = divide_up(rows, block_rows) * col_tiles
    return Tiling(rows, cols, acc, block_rows, block_cols, col_tiles, programs, vector)


def most_elements(*tensors):
    """The most elements of a tile of counts: in float64 a thread has no registers for eight."""
    return 512 if accumulator(*tensors) == torch.float64 else None


def in_stages(stages, shape, dtype, device):
    """Empty partial sums [stages, *shape]; for one stage the sums themselves, of this shape."""
    return torch.empty((stages, *shape) if stages > 1 else shape, dtype=dtype, device=device)


def sum_stages(partial, stages):
    """The sums of the partial sums in ``in_stages``: a new tensor, no view."""
    return partial.sum(0) if stages > 1 else partial


def partial_sums(tensor, tiling, values, samples=1):
    """Where a kernel writes sums: for "rows" a stage per tile of a row, for "total" [programs]."""
    if values == "rows":
        return in_stages(tiling.col_tiles, tensor.shape[:1], tiling.acc, tensor.device)
    if values == "total":
        return torch.empty(tiling.programs * samples, dtype=tiling.acc, device=tensor.device)
    return None


def samples_of(recon, x):
    """(samples, x): how many samples ``recon`` [samples * rows, cols] has for x [rows, cols].

    A single row of x comes back expanded to the rows of recon, and counts as one sample.
    """
    if x.shape[0] == 1:
        return 1, x.expand(recon.shape[: x.dim()])
    samples = samples_in(recon, x)
    if samples > MOST_SAMPLES:
        raise ValueError(
            f"the kernels take at most {MOST_SAMPLES} samples a call, got {samples}: "
            "take them in chunks"
        )
    return samples, x


def empty_samples(x, recon, acc, wanted):
    """Where a kernel writes the gradient of ``x`` for each sample: in ``acc``, to be summed."""
    if not wanted:
        return None
    return recon.new_empty(recon.shape, dtype=x.dtype if x.shape == recon.shape else acc)


def sum_samples(gradient, x):
    """The gradient of ``x`` [rows, cols], summed over the samples."""
    if gradient is None or gradient.shape == x.shape:
        return gradient
    return gradient.view(-1, *x.shape).sum(0).to(x.dtype)


def stride_of(tensor, vector=1):
    """The row stride that a kernel takes; 0 for an operand that is not there."""
    return 0 if tensor is None else tensor.stride(0) // vector


def triton_dtype(acc):
    return tl.float64 if acc == torch.float64 else tl.float32


def launch_tiles(kernel, tiling, pointers, full, scalars=(), *, programs=1, **constexprs):
    """Run a kernel over the tiles of its operands.

    The kernel's arguments are ``pointers``, the row strides of the full-size operands ``full``,
    ``scalars``, rows, columns and tiles per row; then ``constexprs`` and those that every kernel
    has. Strides and columns are counted in vectors. ``programs`` is the grid's second dimension.
    """
    if not tiling.rows:
        return
    strides = [stride_of(t, tiling.vector) for t in full]
    sizes = tiling.rows, tiling.cols // tiling.vector, tiling.col_tiles
    constexprs |= {
        "VEC": tiling.vector,
        "BLOCK_ROWS": tiling.block_rows,
        "BLOCK_COLS": tiling.block_cols,
        "ACC": triton_dtype(tiling.acc),
        "PTX": PTX,
    }
    grid = tiling.programs, programs
    launch(kernel, grid, [*pointers, *strides, *scalars, *sizes], constexprs)


_recorded: list | None = None


@contextmanager
def recording():
    """Record launches, [(kernel, grid, arguments, constexprs), ...], instead of running them."""
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def launch(kernel, grid, arguments, constexprs):
    """Run a kernel on a grid, on the device that its tensors are on."""
    if _recorded is not None:
        _recorded.append((kernel, grid, arguments, constexprs))
        return
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    # Triton launches on the current device, which need not be that of the tensors.
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        kernel[grid](*arguments, **constexprs, num_warps=NUM_WARPS)
