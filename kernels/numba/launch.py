"""The host side that every launcher shares: compiling, and threads."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ..rows import samples_in
from .memory import SCRATCH, rows_of_tile

# Nanoseconds of one thread's work from which a second is asked: to wake it takes 20,000 to 70,000.
PARALLEL = 150_000


def samples_of(recon, x, needs_dx):
    """(samples, x): how many of ``recon`` [samples * rows, cols] go with one x [rows, cols].

    A single row of x is handed back as long as recon, and one sample, unless its gradient is
    wanted: a sum over all samples, which one thread makes.
    """
    if x.shape[0] == 1 and not needs_dx:
        return 1, x.expand(recon.shape)
    return samples_in(recon, x), x


class Pool:
    """Threads that help the calling one; none in a forked child, whose parent has the cores."""

    executor = None
    forked = False

    @classmethod
    def forget(cls):
        cls.forked = True

    @classmethod
    def ask(cls, count, function):
        """Have ``function`` called in so many threads, as soon as they are free."""
        if cls.executor is None:
            cls.executor = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fused_elbo")
        try:
            return [cls.executor.submit(function) for _ in range(count)]
        except RuntimeError:  # the interpreter is about to exit
            return []


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=Pool.forget)


class Scratch(threading.local):
    """A thread's buffers for tiles, of 0.2 MB: a new array of that size would be new pages."""

    def __init__(self):
        self.buffers = {}


SCRATCH_OF_THREAD = Scratch()


def scratch_of(acc):
    buffers = SCRATCH_OF_THREAD.buffers
    if acc not in buffers:
        buffers[acc] = np.empty(SCRATCH, np.float64 if acc == torch.float64 else np.float32)
    return buffers[acc]


PATIENCE = 2.0  # seconds of compiling after which a person at a terminal is told, once
compiled: set = set()


def compile_first(kernel, *arguments):
    """The call that compiles a kernel, or reads it from disk."""
    message = "fused_elbo: compiling kernels for this CPU, once; the next call is fast"
    timer = threading.Timer(PATIENCE, print, [message], {"file": sys.stderr})
    timer.daemon = True
    if not compiled and sys.stderr.isatty():
        timer.start()
    try:
        kernel(*arguments)
    finally:
        timer.cancel()
    compiled.add(kernel)


def launch(kernel, acc, rows, cols, *arguments, cost):
    """Run ``kernel(lo, hi, cols, scratch, *arguments)`` over ranges [lo, hi) of the rows.

    ``cost`` is about what one thread takes for an element, in nanoseconds on a core with AVX-512.

    The threads take ranges of whole tiles from one queue: results do not depend on how many
    there are, and nobody waits for a thread that is busy elsewhere.
    """
    alone = rows * cols * cost < PARALLEL or Pool.forked
    threads = 1 if alone else torch.get_num_threads()
    if threads == 1 or kernel not in compiled:
        whole = 0, rows, cols, scratch_of(acc), *arguments
        return kernel(*whole) if kernel in compiled else compile_first(kernel, *whole)
    step = rows_of_tile.py_func(cols)
    step *= max(1, rows // (2 * threads * step))  # two ranges a thread even out their speeds
    starts = iter(range(0, rows, step))

    def work():
        scratch = scratch_of(acc)
        for lo in starts:
            kernel(lo, min(lo + step, rows), cols, scratch, *arguments)

    helpers = Pool.ask(threads - 1, work)
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()
