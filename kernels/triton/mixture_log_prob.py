"""Log-density of a mixture of diagonal Gaussians: log sum_k exp(log_weights_k) N(z; mu_k, s_k).

A program owns some rows and goes through the components, or owns some components and goes through
the rows (``pairs``). It compares one tile of the two at a time, [others, own], latent by latent.
The squared distances stay in registers: no pair reaches memory, and backward computes them again.
Each result is the sum of what several programs found, always in the same order.

Operands are [cols, rows] and [cols, components], padded to whole tiles, because the masks of loads
would be a fifth of the instructions. The padding of the last tile has density 0 (a constant of
-inf), or no upstream gradient.

Squared distances are computed from differences: z^2 - 2 z mu + mu^2 loses digits where the means
are far from the origin.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

from ..rows import accumulator
from .device import exp_scaled
from .pairs import (
    add_exps,
    batch_of,
    excess_log_weight,
    in_tiles,
    launch_backward,
    launch_pairs,
    log_weights_of,
    own_and_others,
)

CHUNK = tl.constexpr(64)  # latents that are added up one by one


@triton.jit
def log_densities(
    z_ptr, mu_ptr, inverse_ptr, constant_ptr, row, component, rows, components, cols, dataset_size,
    batch, BLOCK_OTHERS: tl.constexpr, BLOCK_OWN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Log densities of a tile [BLOCK_OTHERS, BLOCK_OWN], up to a shared constant.

    The sum over each CHUNK of latents starts with the rounding error of the sum before it. The
    error thus does not grow with the number of latents, and no more registers are needed.
    """
    squares = tl.zeros((BLOCK_OTHERS, BLOCK_OWN), ACC)
    chunk = tl.zeros((BLOCK_OTHERS, BLOCK_OWN), ACC)
    for first in range(0, cols, CHUNK):
        for _ in range(first, tl.minimum(first + CHUNK, cols)):
            distance = tl.load(z_ptr + row) - tl.load(mu_ptr + component)
            distance *= tl.load(inverse_ptr + component)
            chunk += distance * distance
            z_ptr += rows
            mu_ptr += components
            inverse_ptr += components
        total = squares + chunk
        # The error of an infinite sum would be NaN.
        chunk = tl.where(total < float("inf"), chunk - (total - squares), 0.0)
        squares = total
    logs = tl.load(constant_ptr + component) - 0.5 * squares
    if dataset_size is not None:
        logs += excess_log_weight(row, component, dataset_size, batch, ACC)
    return logs


@triton.jit
def mixture_log_prob_kernel(
    z_ptr,
    mu_ptr,
    inverse_ptr,
    constant_ptr,
    logsumexp_ptr,
    dataset_size,
    batch,
    rows,
    components,
    stretch,
    cols,
    BLOCK_OTHERS: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    rows, components, _latent, row, start, end, other = own_and_others(
        rows, components, stretch, BLOCK_OTHERS, BLOCK_OWN
    )
    greatest = tl.full((1, BLOCK_OWN), float("-inf"), ACC)
    total = tl.zeros((1, BLOCK_OWN), ACC)
    for first in range(start, end, BLOCK_OTHERS):
        logs = log_densities(
            z_ptr, mu_ptr, inverse_ptr, constant_ptr, row, first + other, rows, components, cols,
            dataset_size, batch, BLOCK_OTHERS, BLOCK_OWN, ACC,
        )  # fmt: skip
        greatest, total = add_exps(logs, greatest, total, False, PTX)
    where = logsumexp_ptr + tl.program_id(1).to(tl.int64) * rows + row
    tl.store(where, greatest + tl.log(total))


@triton.jit
def mixture_log_prob_rows_kernel(
    z_ptr,
    mu_ptr,
    inverse_ptr,
    constant_ptr,
    logsumexp_ptr,
    upstream_ptr,
    dz_ptr,
    dataset_size,
    batch,
    rows,
    components,
    stretch,
    cols,
    BLOCK_OTHERS: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    """Accumulate dz; the output must be zero-initialised."""
    rows, components, _latent, row, start, end, other = own_and_others(
        rows, components, stretch, BLOCK_OTHERS, BLOCK_OWN
    )
    logsumexp, upstream = tl.load(logsumexp_ptr + row), tl.load(upstream_ptr + row)
    dz_ptr += tl.program_id(1).to(tl.int64) * cols * rows
    for first in range(start, end, BLOCK_OTHERS):
        component = first + other
        logs = log_densities(
            z_ptr, mu_ptr, inverse_ptr, constant_ptr, row, component, rows, components, cols,
            dataset_size, batch, BLOCK_OTHERS, BLOCK_OWN, ACC,
        )  # fmt: skip
        weights = upstream * exp_scaled(logs - logsumexp, 1.0, PTX)
        z, mu, inverse, dz = z_ptr, mu_ptr, inverse_ptr, dz_ptr
        for _ in range(cols):
            # 1 / std is multiplied in twice, because its square may overflow where this does not.
            # The weight comes first: it may be 0 where distance / std is infinite.
            root = tl.load(inverse + component)
            distance = tl.load(mu + component) - tl.load(z + row)
            pull = tl.sum(((weights * root) * distance) * root, axis=0)[None, :]
            tl.store(dz + row, tl.load(dz + row) + pull)
            z += rows
            mu += components
            inverse += components
            dz += rows
        tl.debug_barrier()  # what one thread wrote another may read for the next components


@triton.jit
def mixture_log_prob_components_kernel(
    z_ptr,
    mu_ptr,
    inverse_ptr,
    constant_ptr,
    logsumexp_ptr,
    upstream_ptr,
    zeroth_ptr,
    first_ptr,
    second_ptr,
    dataset_size,
    batch,
    components,
    rows,
    stretch,
    cols,
    BLOCK_OTHERS: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    """Accumulate, per component, the weighted moments of z - mu; outputs start at zero."""
    components, rows, _latent, component, start, end, other = own_and_others(
        components, rows, stretch, BLOCK_OTHERS, BLOCK_OWN
    )
    stage = tl.program_id(1).to(tl.int64) * components
    first_ptr += stage * cols
    second_ptr += stage * cols
    zeroth = tl.zeros((1, BLOCK_OWN), ACC)
    for begin in range(start, end, BLOCK_OTHERS):
        row = begin + other
        logs = log_densities(
            z_ptr, mu_ptr, inverse_ptr, constant_ptr, row, component, rows, components, cols,
            dataset_size, batch, BLOCK_OTHERS, BLOCK_OWN, ACC,
        )  # fmt: skip
        logsumexp, upstream = tl.load(logsumexp_ptr + row), tl.load(upstream_ptr + row)
        weights = upstream * exp_scaled(logs - logsumexp, 1.0, PTX)
        zeroth += tl.sum(weights, axis=0)[None, :]
        z, mu, first, second = z_ptr, mu_ptr, first_ptr, second_ptr
        for _ in range(cols):
            distance = tl.load(z + row) - tl.load(mu + component)
            weighted = weights * distance
            one = tl.sum(weighted, axis=0)[None, :]
            two = tl.sum(weighted * distance, axis=0)[None, :]
            tl.store(first + component, tl.load(first + component) + one)
            tl.store(second + component, tl.load(second + component) + two)
            z += rows
            mu += components
            first += components
            second += components
        tl.debug_barrier()  # what one thread wrote another may read for the next rows
    tl.store(zeroth_ptr + stage + component, zeroth)


def operands(z, mu, logvar, log_weights, dataset_size):
    """(z, mu, 1 / std, each [cols, rows or components]; the constant of each log density)."""
    acc = accumulator(z, mu, logvar, log_weights)
    (rows, _), (components, _) = z.shape, mu.shape
    log_weights = log_weights_of(components, log_weights, dataset_size, acc)
    constant = log_weights - 0.5 * logvar.to(acc).sum(1)
    inverse = torch.exp(-0.5 * logvar.to(acc))
    return [
        in_tiles(z.t(), rows, acc),
        in_tiles(mu.t(), components, acc),
        in_tiles(inverse.t(), components, acc, 1.0),  # 0 would make NaN of an infinite z
        in_tiles(constant, components, acc, -math.inf),
    ]


def mixture_log_prob(z, mu, logvar, log_weights, dataset_size=None):
    """[log-densities [rows], the log-sum-exps that backward needs [rows]].

    With ``dataset_size`` the components are a batch of such a data set, in the order of z, and
    their weights are stratified. Only ``kl_decomposition`` asks for this.
    """
    rows, cols = z.shape
    tensors = operands(z, mu, logvar, log_weights, dataset_size)
    wide, components = tensors[0].shape[1], tensors[1].shape[1]
    logsumexp = tensors[0].new_empty(0)
    if rows:
        (logsumexp,), stages = launch_pairs(
            mixture_log_prob_kernel,
            wide,
            components,
            tensors,
            [(wide,)],
            batch_of(z, dataset_size),
        )
        logsumexp = torch.logsumexp(logsumexp, 0) if stages > 1 else logsumexp
    logsumexp = logsumexp[:rows].clone()
    return [logsumexp - 0.5 * cols * math.log(2 * math.pi), logsumexp]


def mixture_log_prob_backward(
    dlog_prob, z, mu, logvar, log_weights, logsumexp, needs, dataset_size=None
):
    """The wanted gradients, from dlog_prob [rows]."""
    inputs, rows, components = (z, mu, logvar, log_weights), len(z), len(mu)
    if not rows:
        return [torch.zeros_like(t) for t, n in zip(inputs, needs, strict=True) if n]
    tensors, scalars = operands(*inputs, dataset_size), batch_of(z, dataset_size)
    kernels = mixture_log_prob_rows_kernel, mixture_log_prob_components_kernel
    pulls, moments = launch_backward(*kernels, tensors, logsumexp, dlog_prob, scalars, needs)
    found: list[Any] = [None] * 4
    if pulls is not None:
        found[0] = pulls[:, :rows].t()
    if moments is not None:
        zeroth, first, second = moments
        inverse = tensors[2]
        each = first * inverse * inverse, 0.5 * (second * inverse * inverse - zeroth), zeroth
        found[1:] = (t[..., :components].t() for t in each)
    gradients = zip(found, inputs, needs, strict=True)
    return [g.to(t.dtype).contiguous() for g, t, needed in gradients if needed]
