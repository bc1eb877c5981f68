"""The host side that every launcher shares: compiling, and threads."""

import ctypes
import gc
import os
import threading

import numpy as np
import torch

from ..rows import PROCESS, samples_in
from .memory import QUEUE, SCRATCH, TILE, rows_of_tile

# From so many nanoseconds of work on, threads share it.
PARALLEL = 30_000
RANGE = 15_000  # nanoseconds of work that a thread takes at a time


def samples_of(recon, x, needs_dx):
    """(samples, x): how many samples ``recon`` [samples * rows, cols] has for x [rows, cols].

    A single row of x is handed back as long as recon, and one sample, unless its gradient is
    wanted: a sum over all samples, which one thread makes.
    """
    if x.shape[0] == 1 and not needs_dx:
        return 1, x.expand(recon.shape[: x.dim()])
    return samples_in(recon, x), x


class Here(threading.local):
    """Buffers of one Python thread. New arrays would be new pages of memory."""

    def __init__(self):
        self.scratch = {}


HERE = Here()


def scratch_of(acc, threads):
    """Buffers for tiles, 0.2 MB for each thread of a kernel."""
    scratch = HERE.scratch.get(acc)
    if scratch is None or len(scratch) < threads:
        dtype = np.float64 if acc == torch.float64 else np.float32
        HERE.scratch[acc] = scratch = np.empty((threads, *SCRATCH), dtype)
    return scratch


def find_openmp():
    """The address of the function that starts a parallel region of torch's own OpenMP, or 0.

    Its threads are awake where torch's operations have just used them, and wait for no lock of
    Python. Threads of our own would have to share the cores with them.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):  # TypeError on Windows
        return 0


OPENMP = find_openmp()


def threads_for(work):
    """How many threads; 1 in a forked child, where OpenMP would wait for its parent's threads."""
    if work <= PARALLEL or not OPENMP or os.getpid() != PROCESS:
        return 1
    return max(1, min(torch.get_num_threads(), int(work // RANGE)))


compiled: set = set()


def compile_first(kernel, *arguments):
    """The call that compiles a kernel, or reads it from disk."""
    collecting = gc.isenabled()
    gc.disable()  # compiling makes a million objects, and looking for cycles takes a tenth of it
    try:
        kernel(*arguments)
    finally:
        if collecting:
            gc.enable()
    compiled.add(kernel)


def call(kernel, *arguments):
    if kernel in compiled:
        kernel(*arguments)
    else:
        compile_first(kernel, *arguments)


def rows_at_a_time(rows, cols, work, threads):
    """The rows that take RANGE, but at least a tile: short tiles cost more.

    A tile is at most a thread's share of the rows.
    """
    tile = min(rows_of_tile.py_func(cols), -(-rows // threads))
    return max(tile, int(rows * RANGE / work))


def launch(kernel, acc, rows, cols, *arguments, cost, together=1, tile=None, sums=0):
    """Run ``kernel(queue, step, rows, cols, scratch, *arguments)``, in one thread or in several.

    ``cost`` is about what one thread takes for an element, in nanoseconds on a core with AVX-512.
    One thread takes all of each ``together`` rows. ``tile`` says how many columns the kernel takes
    at once, where threads share a longer row; without it a row is one thread's. ``sums`` counts the
    rows that the kernel sums with ``add_rows``, over all its outputs.

    The threads take short ranges of rows, or of the tiles of long rows, from one queue, so that
    results do not depend on how many there are, and who is interrupted holds up nobody.
    """
    pieces = -(-cols // (tile or TILE))
    queue = np.zeros(QUEUE if pieces <= 1 else QUEUE + sums * (pieces + 1), np.int64)
    queue[QUEUE - 1] = pieces
    parts, width, work = rows, cols, rows * cols * cost
    if tile is not None and pieces > 1:
        parts, width = rows * pieces, tile
        together = together * pieces if together > 1 else 1
    threads = threads_for(work)
    step = parts
    if threads > 1:
        step = -(-rows_at_a_time(parts, width, work, threads) // together) * together
    call(kernel, OPENMP, threads, queue, step, rows, cols, scratch_of(acc, threads), *arguments)
    if threads > 1 and queue[1] < parts:
        raise MemoryError("no memory for the buffers of a kernel")
