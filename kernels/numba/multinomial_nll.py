"""Multinomial negative log-likelihood of each row of logits a, of counts x of sum n:
n logsumexp(a) - x . a + sum log x! - log n!.

One kernel serves forward (``nll``), backward (``dnll`` in, gradient out) and both at once, with
``scale`` for the gradient of every row. It takes whole rows: those longer than a tile in pieces.
The sums over counts skip zeros, and are in float64.
"""

import math

import numpy as np

from ..rows import accumulator, empty_like_rows
from .categorical_nll import add_piece
from .compiler import INTERNAL, elementwise, helper, inline, jit, kernel
from .device import exp, fill
from .launch import launch, samples_of
from .memory import (
    TILE,
    load,
    operand,
    present,
    store,
    target,
    tiles,
    workspace,
)
from .sums import REASSOCIATED

# log k! of the counts that nearly all of them are
LOG_FACTORIALS = np.array([math.lgamma(k + 1.0) for k in range(64)])


@inline
def log_factorial(x):
    if x == np.floor(x) and x < 64.0:
        return LOG_FACTORIALS[int(x)]
    return math.lgamma(x + 1.0)


@jit(**INTERNAL)
def where_not_zero(x, found):
    """How many, and in ``found`` where."""
    n = 0
    for i in range(x.size):
        found[n] = i
        n += x[i] != x.dtype.type(0.0)
    return n


@helper
def add_counts(x, logits, count, width, number, values, found):
    """Add to each row's n, and to its sum of log x! - x a; a negative count makes it NaN."""
    for line in range(count):
        piece, of = slice(line * width, (line + 1) * width), logits[line * width :]
        counts = x[piece]
        n = value = 0.0
        for j in range(where_not_zero(counts, found)):
            i = found[j]
            c = np.float64(counts[i])
            n += c
            value += log_factorial(c) - c * of[i] if c > 0.0 else np.nan
        number[line] += n
        values[line] += value


@helper
def add_numbers(x, count, width, number, values):
    """The same of n alone, for a gradient without its value."""
    for line in range(count):
        n, least = sum_and_least(x[line * width : (line + 1) * width])
        number[line] += n
        values[line] += 0.0 if least >= 0.0 else np.nan


@jit(**REASSOCIATED)
def sum_and_least(x):
    n = least = 0.0
    for i in range(x.size):
        c = np.float64(x[i])
        n += c
        least = min(least, c)
    return n, least


@elementwise
def gradient(logits, x, greatest, factor, grad, dlogits):
    for i in range(dlogits.size):
        dlogits[i] = factor * exp(logits[i] - greatest) - grad * x[i]


@kernel
def multinomial_nll_kernel(
    queue, step, rows, cols, scratch, samples, scale, logits_ptr, x_ptr, dnll_ptr, nll_ptr,
    dlogits_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    real = scratch.dtype.type
    grads = scratch[0]
    number, values = np.empty(TILE), np.empty(TILE)
    nobody, found = np.full(TILE, -1), np.empty(TILE, np.int32)
    fill(grads, scale)
    for row, count, _, _ in tiles(queue, step, rows, min(cols, TILE)):
        greatest, total = scratch[1][:count], scratch[2][:count]
        for k in range(samples):
            first = row + k * rows
            of_rows = (first, count, 0, 1)
            fill(greatest, -np.inf)
            fill(total, 0.0)
            number[:count] = 0.0
            values[:count] = 0.0
            for col in range(0, cols, TILE):
                width = min(TILE, cols - col)
                logits = load(logits_ptr, (first, count, col, width), scratch[3])
                x = load(x_ptr, (row, count, col, width), scratch[4])
                add_piece(logits, count, width, nobody, greatest, total, scratch[5], scratch[6])
                if present(nll_ptr):
                    add_counts(x, logits, count, width, number, values, found)
                else:
                    add_numbers(x, count, width, number, values)
            if present(nll_ptr):
                nll = target(nll_ptr, of_rows, scratch[5])
                for line in range(count):
                    n = number[line]
                    nll[line] = values[line] - math.lgamma(n + 1.0)
                    if n > 0.0:
                        logsumexp = np.float64(greatest[line]) + math.log(np.float64(total[line]))
                        nll[line] = n * logsumexp + values[line] - math.lgamma(n + 1.0)
            if not present(dlogits_ptr):
                continue
            if present(dnll_ptr):
                grads = load(dnll_ptr, of_rows, scratch[7])
            for col in range(0, cols, TILE):
                width = min(TILE, cols - col)
                here = first, count, col, width
                logits = load(logits_ptr, here, scratch[3])
                x = load(x_ptr, (row, count, col, width), scratch[4])
                dlogits = target(dlogits_ptr, here, scratch[6])
                for line in range(count):
                    piece = slice(line * width, (line + 1) * width)
                    valid = values[line] == values[line]
                    grad = grads[line] if valid else real(np.nan)
                    factor = grad * real(number[line] / total[line])
                    gradient(logits[piece], x[piece], greatest[line], factor, grad, dlogits[piece])
                store(dlogits_ptr, here, dlogits)


def launch_multinomial_nll(logits, x, *, dnll=None, scale=1.0, values=None, needs=()):
    samples, x = samples_of(logits, x, False)
    acc = accumulator(logits, x)
    nll = logits.new_empty(logits.shape[0], dtype=acc) if values else None
    dlogits = empty_like_rows(logits, any(needs))
    launch(
        multinomial_nll_kernel,
        acc,
        *x.shape,
        samples,
        scale,
        *map(operand, (logits, x, dnll, nll, dlogits)),
        cost=1.2 * samples,
    )
    return nll, [] if dlogits is None else [dlogits]
