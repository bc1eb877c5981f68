"""Categorical negative log-likelihood of each row of logits: logsumexp(logits) - logits[target].

One kernel serves forward (``nll``), backward (``dnll`` in, gradient out) and both at once, with
``scale`` for the gradient of every row. It takes whole rows: those longer than a tile in pieces.
"""

import numpy as np
from numba import carray, types
from numba.extending import overload

from ..rows import accumulator, empty_like_rows
from .compiler import (
    INTERNAL,
    Restrict,
    bits_of_float,
    elementwise,
    float_of_bits,
    helper,
    inline,
    jit,
    kernel,
    pointer,
)
from .device import exp, fill, log, scale
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
from .sums import REASSOCIATED, lane_sum, whole_registers


def lane_max(values):
    raise NotImplementedError


@overload(lane_max)
def _(values):
    if values.dtype == types.float32:
        return lambda values: lane_max_32(values)
    return lambda values: values.max()


@jit(**INTERNAL)
def lane_max_32(values):
    """The greatest number, or NaN. It compares integers: LLVM does not pack a maximum of floats."""
    greatest = np.int32(-(2**31))
    for i in range(values.size):
        greatest = max(greatest, in_order(bits_of_float(values[i])))
    return float_of_bits(in_order(greatest))


@inline
def in_order(bits):
    """Integers in the order of the floats whose bits they are; its own inverse."""
    return np.int32(bits ^ (bits >> 31 & 0x7FFFFFFF))


@elementwise
def subtract_number(values, number, result):
    for i in range(result.size):
        result[i] = values[i] - number


@elementwise
def exps(values):
    for i in range(values.size):
        values[i] = exp(values[i])


@jit(pipeline_class=Restrict, **REASSOCIATED)
def sum_exps(values, shift):
    total = values.dtype.type(0.0)
    for i in range(values.size):
        total += exp(values[i] - shift)
    return total


@elementwise
def scaled_exps(values, shift, factor, result):
    for i in range(result.size):
        result[i] = factor * exp(values[i] - shift)


@elementwise
def logs(values):
    for i in range(values.size):
        values[i] = log(values[i])


@elementwise
def add(values, result):
    for i in range(result.size):
        result[i] += values[i]


@elementwise
def differences(greatest, chosen, log_total, nll):
    """The nll. The difference of logits comes first, so that their size adds no rounding."""
    for i in range(nll.size):
        nll[i] = (greatest[i] - chosen[i]) + log_total[i]


@helper
def add_piece(logits, count, width, targets, greatest, total, chosen, terms):
    """sum exp(logits) = exp(greatest) total of each row, and its chosen logit, with a piece more.

    ``targets`` are counted from the piece's first column.
    """
    real, whole = total.dtype.type, whole_registers(width, logits)
    for line in range(count):
        piece = logits[line * width : (line + 1) * width]
        top, before = lane_max(piece), greatest[line]
        if before > real(-np.inf):
            top = max(before, top)
            total[line] *= exp(before - top)
        top = real(0.0) if top == real(-np.inf) else top  # while all logits are -inf
        greatest[line] = top
        if 0 <= targets[line] < width:
            chosen[line] = piece[targets[line]]
        if whole:
            total[line] += sum_exps(piece, top)
        else:
            subtract_number(piece, top, terms[line * width : (line + 1) * width])
    if whole:
        return
    exps(terms[: count * width])
    for line in range(count):
        total[line] += lane_sum(terms[line * width : (line + 1) * width])


@helper
def write_probabilities(logits, count, width, logsumexp, factor, result):
    """factor softmax(logits) of a piece."""
    whole = whole_registers(width, logits)
    for line in range(count):
        piece = slice(line * width, (line + 1) * width)
        if whole:
            scaled_exps(logits[piece], logsumexp[line], factor[line], result[piece])
        else:
            subtract_number(logits[piece], logsumexp[line], result[piece])
    if whole:
        return
    exps(result)
    for line in range(count):
        scale(result[line * width : (line + 1) * width], factor[line])


@kernel
def categorical_nll_kernel(
    queue, step, rows, classes, scratch, samples, scale, logits_ptr, targets_ptr, dnll_ptr, nll_ptr,
    dlogits_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    real = scratch.dtype.type
    targets = carray(pointer(targets_ptr), rows, np.int64)
    grads = scratch[0]
    fill(grads, scale)
    for row, count, _, _ in tiles(queue, step, rows, min(classes, TILE)):
        greatest, total, chosen = scratch[1][:count], scratch[2][:count], scratch[3][:count]
        for k in range(samples):
            first = row + k * rows
            of_rows = (first, count, 0, 1)
            fill(greatest, -np.inf)
            fill(total, 0.0)
            fill(chosen, np.nan)
            for col in range(0, classes, TILE):
                here = first, count, col, min(TILE, classes - col)
                logits = load(logits_ptr, here, scratch[4])
                shifted = targets[row : row + count] - col
                add_piece(logits, count, here[3], shifted, greatest, total, chosen, scratch[5])
            logs(total)
            if present(nll_ptr):
                nll = target(nll_ptr, of_rows, scratch[6])
                differences(greatest, chosen, total, nll)
            if not present(dlogits_ptr):
                continue
            if present(dnll_ptr):
                grads = load(dnll_ptr, of_rows, scratch[7])
            add(greatest, total)
            for col in range(0, classes, TILE):
                here = first, count, col, min(TILE, classes - col)
                logits = load(logits_ptr, here, scratch[4])
                dlogits = target(dlogits_ptr, here, scratch[5])
                write_probabilities(logits, count, here[3], total, grads, dlogits)
                for line in range(count):
                    at = targets[row + line] - col
                    if 0 <= at < here[3]:
                        dlogits[line * here[3] + at] -= grads[line]
                    elif not 0 <= targets[row + line] < classes:
                        dlogits[line * here[3]] = real(np.nan)
                store(dlogits_ptr, here, dlogits)


def launch_categorical_nll(logits, targets, *, dnll=None, scale=1.0, values=None, needs=()):
    samples, targets = samples_of(logits, targets, False)
    targets = targets.contiguous()
    acc = accumulator(logits)
    nll = logits.new_empty(logits.shape[0], dtype=acc) if values else None
    dlogits = empty_like_rows(logits, any(needs))
    launch(
        categorical_nll_kernel,
        acc,
        targets.shape[0],
        logits.shape[1],
        samples,
        scale,
        operand(logits),
        targets.data_ptr(),
        operand(dnll),
        operand(nll),
        operand(dlogits),
        cost=0.6 * samples,
    )
    return nll, [] if dlogits is None else [dlogits]
