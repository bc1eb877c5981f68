"""Log-density of a mixture of diagonal Gaussians: log sum_k exp(log_weights_k) N(z; mu_k, s_k).

A register holds one number of sixteen rows or of sixteen components: so no sum over latents, rows
or components crosses its lanes. Forward and the gradient of z take blocks of LINES rows and go
through the components; the gradients of the components take blocks of components and go through
the rows. Thus each result is one thread's, in one order. What compares every row with every
component stays in a few registers, and is computed again in each pass.

Differences are direct: z^2 - 2 z mu + mu^2 loses the digits where means are far from the origin.
"""

import math

import numpy as np
import torch

from ..rows import accumulator
from .compiler import elementwise, helper, inline, kernel
from .device import exp, exp_scaled, fill, finite_or_zero, log
from .launch import launch
from .memory import TILE, in_place, load, operand, target, tiles, workspace
from .pairs import (
    DEEP,
    STRETCH,
    buffer_of,
    columns_of,
    lines_of,
    put_aside,
    zeros,
)
from .sums import add_rows, pieces_of_sums

LINES = 64  # rows, or components, that a loop takes at once: four registers
CHUNK = 128  # latents whose squares are added up in the dtype of the buffers
FEW = 4  # of the others, which share what is read and written for them
COST = 0.03  # ns for a latent of a pair


@inline
def square(a, b, root):
    distance = (a - b) * root
    return distance * distance


@elementwise
def add_to_double(values, total):
    for i in range(values.size):
        total[i] += np.float64(values[i])


@elementwise
def from_double(values, result):
    real = result.dtype.type
    for i in range(result.size):
        result[i] = real(values[i])


def squares_in_blocks(of_rows):
    """|(z - mu) / std|^2 of one component for a block of rows z [cols, LINES], or of one row for a
    block of components [cols, LINES].

    Latents are added up eight at a time, and what is left over four, two and one at a time: LLVM
    unrolls these loops, so that sums stay in registers. Each CHUNK of latents has a sum of its own,
    and these are added up in float64, so that long sums round as little as torch's pairwise ones.
    """

    @inline
    def add_block(latents, first, z, mu, inverse, result):
        for i in range(LINES):
            total = result.dtype.type(0.0)
            for d in range(first, first + latents):
                # Unsigned: of an index that may be negative no loop is packed.
                one, many = np.uint64(d), np.uint64(d * LINES + i)
                if of_rows:
                    total += square(z[many], mu[one], inverse[one])
                else:
                    total += square(z[one], mu[many], inverse[many])
            result[i] += total

    @elementwise
    def squares_of_chunk(cols, z, mu, inverse, result):
        real = result.dtype.type
        deep = cols // DEEP * DEEP
        for i in range(LINES):
            result[i] = real(0.0)
        for first in range(0, deep, DEEP):
            add_block(DEEP, first, z, mu, inverse, result)
        if cols & 4:
            add_block(4, deep, z, mu, inverse, result)
        if cols & 2:
            add_block(2, deep + (cols & 4), z, mu, inverse, result)
        if cols & 1:
            add_block(1, cols - 1, z, mu, inverse, result)

    @helper
    def squares(cols, z, mu, inverse, total, result):
        if cols <= CHUNK:
            squares_of_chunk(cols, z, mu, inverse, result)
            return
        fill(total, 0.0)
        for first in range(0, cols, CHUNK):
            count = min(CHUNK, cols - first)
            one, many = slice(first, first + count), slice(first * LINES, (first + count) * LINES)
            if of_rows:
                squares_of_chunk(count, z[many], mu[one], inverse[one], result)
            else:
                squares_of_chunk(count, z[one], mu[many], inverse[many], result)
            add_to_double(result, total)
        from_double(total, result)

    return squares


squares_of_rows = squares_in_blocks(True)
squares_of_components = squares_in_blocks(False)


@elementwise
def to_logs(constant, logs):
    """From squares to log densities, but for a constant of all."""
    real = logs.dtype.type
    for i in range(LINES):
        logs[i] = constant - real(0.5) * logs[i]


@elementwise
def rise(logs, greatest, total, shift):
    """The greatest with FEW components more: sum_k exp(log_k) = exp(shift) total."""
    for i in range(LINES):
        top = greatest[i]
        for j in range(FEW):
            top = max(top, logs[j * LINES + i])
        shift[i] = finite_or_zero(top)
        total[i] *= exp(greatest[i] - shift[i])
        greatest[i] = top


@elementwise
def add_exps(logs, shift, total):
    for i in range(LINES):
        total[i] += exp(logs[i] - shift[i])


@elementwise
def conclude_mixture(greatest, total, result):
    for i in range(LINES):
        result[i] = greatest[i] + log(total[i])


@elementwise
def weigh_rows(constant, logsumexp, upstream, weights):
    """From squares to upstream gradients times responsibilities, of a component."""
    real = weights.dtype.type
    for i in range(LINES):
        weights[i] = upstream[i] * exp((constant - real(0.5) * weights[i]) - logsumexp[i])


@elementwise
def weigh_components(constant, logsumexp, upstream, weights):
    """The same of a row."""
    real = weights.dtype.type
    for i in range(LINES):
        weights[i] = upstream * exp((constant[i] - real(0.5) * weights[i]) - logsumexp)


@elementwise
def add_mixture_pulls(z, mu, inverse, weights, dz):
    """The gradient of a block of rows from FEW components [FEW, cols]."""
    cols = dz.size // LINES
    for d in range(cols):
        for i in range(LINES):
            pull = dz[d * LINES + i]
            for j in range(FEW):
                # 1 / std twice, not its square, which overflows where the product with it does not;
                # nor of the distance, which may be infinite so where the weight is 0.
                root, distance = inverse[j * cols + d], mu[j * cols + d] - z[d * LINES + i]
                pull += ((weights[j * LINES + i] * root) * distance) * root
            dz[d * LINES + i] = pull


@elementwise
def add_moments(z, mu, weights, first, second):
    """Add the weighted moments of z - mu of a block of components, from FEW rows [FEW, cols]."""
    cols = first.size // LINES
    for d in range(cols):
        for i in range(LINES):
            one, two = first[d * LINES + i], second[d * LINES + i]
            for j in range(FEW):
                distance = z[j * cols + d] - mu[d * LINES + i]
                weighted = weights[j * LINES + i] * distance
                one += weighted
                two += weighted * distance
            first[d * LINES + i], second[d * LINES + i] = one, two


@elementwise
def add_weights(weights, result):
    for i in range(LINES):
        for j in range(FEW):
            result[i] += weights[j * LINES + i]


@helper
def finite_logsumexp(operand, start, stop, size, buffer):
    """logsumexp of rows; infinite for those that are impossible of all components, or missing."""
    found = load(operand, (start, stop - start, 0, 1), buffer)
    for i in range(stop - start):
        buffer[i] = np.inf if found[i] == -np.inf else found[i]
    for i in range(stop - start, size):
        buffer[i] = np.inf
    return buffer[:size]


@kernel
def precision_kernel(queue, step, rows, cols, scratch, logvar_ptr, inverse_ptr, half_ptr):
    """1 / std, and -1/2 of the sum of the log variances."""
    scratch = workspace(scratch, queue)
    pieces = pieces_of_sums(queue)
    for tile in tiles(queue, step, rows, cols):
        logvar, inverse = load(logvar_ptr, tile, scratch[0]), target(inverse_ptr, tile, scratch[1])
        exp_scaled(logvar, -0.5, inverse)
        add_rows(logvar, tile, cols, -0.5, pieces, half_ptr)


@kernel
def mixture_log_prob_kernel(
    queue, step, blocks, _, scratch, rows, components, cols, normalizer, z_ptr,
    mu_ptr, inverse_ptr, constant_ptr, log_prob_address, logsumexp_address,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    wide = np.empty(LINES)
    logs, constants = scratch[0][: FEW * LINES], scratch[1]
    greatest, total, shift = scratch[2][:LINES], scratch[3][:LINES], scratch[4][:LINES]
    lines, block_of_z = buffer_of(LINES * cols, logs), buffer_of(LINES * cols, logs)
    mus, inverses = buffer_of(FEW * cols, logs), buffer_of(FEW * cols, logs)
    for block, _, _, _ in tiles(queue, step, blocks, 1, 1):
        row, end = block * LINES, min((block + 1) * LINES, rows)
        z = columns_of(z_ptr, row, end, cols, LINES, lines, 0.0, block_of_z)
        fill(greatest, -np.inf)
        fill(total, 0.0)
        for k in range(0, components, FEW):
            stop = min(k + FEW, components)
            mu = lines_of(mu_ptr, k, stop, cols, FEW, mus, 0.0)
            # 1 / std is 1: of an infinite z with 0 the squares would be NaN.
            inverse = lines_of(inverse_ptr, k, stop, cols, FEW, inverses, 1.0)
            constant = lines_of(constant_ptr, k, stop, 1, FEW, constants, -np.inf)
            for j in range(FEW):
                here, latents = logs[j * LINES : (j + 1) * LINES], slice(j * cols, (j + 1) * cols)
                squares_of_rows(cols, z, mu[latents], inverse[latents], wide, here)
                to_logs(constant[j], here)
            rise(logs, greatest, total, shift)
            for j in range(FEW):
                add_exps(logs[j * LINES : (j + 1) * LINES], shift, total)
        conclude_mixture(greatest, total, shift)
        log_prob = in_place(log_prob_address, row, end - row, logs)
        logsumexp = in_place(logsumexp_address, row, end - row, logs)
        for i in range(end - row):
            logsumexp[i] = shift[i]
            log_prob[i] = shift[i] - normalizer


@kernel
def mixture_log_prob_rows_kernel(
    queue, step, blocks, _, scratch, rows, components, cols, z_ptr, mu_ptr,
    inverse_ptr, constant_ptr, logsumexp_ptr, upstream_ptr, dz_address,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    wide = np.empty(LINES)
    weights, constants = scratch[0][: FEW * LINES], scratch[1]
    lines, block_of_z = buffer_of(LINES * cols, weights), buffer_of(LINES * cols, weights)
    mus, inverses = buffer_of(FEW * cols, weights), buffer_of(FEW * cols, weights)
    partial, dz = zeros(LINES * cols, weights), zeros(LINES * cols, weights)
    for block, _, _, _ in tiles(queue, step, blocks, 1, 1):
        row, end = block * LINES, min((block + 1) * LINES, rows)
        z = columns_of(z_ptr, row, end, cols, LINES, lines, 0.0, block_of_z)
        logsumexp = finite_logsumexp(logsumexp_ptr, row, end, LINES, scratch[2])
        upstream = lines_of(upstream_ptr, row, end, 1, LINES, scratch[3], 0.0)
        fill(dz, 0.0)
        for k in range(0, components, FEW):
            stop = min(k + FEW, components)
            mu = lines_of(mu_ptr, k, stop, cols, FEW, mus, 0.0)
            inverse = lines_of(inverse_ptr, k, stop, cols, FEW, inverses, 1.0)
            constant = lines_of(constant_ptr, k, stop, 1, FEW, constants, -np.inf)
            for j in range(FEW):
                here = weights[j * LINES : (j + 1) * LINES]
                latents = slice(j * cols, (j + 1) * cols)
                squares_of_rows(cols, z, mu[latents], inverse[latents], wide, here)
                weigh_rows(constant[j], logsumexp, upstream, here)
            add_mixture_pulls(z, mu, inverse, weights, partial)
            if (k + FEW) % STRETCH == 0 or k + FEW >= components:
                put_aside(partial, dz)
        found = in_place(dz_address, row * cols, (end - row) * cols, weights)
        for i in range(end - row):
            for d in range(cols):
                found[i * cols + d] = dz[d * LINES + i]


@kernel
def mixture_log_prob_components_kernel(
    queue, step, blocks, _, scratch, rows, components, cols, z_ptr, mu_ptr,
    inverse_ptr, constant_ptr, logsumexp_ptr, upstream_ptr, dmu_address, dlogvar_address,
    dlog_weights_address,
):  # fmt: skip
    """From the weighted moments of z - mu."""
    scratch = workspace(scratch, queue)
    wide = np.empty(LINES)
    weights, none, zeroth = scratch[0][: FEW * LINES], scratch[1][:LINES], scratch[2][:LINES]
    lines, zs = buffer_of(LINES * cols, weights), buffer_of(FEW * cols, weights)
    mus, inverses = buffer_of(LINES * cols, weights), buffer_of(LINES * cols, weights)
    one, two = zeros(LINES * cols, weights), zeros(LINES * cols, weights)
    first, second = zeros(LINES * cols, weights), zeros(LINES * cols, weights)
    fill(none, 0.0)
    for block, _, _, _ in tiles(queue, step, blocks, 1, 1):
        start, end = block * LINES, min((block + 1) * LINES, components)
        mu = columns_of(mu_ptr, start, end, cols, LINES, lines, 0.0, mus)
        inverse = columns_of(inverse_ptr, start, end, cols, LINES, lines, 1.0, inverses)
        constant = lines_of(constant_ptr, start, end, 1, LINES, scratch[3], -np.inf)
        fill(zeroth, 0.0)
        fill(first, 0.0)
        fill(second, 0.0)
        for row in range(0, rows, FEW):
            stop = min(row + FEW, rows)
            z = lines_of(z_ptr, row, stop, cols, FEW, zs, 0.0)
            logsumexp = finite_logsumexp(logsumexp_ptr, row, stop, FEW, scratch[4])
            upstream = lines_of(upstream_ptr, row, stop, 1, FEW, scratch[5], 0.0)
            for j in range(FEW):
                here = weights[j * LINES : (j + 1) * LINES]
                squares_of_components(cols, z[j * cols : (j + 1) * cols], mu, inverse, wide, here)
                weigh_components(constant, logsumexp[j], upstream[j], here)
            add_moments(z, mu, weights, one, two)
            add_weights(weights, none)
            if (row + FEW) % STRETCH == 0 or row + FEW >= rows:
                put_aside(one, first)
                put_aside(two, second)
                put_aside(none, zeroth)
        dmu = in_place(dmu_address, start * cols, (end - start) * cols, weights)
        dlogvar = in_place(dlogvar_address, start * cols, (end - start) * cols, weights)
        dlog_weights = in_place(dlog_weights_address, start, end - start, weights)
        real = weights.dtype.type
        for i in range(end - start):
            dlog_weights[i] = zeroth[i]
            for d in range(cols):
                root, at = inverse[d * LINES + i], d * LINES + i
                dmu[i * cols + d] = first[at] * root * root
                dlogvar[i * cols + d] = real(0.5) * (second[at] * root * root - zeroth[i])


def components_of(acc, mu, logvar, log_weights):
    """(mu, 1 / std, what the log densities have beside squares)."""
    inverse, constant = mu.new_empty(mu.shape, dtype=acc), mu.new_empty(len(mu), dtype=acc)
    operands = map(operand, (logvar, inverse, constant))
    # Not by torch, which gives an exp of 2048 elements to OpenMP: that hangs in a forked child.
    launch(precision_kernel, acc, *mu.shape, *operands, cost=0.2, tile=TILE, sums=len(mu))
    log_weights = -math.log(len(mu)) if log_weights is None else log_weights.detach()
    return mu, inverse, constant + log_weights


def launch_blocks(kernel, acc, blocked, others, *arguments, cost):
    """A kernel that takes blocks of one side, rows or components, through all of the other."""
    blocks, pairs = -(-len(blocked) // LINES), LINES * others.numel()
    launch(kernel, acc, blocks, pairs, *arguments, cost=cost)


def mixture_log_prob(z, mu, logvar, log_weights):
    """[log-densities [rows], what backward needs of them [rows]]."""
    acc = accumulator(z, mu, logvar, log_weights)
    rows, cols = z.shape
    components = components_of(acc, mu, logvar, log_weights)
    results = [torch.empty(rows, dtype=acc, device="cpu") for _ in range(2)]
    launch_blocks(
        mixture_log_prob_kernel,
        acc,
        z,
        mu,
        rows,
        *mu.shape,
        0.5 * cols * math.log(2 * math.pi),
        *map(operand, (z, *components)),
        *(t.data_ptr() for t in results),
        cost=COST,
    )
    return results


def mixture_log_prob_backward(dlog_prob, z, mu, logvar, log_weights, logsumexp, needs):
    """The wanted gradients, from dlog_prob [rows]."""
    inputs = z, mu, logvar, log_weights
    acc = logsumexp.dtype
    components = components_of(acc, mu, logvar, log_weights)
    problem = len(z), *mu.shape
    operands = [operand(t) for t in (z, *components, logsumexp, dlog_prob)]
    shapes = z.shape, mu.shape, mu.shape, mu.shape[:1]
    found = [torch.empty(shape, dtype=acc, device="cpu") for shape in shapes]
    dz, *of_components = (t.data_ptr() for t in found)
    if needs[0]:
        launch_blocks(
            mixture_log_prob_rows_kernel, acc, z, mu, *problem, *operands, dz, cost=2 * COST
        )
    if any(needs[1:]):
        arguments = *problem, *operands, *of_components
        launch_blocks(mixture_log_prob_components_kernel, acc, mu, z, *arguments, cost=2 * COST)
    gradients = zip(found, inputs, needs, strict=True)
    return [g.to(t.dtype) for g, t, needed in gradients if needed]
