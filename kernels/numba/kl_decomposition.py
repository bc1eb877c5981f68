"""The KL in three terms: log q(z|x), log q(z), sum_d log q(z_d) and log p(z), each minus the next.

The joint density sums over latents the numbers that the marginals take one by one. So one pass over
all pairs computes both, and a batch takes one kernel call forward and one backward. A register
holds one number for each of sixteen rows. A thread takes ROWS rows through all components and
latents. The contributions of the rows to a component are summed in parts: each part belongs to one
thread, and the parts are summed in a fixed order.

Inside, logarithms are to base 2, whose exponential takes a third less time.
"""

import math
from typing import Any

import numpy as np
import torch

from ..rows import accumulator
from .compiler import LANES, Restrict, elementwise, helper, jit, kernel
from .device import exp, exp2, fill, finite_or_zero, log
from .launch import RANGE, launch
from .memory import TILE, in_place, load, operand, present, tiles, workspace
from .pairs import (
    DEEP,
    LOG2_E,
    SCALE,
    STRETCH,
    buffer_of,
    columns_of,
    conclude,
    lines_of,
    log_density,
    put_aside,
    to_base_two,
    whole_blocks,
    zeros,
)
from .sums import REASSOCIATED

ROWS = 32  # rows that a thread takes at once: two registers
WIDE = 128  # the most rows at once backward, where a sum over rows takes as long as sixty rows
GROUP = 8  # components at once: they share what is read and written for a row
PARTS = 8  # the most parts of the rows: each has its own gradients of all components in memory
LOG_2 = math.log(2)
COST = 0.2, 0.3  # ns per latent of a pair, forward and backward


@helper
def aligned(size, like):
    """Like ``buffer_of``, but aligned to a register, so that no load crosses a line of the cache.

    Otherwise the forward pass took a quarter longer in one process of three.
    """
    values = np.empty(size + 2 * LANES, like.dtype)
    start = -(values.ctypes.data // values.itemsize) % LANES
    return values[start : start + size + LANES]


@helper
def weigh_stratified(weights, weights_by_gap, component, row, rows):
    """Fill weights [GROUP, size] for a row's own component, the next one, and the others."""
    own, following, others = weights_by_gap
    size = weights.size // GROUP
    fill(weights, others)
    for j in range(GROUP):
        index = component + j - row
        if 0 <= index < size:
            weights[j * size + index] = own
        index = (component + j - 1) % rows - row
        if 0 <= index < size:
            weights[j * size + index] = following


@helper
def components_at(k, stop, cols, mu_ptr, logvar_ptr, buffers):
    """(mu, 1 / std, the constant of log densities), each [GROUP, cols], of components [k, stop)."""
    mus, logvars, inverse, constant = buffers
    mu = lines_of(mu_ptr, k, stop, cols, GROUP, mus, 0.0)
    logvar = lines_of(logvar_ptr, k, stop, cols, GROUP, logvars, 0.0)
    to_base_two(logvar, inverse[: GROUP * cols], constant[: GROUP * cols])
    fill(constant[(stop - k) * cols : GROUP * cols], -np.inf)
    return mu, inverse, constant


@helper
def buffers_of_group(cols, like):
    size = GROUP * cols
    mus, logvars = buffer_of(size, like), buffer_of(size, like)
    return mus, logvars, buffer_of(size, like), buffer_of(size, like)


@elementwise
def add_components(z, mu, inverse, constant, weights, partial, logs, greatest, total):
    """Add GROUP components to the sum of each latent, which is exp2(greatest) total.

    ``logs`` [GROUP, ROWS] become the log densities of all latents together, in float64: the first
    term is a small difference of two such sums.
    """
    cols = z.size // ROWS
    for d in range(cols):
        for i in range(ROWS):
            top = greatest[d * ROWS + i]
            for j in range(GROUP):
                at = j * cols + d
                log_one = log_density(z[d * ROWS + i], mu[at], inverse[at], constant[at])
                partial[j * ROWS + i] += log_one
                top = max(top, log_one)
            shift = finite_or_zero(top)
            sum_ = total[d * ROWS + i] * exp2(greatest[d * ROWS + i] - shift)
            for j in range(GROUP):
                at = j * cols + d
                log_one = log_density(z[d * ROWS + i], mu[at], inverse[at], constant[at])
                sum_ += weights[j * ROWS + i] * exp2(log_one - shift)
            greatest[d * ROWS + i], total[d * ROWS + i] = top, sum_
        if (d + 1) % DEEP == 0 or d + 1 == cols:
            put_aside(partial, logs)


@elementwise
def add_joint(logs, weights, greatest, total):
    """Add GROUP components to the sum for all latents together, and reset ``logs`` to 0."""
    real = total.dtype.type
    for i in range(ROWS):
        top = greatest[i]
        for j in range(GROUP):
            top = max(top, logs[j * ROWS + i])
        shift = finite_or_zero(top)
        sum_ = total[i] * exp2(real(greatest[i] - shift))
        for j in range(GROUP):
            sum_ += weights[j * ROWS + i] * exp2(real(logs[j * ROWS + i] - shift))
            logs[j * ROWS + i] = 0.0
        greatest[i], total[i] = top, sum_


@elementwise
def conclude_joint(greatest, total, joint):
    for i in range(ROWS):
        joint[i] = greatest[i] + np.float64(log(total[i])) * LOG2_E


@jit(pipeline_class=Restrict, **REASSOCIATED)
def own_and_prior(z, mu, logvar):
    """-2 log q(z|x) and -2 log p(z) of a row, without the constant that all densities share."""
    real = z.dtype.type
    own = prior = 0.0
    for d in range(z.size):
        distance = (z[d] - mu[d]) * exp(real(-0.5) * logvar[d])
        own += np.float64(distance * distance + logvar[d])
        prior += np.float64(z[d] * z[d])
    return own, prior


@helper
def example(q, row, cols, buffers):
    """(z, mu, logvar) of one row."""
    line = row, 1, 0, cols
    return load(q[0], line, buffers[0]), load(q[1], line, buffers[1]), load(q[2], line, buffers[2])


@kernel
def kl_decomposition_kernel(
    queue, step, blocks, _, scratch, rows, components, cols, weights_by_gap, q, mixture, mi_address,
    tc_address, dimension_wise_address, logsumexp_address,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    real, size = scratch.dtype.type, cols * ROWS
    pairs = GROUP * ROWS
    weights, partial, logs = scratch[0][:pairs], scratch[1][:pairs], np.empty(pairs)
    fill(partial, 0.0)
    fill(logs, 0.0)
    group_buffers = buffers_of_group(cols, partial)
    lines, block_of_z = buffer_of(size, partial), aligned(size, partial)
    greatest, total = aligned(size, partial)[:size], aligned(size, partial)[:size]
    joint_greatest, joint_total = np.empty(ROWS), scratch[2][:ROWS]
    joint, marginals = np.empty(ROWS), np.empty(ROWS)
    for block, _, _, _ in tiles(queue, step, blocks, 1, 1):
        row, end = block * ROWS, min((block + 1) * ROWS, rows)
        z = columns_of(q[0], row, end, cols, ROWS, lines, 0.0, block_of_z)
        fill(greatest, -np.inf)
        fill(total, 0.0)
        fill(joint_greatest, -np.inf)
        fill(joint_total, 0.0)
        for k in range(0, components, GROUP):
            group = components_at(k, min(k + GROUP, components), cols, *mixture, group_buffers)
            weigh_stratified(weights, weights_by_gap, k, row, rows)
            add_components(z, *group, weights, partial, logs, greatest, total)
            add_joint(logs, weights, joint_greatest, joint_total)
        conclude(greatest, total)
        conclude_joint(joint_greatest, joint_total, joint)
        fill(marginals, 0.0)
        for d in range(cols):
            for i in range(ROWS):
                marginals[i] += total[d * ROWS + i]
        for d in range(cols + 1):
            kept = in_place(logsumexp_address, d * rows + row, end - row, partial)
            for i in range(end - row):
                kept[i] = total[d * ROWS + i] if d < cols else real(joint[i])
        mi = in_place(mi_address, row, end - row, partial)
        tc = in_place(tc_address, row, end - row, partial)
        dimension_wise = in_place(dimension_wise_address, row, end - row, partial)
        for i in range(end - row):
            own, prior = own_and_prior(*example(q, row + i, cols, group_buffers))
            of_all, of_each = LOG_2 * joint[i], LOG_2 * marginals[i]
            mi[i] = real(-0.5 * own - of_all)
            tc[i] = real(of_all - of_each)
            dimension_wise[i] = real(of_each + 0.5 * prior)


@elementwise
def add_logs(z, mu, inverse, constant, logs):
    """Add the log densities over all latents, at z [cols, size], to ``logs`` [GROUP, size]."""
    real = z.dtype.type
    size, cols = logs.size // GROUP, mu.size // GROUP
    deep = cols // DEEP * DEEP
    for j in range(GROUP):
        for first in range(0, deep, DEEP):
            for i in range(size):
                total = real(0.0)
                for d in range(first, first + DEEP):
                    at, here = j * cols + d, np.uint64(d * size) + np.uint64(i)
                    total += log_density(z[here], mu[at], inverse[at], constant[at])
                logs[np.uint64(j * size) + np.uint64(i)] += total
        for d in range(deep, cols):
            at = j * cols + d
            for i in range(size):
                here = np.uint64(d * size) + np.uint64(i)
                log_one = log_density(z[here], mu[at], inverse[at], constant[at])
                logs[np.uint64(j * size) + np.uint64(i)] += log_one


@elementwise
def to_shares(logs, logsumexp, djoint, dmarginals, weights, shares):
    """Turn ``logs``, in float64, into shares of the joint density's upstream gradient.

    ``weights`` are multiplied by the upstream gradient of the marginals.
    """
    size, real = djoint.size, djoint.dtype.type
    for j in range(GROUP):
        for i in range(size):
            at = np.uint64(j * size) + np.uint64(i)
            log_ratio = real(logs[at] - np.float64(logsumexp[i]))
            shares[at] = djoint[i] * (weights[at] * exp2(log_ratio))
            weights[at] *= dmarginals[i]


@jit(pipeline_class=Restrict, **REASSOCIATED)
def add_joint_pulls(z, logsumexp, weights, shares, count, mu, inverse, constant, dz, dmu, dlogvar):
    """Add the gradients of a block of rows [cols, size] and of ``count`` components.

    Latent follows latent, so that the rows of one stay in the first cache.
    """
    real = z.dtype.type
    size, cols = weights.size // GROUP, mu.size // GROUP
    for d in range(cols):
        for j in range(count):
            at = j * cols + d
            scale = inverse[at] * real(1 / SCALE**2)
            of_mu = of_logvar = real(0.0)
            for i in range(size):
                here = np.uint64(d * size) + np.uint64(i)
                pair = np.uint64(j * size) + np.uint64(i)
                distance = z[here] - mu[at]
                scaled = distance * inverse[at]
                log_ratio = (constant[at] - logsumexp[here]) - scaled * scaled
                share = weights[pair] * exp2(log_ratio) + shares[pair]
                # The scaled distance would not do: it may be infinite where the share is 0.
                pull = (share * inverse[at]) * distance
                of_mu += pull
                of_logvar += (pull * scale) * distance - share
                dz[here] -= pull * inverse[at]
            dmu[at] += of_mu * scale
            dlogvar[at] += real(0.5) * of_logvar


@elementwise
def add_own_and_prior(z, mu, logvar, down, dprior, dz, dmu, dlogvar):
    """Add the share of a row's two densities to the gradients."""
    real = z.dtype.type
    for d in range(z.size):
        inverse = exp(real(-0.5) * logvar[d])
        scaled = (z[d] - mu[d]) * inverse
        pull = down * (scaled * inverse)
        dz[d] -= pull + dprior * z[d]
        dmu[d] += pull
        dlogvar[d] += real(0.5) * down * (scaled * scaled - real(1.0))


@helper
def finite_logsumexps(logsumexp_address, row, end, rows, size, result):
    """The log-sum-exps [cols + 1, size]; inf where a density is 0 or a row is missing."""
    for d in range(result.size // size):
        found = in_place(logsumexp_address, d * rows + row, end - row, result)
        for i in range(end - row):
            result[d * size + i] = np.inf if found[i] == -np.inf else found[i]
        for i in range(end - row, size):
            result[d * size + i] = np.inf


@helper
def upstream_of(operand, row, end, size, buffer):
    """The upstream gradients of a block of rows; zeros where there are none."""
    if not present(operand):
        fill(buffer[:size], 0.0)
        return buffer[:size]
    return lines_of(operand, row, end, 1, size, buffer, 0.0)


@kernel
def kl_decomposition_backward_kernel(
    queue, step, parts, _, scratch, rows, part_rows, block_rows, components, cols, weights_by_gap,
    q, mixture, logsumexp_address, upstream, dz_address, dq, partial_components,
):  # fmt: skip
    """``partial_components`` and ``dq`` are pairs of addresses, for mu and logvar.

    The first is for the gradients of the components, [parts, components, cols], or 0 where they are
    not wanted. The second is for those of q, [rows, cols], or 0 where the components are those of
    q.
    """
    scratch = workspace(scratch, queue)
    like, whole, wanted = scratch[0], components * cols, partial_components[0] != 0
    group_buffers, most = buffers_of_group(cols, like), cols * block_rows
    lines, block_of_z = buffer_of(most, like), aligned(most, like)
    logsumexps = aligned(most + block_rows, like)
    all_aside, all_dz = aligned(most, like), zeros(most, like)
    all_logs = np.empty(GROUP * block_rows)
    nowhere = zeros(cols * GROUP, like), zeros(cols * GROUP, like)
    for part, _, _, _ in tiles(queue, step, parts, 1, 1):
        dmu, dlogvar = nowhere
        if wanted:
            dmu = in_place(partial_components[0], part * whole, whole, like)
            dlogvar = in_place(partial_components[1], part * whole, whole, like)
        fill(dmu, 0.0)
        fill(dlogvar, 0.0)
        after = min((part + 1) * part_rows, rows)
        for row in range(part * part_rows, after, block_rows):
            end = min(row + block_rows, after)
            size = whole_blocks(end - row, ROWS)
            weights, shares = scratch[0][: GROUP * size], scratch[1][: GROUP * size]
            logs = all_logs[: GROUP * size]
            aside, dz = all_aside[: cols * size], all_dz[: cols * size]
            z = columns_of(q[0], row, end, cols, size, lines, 0.0, block_of_z)
            logsumexp = logsumexps[: (cols + 1) * size]
            finite_logsumexps(logsumexp_address, row, end, rows, size, logsumexp)
            dmi = upstream_of(upstream[0], row, end, size, scratch[2])
            dtc = upstream_of(upstream[1], row, end, size, scratch[3])
            ddimension_wise = upstream_of(upstream[2], row, end, size, scratch[4])
            djoint, dmarginals = scratch[5][:size], scratch[6][:size]
            for i in range(size):
                djoint[i], dmarginals[i] = dtc[i] - dmi[i], ddimension_wise[i] - dtc[i]
            fill(dz, 0.0)
            fill(aside, 0.0)
            for k in range(0, components, GROUP):
                stop = min(k + GROUP, components)
                group = components_at(k, stop, cols, *mixture, group_buffers)
                weigh_stratified(weights, weights_by_gap, k, row, rows)
                fill(logs, 0.0)
                add_logs(z, *group, logs)
                of_all = logsumexp[cols * size :]
                to_shares(logs, of_all, djoint, dmarginals, weights, shares)
                here = slice(k * cols, stop * cols) if wanted else slice(0, cols * GROUP)
                of_components = dmu[here], dlogvar[here]
                add_joint_pulls(
                    z, logsumexp, weights, shares, stop - k, *group, aside, *of_components
                )
                if (k + GROUP) % STRETCH == 0 or stop == components:
                    put_aside(aside, dz)
            for i in range(end - row):
                found = in_place(dz_address, (row + i) * cols, cols, like)
                for d in range(cols):
                    found[d] = dz[d * size + i] * like.dtype.type(1 / SCALE**2)
                here = slice((row + i) * cols, (row + i + 1) * cols) if wanted else slice(0, cols)
                of_mu, of_logvar = dmu[here], dlogvar[here]
                if dq[0] != 0:
                    of_mu = in_place(dq[0], (row + i) * cols, cols, like)
                    of_logvar = in_place(dq[1], (row + i) * cols, cols, like)
                    fill(of_mu, 0.0)
                    fill(of_logvar, 0.0)
                given = example(q, row + i, cols, group_buffers)
                add_own_and_prior(*given, dmi[i], -ddimension_wise[i], found, of_mu, of_logvar)


@kernel
def sum_of_parts_kernel(queue, step, rows, cols, scratch, parts, parts_address, sum_address):
    """Sum [parts, rows, cols] over the parts, to [rows, cols]."""
    like = scratch[0]
    for row, count, col, width in tiles(queue, step, rows, cols):
        start, size = row * cols + col, count * width
        total = in_place(sum_address, start, size, like)
        fill(total, 0.0)
        for part in range(parts):
            put_aside(in_place(parts_address, part * rows * cols + start, size, like), total)


def weights_of(components, dataset_size):
    """The weights of a row's own component, of the next one, of each other: equal or stratified."""
    if dataset_size is None:
        return (1 / components,) * 3
    others = components - 1
    return 1 / dataset_size, (dataset_size - others) / (dataset_size * others), 1 / others


def kl_decomposition(z, mu, logvar, all_mu, all_logvar, dataset_size):
    """The three terms, each [rows], then the log densities that backward needs [cols + 1, rows]."""
    acc = accumulator(z, mu, logvar, all_mu, all_logvar)
    components = (mu, logvar) if all_mu is None else (all_mu, all_logvar)
    rows, cols = z.shape
    terms = [torch.empty(rows, dtype=acc, device="cpu") for _ in range(3)]
    logsumexp = torch.empty((cols + 1, rows), dtype=acc, device="cpu")
    launch(
        kl_decomposition_kernel,
        acc,
        -(-rows // ROWS),
        ROWS * components[0].numel(),
        rows,
        *components[0].shape,
        weights_of(len(components[0]), dataset_size),
        tuple(map(operand, (z, mu, logvar))),
        tuple(map(operand, components)),
        *(t.data_ptr() for t in (*terms, logsumexp)),
        cost=COST[0],
    )
    return [*terms, logsumexp]


def kl_decomposition_backward(
    dmi, dtc, ddimension_wise, z, mu, logvar, all_mu, all_logvar, dataset_size, logsumexp, needs
):
    """The wanted gradients, from those of the terms, each [rows] or None."""
    acc, of_batch, logsumexp = logsumexp.dtype, all_mu is None, logsumexp.contiguous()
    components = (mu, logvar) if of_batch else (all_mu, all_logvar)
    (rows, cols), (count, _) = z.shape, components[0].shape
    parts, part_rows, block_rows = parts_of(rows, count * cols * COST[1])
    dz = torch.empty(z.shape, dtype=acc, device="cpu")
    dq: Any = (None, None)
    partial_components: Any = (None, None)
    if not of_batch:
        dq = [torch.empty(z.shape, dtype=acc, device="cpu") for _ in range(2)]
    if any(needs[1:3] if of_batch else needs[3:]):
        partial_components = [
            torch.empty((parts, count, cols), dtype=acc, device="cpu") for _ in range(2)
        ]
    launch(
        kl_decomposition_backward_kernel,
        acc,
        parts,
        part_rows * count * cols,
        rows,
        part_rows,
        block_rows,
        count,
        cols,
        weights_of(count, dataset_size),
        tuple(map(operand, (z, mu, logvar))),
        tuple(map(operand, components)),
        logsumexp.data_ptr(),
        tuple(map(operand, (dmi, dtc, ddimension_wise))),
        dz.data_ptr(),
        *(
            tuple(0 if t is None else t.data_ptr() for t in pair)
            for pair in (dq, partial_components)
        ),
        cost=COST[1],
    )
    of_components = map(sum_of_parts, partial_components)
    found = (dz, *of_components, *dq) if of_batch else (dz, *dq, *of_components)
    inputs = z, mu, logvar, all_mu, all_logvar
    gradients = zip(found, inputs, needs, strict=True)
    return [g.to(t.dtype) for g, t, needed in gradients if needed]


def parts_of(rows, work):
    """(how many parts, rows of a part, rows of a block), for ``work`` ns per row.

    They depend on sizes alone. If they depended on the number of threads, results would too.
    """
    block = min(WIDE, whole_blocks.py_func(-(-rows // 2), ROWS))
    blocks = -(-rows // block)
    parts = max(1, min(PARTS, blocks, int(rows * work / RANGE)))
    part = -(-blocks // parts) * block
    return -(-rows // part), part, block


def sum_of_parts(parts):
    """The sum [rows, cols] of [parts, rows, cols], or None for None."""
    if parts is None or len(parts) == 1:
        return None if parts is None else parts[0]
    number, *shape = parts.shape
    total = torch.empty(shape, dtype=parts.dtype, device="cpu")
    pointers = parts.data_ptr(), total.data_ptr()
    # torch would leave this sum to OpenMP, which hangs in a forked child.
    cost = 0.1 * number
    launch(sum_of_parts_kernel, parts.dtype, *shape, number, *pointers, cost=cost, tile=TILE)
    return total
