"""The host side that every launcher shares: compiling, and threads."""

import functools
import os
import sys
import threading
import time
from queue import SimpleQueue

import numpy as np
import torch

from ..rows import samples_in
from .memory import SCRATCH

# Nanoseconds of one thread's work from which a second is asked: to wake it takes 10,000 to 30,000.
PARALLEL = 50_000
NAP = 50e-6  # seconds
RANGE = 15_000  # nanoseconds of work that a thread takes at a time


def samples_of(recon, x, needs_dx):
    """(samples, x): how many of ``recon`` [samples * rows, cols] go with one x [rows, cols].

    A single row of x is handed back as long as recon, and one sample, unless its gradient is
    wanted: a sum over all samples, which one thread makes.
    """
    if x.shape[0] == 1 and not needs_dx:
        return 1, x.expand(recon.shape)
    return samples_in(recon, x), x


class Pool:
    """Threads that help the calling one; none in a forked child, whose parent has the cores.

    To ask one takes 5 us, and of a ThreadPoolExecutor 25, with a lock and a condition for each
    result; here the kernels' own queue of rows says when all is done.
    """

    calls: SimpleQueue = SimpleQueue()
    lock = threading.Lock()
    threads = 0
    forked = False

    @classmethod
    def forget(cls):
        cls.forked = True

    @classmethod
    def ask(cls, count, function):
        """Have ``function`` called in so many threads, as soon as they are free."""
        if cls.threads < count:
            with cls.lock:
                while cls.threads < count:
                    threading.Thread(target=cls.serve, name="fused_elbo", daemon=True).start()
                    cls.threads += 1
        for _ in range(count):
            cls.calls.put(function)

    @classmethod
    def serve(cls):
        while True:
            cls.calls.get()()


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
    """Run ``kernel(queue, step, rows, cols, scratch, *arguments)``, in one thread or in several.

    ``cost`` is about what one thread takes for an element, in nanoseconds on a core with AVX-512.

    The threads take short ranges of rows from one queue: results do not depend on how many there
    are, the first ranges are done while the others wake, and nobody waits for a thread that is
    busy elsewhere.
    """
    queue, work = np.zeros(2, np.int64), rows * cols * cost
    threads = 1 if work <= PARALLEL or Pool.forked else torch.get_num_threads()
    if threads == 1 or kernel not in compiled:
        run = kernel if kernel in compiled else functools.partial(compile_first, kernel)
        return run(queue, rows, rows, cols, scratch_of(acc), *arguments)
    step = max(1, int(rows * RANGE / work))

    failures = []

    def take_part():
        try:
            kernel(queue, step, rows, cols, scratch_of(acc), *arguments)
        except BaseException as error:
            failures.append(error)

    Pool.ask(threads - 1, take_part)
    take_part()
    while queue[1] < rows and not failures:  # a thread was interrupted
        time.sleep(NAP)
    if failures:
        raise failures[0]
