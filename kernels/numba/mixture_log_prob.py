"""Log-density of a mixture of diagonal Gaussians: log sum_k exp(log_weights_k) N(z; mu_k, s_k).

A register holds one number of sixteen rows or of sixteen components: so no sum over latents, rows
or components crosses its lanes. Forward and the gradient of z take blocks of BLOCK rows and go
through the components; the gradients of the components take blocks of components and go through
the rows. Thus each result is one thread's, in one order. What compares every row with every
component stays in a few registers, and is computed again in each pass.

Differences are direct: z^2 - 2 z mu + mu^2 loses the digits where means are far from the origin.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import carray

from ..rows import accumulator
from . import memory
from .compiler import elementwise, helper, inline, kernel, pointer
from .device import exp, exp_scaled, fill, log
from .launch import launch
from .memory import load, operand, target, tiles, workspace
from .sums import add_rows

BLOCK = 64  # rows, or components, that a loop takes at once: four registers
FEW = 4  # of the others, which share what is read and written for them
DEEP = 8  # latents that are added up by themselves: one sum of 64 rounds twice as much
STRETCH = 256  # of the others, after which sums are put aside, to round as torch's do
COST = 0.03  # ns for a latent of a pair


@inline
def square(a, b, root):
    distance = (a - b) * root
    return distance * distance


@elementwise
def squares_of_rows(z, mu, inverse, result):
    """|(z - mu) / std|^2 of one component, for a block of rows z [cols, BLOCK]."""
    real = result.dtype.type
    cols, deep = mu.size, mu.size // DEEP * DEEP
    for i in range(BLOCK):
        result[i] = real(0.0)
    for first in range(0, deep, DEEP):
        for i in range(BLOCK):
            total = real(0.0)
            for d in range(first, first + DEEP):
                total += square(z[d * BLOCK + i], mu[d], inverse[d])
            result[i] += total
    for d in range(deep, cols):
        for i in range(BLOCK):
            result[i] += square(z[d * BLOCK + i], mu[d], inverse[d])


@elementwise
def squares_of_components(z, mu, inverse, result):
    """The same of one row, for a block of components [cols, BLOCK]."""
    real = result.dtype.type
    cols, deep = z.size, z.size // DEEP * DEEP
    for i in range(BLOCK):
        result[i] = real(0.0)
    for first in range(0, deep, DEEP):
        for i in range(BLOCK):
            total = real(0.0)
            for d in range(first, first + DEEP):
                total += square(z[d], mu[d * BLOCK + i], inverse[d * BLOCK + i])
            result[i] += total
    for d in range(deep, cols):
        for i in range(BLOCK):
            result[i] += square(z[d], mu[d * BLOCK + i], inverse[d * BLOCK + i])


@inline
def raise_one(squares, index, excess):
    """Of stratified weights: one of a block, if it is there, counts exp(excess) times as much."""
    if 0 <= index < BLOCK:
        squares[index] -= squares.dtype.type(2.0 * excess)


@elementwise
def to_logs(constant, logs):
    """From squares to log densities, but for a constant of all."""
    real = logs.dtype.type
    for i in range(BLOCK):
        logs[i] = constant - real(0.5) * logs[i]


@elementwise
def rise(logs, greatest, total, shift):
    """The greatest with FEW components more: sum_k exp(log_k) = exp(shift) total."""
    real = logs.dtype.type
    for i in range(BLOCK):
        top = greatest[i]
        for j in range(FEW):
            top = max(top, logs[j * BLOCK + i])
        # Where nothing is possible yet, not -inf - -inf.
        shift[i] = top if top > real(-np.inf) else real(0.0)
        total[i] *= exp(greatest[i] - shift[i])
        greatest[i] = top


@elementwise
def add_exps(logs, shift, total):
    for i in range(BLOCK):
        total[i] += exp(logs[i] - shift[i])


@elementwise
def conclude(greatest, total, result):
    for i in range(BLOCK):
        result[i] = greatest[i] + log(total[i])


@elementwise
def weigh_rows(constant, logsumexp, upstream, weights):
    """From squares to upstream gradients times responsibilities, of a component."""
    real = weights.dtype.type
    for i in range(BLOCK):
        weights[i] = upstream[i] * exp((constant - real(0.5) * weights[i]) - logsumexp[i])


@elementwise
def weigh_components(constant, logsumexp, upstream, weights):
    """The same of a row."""
    real = weights.dtype.type
    for i in range(BLOCK):
        weights[i] = upstream * exp((constant[i] - real(0.5) * weights[i]) - logsumexp)


@elementwise
def add_pulls(z, mu, inverse, weights, dz):
    """The gradient of a block of rows from FEW components [FEW, cols]."""
    cols = dz.size // BLOCK
    for d in range(cols):
        for i in range(BLOCK):
            pull = dz[d * BLOCK + i]
            for j in range(FEW):
                # 1 / std twice, not its square, which overflows where the product with it does not;
                # nor of the distance, which may be infinite so where the weight is 0.
                root, distance = inverse[j * cols + d], mu[j * cols + d] - z[d * BLOCK + i]
                pull += ((weights[j * BLOCK + i] * root) * distance) * root
            dz[d * BLOCK + i] = pull


@elementwise
def add_moments(z, mu, weights, first, second):
    """Of z - mu, for a block of components from FEW rows [FEW, cols]."""
    cols = first.size // BLOCK
    for d in range(cols):
        for i in range(BLOCK):
            one, two = first[d * BLOCK + i], second[d * BLOCK + i]
            for j in range(FEW):
                distance = z[j * cols + d] - mu[d * BLOCK + i]
                weighted = weights[j * BLOCK + i] * distance
                one += weighted
                two += weighted * distance
            first[d * BLOCK + i], second[d * BLOCK + i] = one, two


@elementwise
def add_weights(weights, result):
    for i in range(BLOCK):
        for j in range(FEW):
            result[i] += weights[j * BLOCK + i]


@elementwise
def put_aside(partial, result):
    """result += partial, and partial = 0."""
    real = partial.dtype.type
    for i in range(result.size):
        result[i] += partial[i]
        partial[i] = real(0.0)


@inline
def rows_at(address, first, count, cols, like):
    """Rows [first, first + count) of what lies at an address, as one flat array."""
    return carray(pointer(address + like.itemsize * first * cols), count * cols, like.dtype)


@helper
def zeros(size, like):
    values = np.empty(size, like.dtype)
    fill(values, 0.0)
    return values


@kernel
def precision_kernel(queue, step, rows, cols, scratch, logvar_ptr, inverse_ptr, half_ptr):
    """1 / std, and -1/2 of the sum of the log variances."""
    scratch = workspace(scratch, queue)
    partial = np.empty(memory.BLOCK)
    for tile in tiles(queue, step, rows, cols):
        logvar, inverse = load(logvar_ptr, tile, scratch[0]), target(inverse_ptr, tile, scratch[1])
        exp_scaled(logvar, -0.5, inverse)
        add_rows(logvar, tile, cols, -0.5, partial, half_ptr)


@kernel
def mixture_log_prob_kernel(
    queue, step, blocks, _, scratch, components, cols, batch, own, following, z_ptr, mu_ptr,
    inverse_ptr, constant_ptr, logsumexp_ptr,
):  # fmt: skip
    logs = zeros(FEW * BLOCK, scratch)
    greatest, total, shift = zeros(BLOCK, scratch), zeros(BLOCK, scratch), zeros(BLOCK, scratch)
    constant = rows_at(constant_ptr, 0, components, 1, scratch)
    for block, _, _, _ in tiles(queue, step, blocks, 1, 1):
        z = rows_at(z_ptr, block * BLOCK, BLOCK, cols, scratch)
        fill(greatest, -np.inf)
        fill(total, 0.0)
        for k in range(0, components, FEW):
            for j in range(FEW):
                mu = rows_at(mu_ptr, k + j, 1, cols, scratch)
                inverse = rows_at(inverse_ptr, k + j, 1, cols, scratch)
                here = logs[j * BLOCK : (j + 1) * BLOCK]
                squares_of_rows(z, mu, inverse, here)
                raise_one(here, k + j - block * BLOCK, own)
                raise_one(here, (k + j - 1) % batch - block * BLOCK, following)
                to_logs(constant[k + j], here)
            rise(logs, greatest, total, shift)
            for j in range(FEW):
                add_exps(logs[j * BLOCK : (j + 1) * BLOCK], shift, total)
        conclude(greatest, total, rows_at(logsumexp_ptr, block * BLOCK, BLOCK, 1, scratch))


@kernel
def mixture_log_prob_rows_kernel(
    queue, step, blocks, _, scratch, components, cols, batch, own, following, z_ptr, mu_ptr,
    inverse_ptr, constant_ptr, logsumexp_ptr, upstream_ptr, dz_ptr,
):  # fmt: skip
    """dz [blocks, cols, BLOCK], of zeros."""
    weights, partial = zeros(FEW * BLOCK, scratch), zeros(cols * BLOCK, scratch)
    constant = rows_at(constant_ptr, 0, components, 1, scratch)
    for block, _, _, _ in tiles(queue, step, blocks, 1, 1):
        z = rows_at(z_ptr, block * BLOCK, BLOCK, cols, scratch)
        dz = rows_at(dz_ptr, block * BLOCK, BLOCK, cols, scratch)
        logsumexp = rows_at(logsumexp_ptr, block * BLOCK, BLOCK, 1, scratch)
        upstream = rows_at(upstream_ptr, block * BLOCK, BLOCK, 1, scratch)
        for k in range(0, components, FEW):
            for j in range(FEW):
                mu = rows_at(mu_ptr, k + j, 1, cols, scratch)
                inverse = rows_at(inverse_ptr, k + j, 1, cols, scratch)
                here = weights[j * BLOCK : (j + 1) * BLOCK]
                squares_of_rows(z, mu, inverse, here)
                raise_one(here, k + j - block * BLOCK, own)
                raise_one(here, (k + j - 1) % batch - block * BLOCK, following)
                weigh_rows(constant[k + j], logsumexp, upstream, here)
            mu = rows_at(mu_ptr, k, FEW, cols, scratch)
            inverse = rows_at(inverse_ptr, k, FEW, cols, scratch)
            add_pulls(z, mu, inverse, weights, partial)
            if (k + FEW) % STRETCH == 0 or k + FEW == components:
                put_aside(partial, dz)


@kernel
def mixture_log_prob_components_kernel(
    queue, step, blocks, _, scratch, rows, cols, batch, own, following, z_ptr, mu_ptr, inverse_ptr,
    constant_ptr, logsumexp_ptr, upstream_ptr, zeroth_ptr, first_ptr, second_ptr,
):  # fmt: skip
    """The moments of z - mu, weighted, of each component; of zeros."""
    weights, none = zeros(FEW * BLOCK, scratch), zeros(BLOCK, scratch)
    one, two = zeros(cols * BLOCK, scratch), zeros(cols * BLOCK, scratch)
    logsumexp = rows_at(logsumexp_ptr, 0, rows, 1, scratch)
    upstream = rows_at(upstream_ptr, 0, rows, 1, scratch)
    for block, _, _, _ in tiles(queue, step, blocks, 1, 1):
        mu = rows_at(mu_ptr, block * BLOCK, BLOCK, cols, scratch)
        inverse = rows_at(inverse_ptr, block * BLOCK, BLOCK, cols, scratch)
        constant = rows_at(constant_ptr, block * BLOCK, BLOCK, 1, scratch)
        for row in range(0, rows, FEW):
            for j in range(FEW):
                z = rows_at(z_ptr, row + j, 1, cols, scratch)
                here = weights[j * BLOCK : (j + 1) * BLOCK]
                squares_of_components(z, mu, inverse, here)
                raise_one(here, row + j - block * BLOCK, own)
                raise_one(here, (row + j + 1) % batch - block * BLOCK, following)
                weigh_components(constant, logsumexp[row + j], upstream[row + j], here)
            add_moments(rows_at(z_ptr, row, FEW, cols, scratch), mu, weights, one, two)
            add_weights(weights, none)
            if (row + FEW) % STRETCH == 0 or row + FEW == rows:
                put_aside(one, rows_at(first_ptr, block * BLOCK, BLOCK, cols, scratch))
                put_aside(two, rows_at(second_ptr, block * BLOCK, BLOCK, cols, scratch))
                put_aside(none, rows_at(zeroth_ptr, block * BLOCK, BLOCK, 1, scratch))


def multiple(size, of):
    return -(-size // of) * of


def padded(tensor, rows, value=0.0):
    """As many rows, the last ones of this value."""
    missing = rows - tensor.shape[0]
    padding = (0, missing) if tensor.dim() == 1 else (0, 0, 0, missing)
    return F.pad(tensor, padding, value=value) if missing else tensor.contiguous()


def in_blocks(tensor, value=0.0):
    """[rows, cols] as [blocks, cols, BLOCK], with ``value`` for what is missing."""
    rows, cols = tensor.shape
    full = padded(tensor, multiple(rows, BLOCK), value)
    return full.view(-1, BLOCK, cols).transpose(1, 2).contiguous()


def from_blocks(tensor, rows):
    cols = tensor.shape[1]
    return tensor.transpose(1, 2).reshape(-1, cols)[:rows]


def in_one_dtype(acc, *tensors):
    return [None if t is None else t.detach().to(acc) for t in tensors]


def weights_of(components, dataset_size):
    """Of a row in (its own component, the next one, the others): all alike, or stratified."""
    if dataset_size is None:
        return (1 / components,) * 3
    others = components - 1
    return 1 / dataset_size, (dataset_size - others) / (dataset_size * others), 1 / others


def pairs_of(z, mu, dataset_size):
    """What all kernels take of the weights: the batch, and by how much two logarithms exceed."""
    own, following, others = weights_of(len(mu), dataset_size)
    return len(z), math.log(own / others), math.log(following / others)


def components_of(mu, logvar, log_weights, dataset_size):
    """(mu, 1 / std, what the log densities have beside squares)."""
    inverse, constant = mu.new_empty(mu.shape), mu.new_empty(len(mu))
    tensors = logvar, inverse, constant
    # Not by torch, which gives an exp of 2048 elements to OpenMP: that hangs in a forked child.
    launch(precision_kernel, mu.dtype, *mu.shape, *map(operand, tensors), cost=0.2)
    uniform = math.log(weights_of(len(mu), dataset_size)[-1])
    constant = constant + (uniform if log_weights is None else log_weights)
    return mu, inverse, constant


def by_few(mu, inverse, constant):
    """Components in FEWs, the last ones impossible."""
    count = multiple(len(mu), FEW)
    # 1 / std is 1: of an infinite z with 0 the squares would be NaN.
    return padded(mu, count), padded(inverse, count, 1.0), padded(constant, count, -math.inf)


def mixture_log_prob(z, mu, logvar, log_weights, dataset_size):
    """[log-densities [rows], what backward needs of them [rows]]."""
    acc = accumulator(z, mu, logvar, log_weights)
    rows, cols = z.shape
    z, *mixture = in_one_dtype(acc, z, mu, logvar, log_weights)
    mu, inverse, constant = by_few(*components_of(*mixture, dataset_size))
    blocks = in_blocks(z)
    logsumexp = torch.empty(len(blocks) * BLOCK, dtype=acc)
    tensors = blocks, mu, inverse, constant, logsumexp
    launch(
        mixture_log_prob_kernel,
        acc,
        len(blocks),
        BLOCK * mu.numel(),
        *mu.shape,
        *pairs_of(z, mixture[0], dataset_size),
        *(t.data_ptr() for t in tensors),
        cost=COST,
    )
    logsumexp = logsumexp[:rows].contiguous()
    return [logsumexp - 0.5 * cols * math.log(2 * math.pi), logsumexp]


def mixture_log_prob_backward(
    dlog_prob, z, mu, logvar, log_weights, dataset_size, logsumexp, needs
):
    """The wanted gradients, from dlog_prob [rows]."""
    inputs = z, mu, logvar, log_weights
    acc = accumulator(*inputs)
    z, *mixture = in_one_dtype(acc, *inputs)
    components = components_of(*mixture, dataset_size)
    pairs = pairs_of(z, mu, dataset_size)
    upstream = dlog_prob.to(acc)
    # A row that is impossible of all components pulls at none.
    logsumexp = logsumexp.masked_fill(logsumexp == -math.inf, math.inf)
    found: list[Any] = [None] * 4
    if needs[0]:
        found[0] = gradient_of_rows(z, components, pairs, logsumexp, upstream)
    if any(needs[1:]):
        found[1:] = gradients_of_components(z, components, pairs, logsumexp, upstream)
    gradients = zip(found, inputs, needs, strict=True)
    return [g.to(t.dtype).contiguous() for g, t, needed in gradients if needed]


def gradient_of_rows(z, components, pairs, logsumexp, upstream):
    rows = len(z)
    z, (mu, inverse, constant) = in_blocks(z), by_few(*components)
    logsumexp = padded(logsumexp, len(z) * BLOCK, math.inf)
    upstream = padded(upstream, len(z) * BLOCK)
    dz = torch.zeros_like(z)
    tensors = z, mu, inverse, constant, logsumexp, upstream, dz
    launch(
        mixture_log_prob_rows_kernel,
        z.dtype,
        len(z),
        BLOCK * mu.numel(),
        *mu.shape,
        *pairs,
        *(t.data_ptr() for t in tensors),
        cost=2 * COST,
    )
    return from_blocks(dz, rows)


def gradients_of_components(z, components, pairs, logsumexp, upstream):
    mu, inverse, constant = components
    count, cols = mu.shape
    rows = multiple(len(z), FEW)
    z, logsumexp = padded(z, rows), padded(logsumexp, rows, math.inf)
    upstream = padded(upstream, rows)
    blocks = [in_blocks(mu), in_blocks(inverse, 1.0)]
    constant = padded(constant, len(blocks[0]) * BLOCK, -math.inf)
    moments = [torch.zeros_like(t) for t in (constant, *blocks)]
    tensors = z, *blocks, constant, logsumexp, upstream, *moments
    launch(
        mixture_log_prob_components_kernel,
        z.dtype,
        len(blocks[0]),
        BLOCK * z.numel(),
        rows,
        cols,
        *pairs,
        *(t.data_ptr() for t in tensors),
        cost=2 * COST,
    )
    zeroth = moments[0][:count]
    first, second = (from_blocks(t, count) for t in moments[1:])
    dlogvar = 0.5 * (second * inverse * inverse - zeroth[:, None])
    return first * inverse * inverse, dlogvar, zeroth
