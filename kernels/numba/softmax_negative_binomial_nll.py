"""``negative_binomial_nll`` of means library * softmax(logits), which are in no tensor.

A row is read for its greatest logit and the sum of exponentials, again for the terms, and with
gradients a third time: each needs a sum over the row that the one before has made.
"""

import math

import numpy as np
import torch

from ..rows import accumulator, empty_like_rows, padded
from .categorical_nll import add_piece
from .compiler import elementwise, kernel
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
from .negative_binomial_nll import ThetaGradient, add_columns, sort_counts, write_terms
from .sums import add_rows, lane_sum, pieces_of_sums


@elementwise
def log_means(logits, greatest, shift, result):
    for i in range(result.size):
        result[i] = (logits[i] - greatest) + shift


@elementwise
def logits_gradient(logits, greatest, factor, dlog_mean, result):
    """dlog_mean less softmax(logits) times its sum."""
    for i in range(result.size):
        result[i] = dlog_mean[i] - factor * exp(logits[i] - greatest)


@kernel
def softmax_negative_binomial_nll_kernel(
    queue, step, rows, cols, scratch, samples, gradients, part_rows, log_theta_value, scale,
    logits_ptr, x_ptr, log_theta_ptr, log_library_ptr, zero_logits_ptr, dnll_ptr, nll_ptr,
    dlogits_ptr, dlog_library_ptr, dzero_logits_ptr, dlog_theta_ptr, row_dlog_theta_ptr,
    col_dlog_theta_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    real = scratch.dtype.type
    few, many = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    nll_pieces, dlog_theta_pieces = pieces_of_sums(queue), pieces_of_sums(queue, samples * rows)
    slopes, slope_sums = np.empty(max(cols, TILE), scratch.dtype), np.empty(TILE)
    nobody = np.full(TILE, -1)
    inflated = present(zero_logits_ptr)
    fill(scratch[1], log_theta_value)
    for row, count, _, _ in tiles(queue, step, rows, min(cols, TILE)):
        for k in range(samples):
            first = row + k * rows
            of_rows = (first, count, 0, 1)
            greatest, total = np.empty(count, scratch.dtype), np.empty(count, scratch.dtype)
            fill(greatest, -np.inf)
            fill(total, 0.0)
            for col in range(0, cols, TILE):
                width = min(TILE, cols - col)
                logits = load(logits_ptr, (first, count, col, width), scratch[4])
                add_piece(logits, count, width, nobody, greatest, total, scratch[3], scratch[5])
            shift = np.empty(count, scratch.dtype)
            library = load(log_library_ptr, of_rows, scratch[3])
            for line in range(count):
                shift[line] = library[line] - real(math.log(np.float64(total[line])))
                slope_sums[line] = 0.0
            for col in range(0, cols, TILE):
                width = min(TILE, cols - col)
                here, size = (first, count, col, width), count * width
                x = load(x_ptr, (row, count, col, width), scratch[2])
                n_few, n_many = sort_counts(x, few, many)
                logits = load(logits_ptr, here, scratch[4])
                m, nll, dm = scratch[8][:size], scratch[3][:size], slopes[col : col + size]
                for line in range(count):
                    piece = slice(line * width, (line + 1) * width)
                    log_means(logits[piece], greatest[line], shift[line], m[piece])
                a, z, grad = scratch[1][:size], x, scratch[0][:size]
                if present(log_theta_ptr):
                    a = load(log_theta_ptr, here, scratch[5])
                if inflated:
                    z = load(zero_logits_ptr, here, scratch[6])
                if present(dnll_ptr):
                    grad = load(dnll_ptr, here, scratch[7])
                else:
                    fill(grad, scale)
                da = target(dlog_theta_ptr, here, scratch[9])
                dz = target(dzero_logits_ptr, here, scratch[10])
                wanted = present(nll_ptr), gradients
                given, results = (x, m, a, z, grad), (nll, dm, da, dz)
                listed = few[:n_few], many[:n_many]
                write_terms(wanted, inflated, *listed, given, results, scratch[11:])
                if present(nll_ptr):
                    add_rows(nll, here, cols, 1.0, nll_pieces, nll_ptr)
                if not gradients:
                    continue
                for line in range(count):
                    slope_sums[line] += np.float64(lane_sum(dm[line * width : (line + 1) * width]))
                store(dlog_theta_ptr, here, da)
                store(dzero_logits_ptr, here, dz)
                if present(row_dlog_theta_ptr):
                    add_rows(da, here, cols, 1.0, dlog_theta_pieces, row_dlog_theta_ptr)
                if present(col_dlog_theta_ptr):
                    at = row, count, col, width
                    add_columns(da, at, col_dlog_theta_ptr, row // part_rows)
            if present(dlog_library_ptr):
                dlibrary = target(dlog_library_ptr, of_rows, scratch[3])
                for line in range(count):
                    dlibrary[line] = slope_sums[line]
                store(dlog_library_ptr, of_rows, dlibrary)
            if not present(dlogits_ptr):
                continue
            for col in range(0, cols, TILE):
                width = min(TILE, cols - col)
                here, size = (first, count, col, width), count * width
                logits = load(logits_ptr, here, scratch[4])
                dlogits = target(dlogits_ptr, here, scratch[5])
                dm = slopes[col : col + size]
                for line in range(count):
                    piece = slice(line * width, (line + 1) * width)
                    factor = real(slope_sums[line] / total[line])
                    logits_gradient(
                        logits[piece], greatest[line], factor, dm[piece], dlogits[piece]
                    )
                store(dlogits_ptr, here, dlogits)


def launch_softmax_negative_binomial_nll(
    logits, x, log_theta, log_library, zero_logits, log_theta_value, *, dnll=None, scale=1.0,
    values=None, needs=(),
):  # fmt: skip
    needs_logits, needs_theta, needs_library, needs_zeros = padded(needs, 4)
    samples, x = samples_of(logits, x, False)
    acc = accumulator(logits, x, log_theta, log_library, zero_logits)
    shape = logits.shape
    nll = torch.empty(shape[0], dtype=acc, device="cpu") if values else None
    dlogits = empty_like_rows(logits, needs_logits)
    dlog_library = empty_like_rows(log_library, needs_library)
    dzero_logits = empty_like_rows(zero_logits, needs_zeros)
    dlog_theta = ThetaGradient(log_theta, shape, len(x), acc, needs_theta)
    wide = None if log_theta is None else log_theta.expand(shape)
    tensors = logits, x, wide, log_library, zero_logits, dnll, nll
    launch(
        softmax_negative_binomial_nll_kernel,
        acc,
        *x.shape,
        samples,
        any(needs),
        dlog_theta.part_rows,
        log_theta_value,
        scale,
        *map(operand, (*tensors, dlogits, dlog_library, dzero_logits)),
        *dlog_theta.operands(),
        cost=4.5 * samples,
        sums=2 * len(logits),
        together=dlog_theta.together(),
    )
    gradients = dlogits, dlog_theta.result(), dlog_library, dzero_logits
    return nll, [g for g in gradients if g is not None]
