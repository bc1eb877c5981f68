"""Categorical negative log-likelihood of each row of logits: logsumexp(logits) - logits[target].

One kernel serves forward (``nll``), backward (``dnll`` in, gradient out) and both at once, with
``scale`` for the gradient of every row. It takes whole rows: those longer than a tile in pieces.
"""

import numpy as np
import torch
from numba import carray, njit, types
from numba.extending import overload

from ..rows import accumulator, empty_like_rows
from .compiler import INTERNAL, bits_of_float, elementwise, float_of_bits, helper, inline, kernel, pointer
from .device import exp, fill, log
from .launch import launch, samples_of
from .memory import (
    BLOCK,
    load,
    operand,
    present,
    store,
    target,
    tiles,
    workspace,
)
from .sums import lane_sum


def lane_max(values):
    raise NotImplementedError


@overload(lane_max, jit_options=INTERNAL)
def _(values):
    if values.dtype == types.float32:
        return lambda values: lane_max_32(values)
    return lambda values: values.max()


@njit(**INTERNAL)
def lane_max_32(values):
    """The greatest number, or NaN: of integers, for LLVM packs no maximum of floats."""
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


@elementwise
def multiply(values, number):
    for i in range(values.size):
        values[i] *= number


@elementwise
def logs(total, greatest, result):
    for i in range(result.size):
        result[i] = greatest[i] + log(total[i])


@helper
def add_piece(logits, count, width, greatest, total, terms):
    """sum exp(logits) = exp(greatest) total of each row, with a piece more."""
    real = total.dtype.type
    for line in range(count):
        piece = logits[line * width : (line + 1) * width]
        top = max(greatest[line], lane_max(piece))
        top = top if top > real(-np.inf) else real(0.0)  # where nothing is possible yet
        total[line] *= exp(greatest[line] - top)
        greatest[line] = top
        subtract_number(piece, top, terms[line * width : (line + 1) * width])
    exps(terms[: count * width])
    for line in range(count):
        total[line] += lane_sum(terms[line * width : (line + 1) * width])


@helper
def write_probabilities(logits, count, width, logsumexp, factor, result):
    """factor softmax(logits) of a piece."""
    for line in range(count):
        piece = slice(line * width, (line + 1) * width)
        subtract_number(logits[piece], logsumexp[line], result[piece])
    exps(result)
    for line in range(count):
        multiply(result[line * width : (line + 1) * width], factor[line])


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
    for row, count, _, _ in tiles(queue, step, rows, min(classes, BLOCK)):
        greatest, total, logsumexp = scratch[1][:count], scratch[2][:count], scratch[3][:count]
        for k in range(samples):
            first = row + k * rows
            of_rows = (first, count, 0, 1)
            fill(greatest, -np.inf)
            fill(total, 0.0)
            for col in range(0, classes, BLOCK):
                here = first, count, col, min(BLOCK, classes - col)
                logits = load(logits_ptr, here, scratch[4])
                add_piece(logits, count, here[3], greatest, total, scratch[5])
            logs(total, greatest, logsumexp)
            if present(nll_ptr):
                nll = target(nll_ptr, of_rows, scratch[6])
                for line in range(count):
                    chosen = real(np.nan)
                    if 0 <= targets[row + line] < classes:
                        at = first + line, 1, targets[row + line], 1
                        chosen = load(logits_ptr, at, scratch[4])[0]
                    nll[line] = (greatest[line] - chosen) + log(total[line])
            if not present(dlogits_ptr):
                continue
            if present(dnll_ptr):
                grads = load(dnll_ptr, of_rows, scratch[7])
            for col in range(0, classes, BLOCK):
                here = first, count, col, min(BLOCK, classes - col)
                logits = load(logits_ptr, here, scratch[4])
                dlogits = target(dlogits_ptr, here, scratch[5])
                write_probabilities(logits, count, here[3], logsumexp, grads, dlogits)
                for line in range(count):
                    at = targets[row + line] - col
                    if 0 <= at < here[3]:
                        dlogits[line * here[3] + at] -= grads[line]
                    elif not 0 <= targets[row + line] < classes:
                        dlogits[line * here[3]] = real(np.nan)
                store(dlogits_ptr, here, dlogits)


def launch_categorical_nll(logits, targets, *, dnll=None, scale=1.0, values, needs=(False,)):
    """The nll [rows of logits] if ``values`` are wanted, and its gradient in a list if needed.

    There may be fewer targets than rows of logits, which then holds samples one after another.
    """
    samples, targets = samples_of(logits, targets, False)
    targets = targets.contiguous()
    acc = accumulator(logits)
    nll = torch.empty(logits.shape[0], dtype=acc) if values else None
    dlogits = empty_like_rows(logits, needs[0])
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


def categorical_nll(logits, target):
    """The nll of each row of logits."""
    return launch_categorical_nll(logits, target, values=True)[0]


def categorical_nll_backward(dnll, logits, target, needs):
    """The wanted gradients, from dnll [rows of logits]."""
    return launch_categorical_nll(logits, target, dnll=dnll, values=False, needs=needs)[1]
