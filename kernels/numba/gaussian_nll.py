"""Diagonal-Gaussian negative log-density: -log N(x; recon, diag exp logvar), row sums.

One kernel serves forward (``nll``), backward (``dnll`` in, gradients out) and both at once, with
``scale`` for the gradient of every row. ``sign`` = -1 turns it into the log-density.
"""

import math

import numpy as np
import torch

from ..rows import accumulator, empty_like_rows
from .compiler import elementwise, helper, kernel
from .device import exp_normal, exp_scaled, fill
from .launch import launch, samples_of
from .memory import (
    BLOCK,
    load,
    operand,
    present,
    sample_of,
    spread,
    store,
    target,
    tiles,
    workspace,
)
from .sums import add_rows, row_sums

LOG_2PI = math.log(2 * math.pi)


@row_sums
def nll_of_fixed_std(tensors, i):
    recon, x, logvar, inverse_std = tensors
    residual = (x[i] - recon[i]) * inverse_std
    return residual * residual + (logvar + type(residual)(LOG_2PI))


@row_sums
def nll_of_std_a_row(tensors, i):
    recon, x, logvar, inverse_std = tensors
    residual = (x[i] - recon[i]) * inverse_std[i]
    return residual * residual + (logvar[i] + type(residual)(LOG_2PI))


@row_sums
def nll_of_learned_std(tensors, i):
    recon, x, logvar = tensors
    real = type(logvar[i])
    residual = (x[i] - recon[i]) * exp_normal(real(-0.5) * logvar[i])
    return residual * residual + (logvar[i] + real(LOG_2PI))


@elementwise
def gradients_of_learned_std(grad, sign, recon, x, logvar, drecon, dlogvar):
    real = drecon.dtype.type
    for i in range(drecon.size):
        inverse_std = exp_normal(real(-0.5) * logvar[i])
        residual = (recon[i] - x[i]) * inverse_std
        drecon[i] = real(sign) * grad[i] * (residual * inverse_std)
        dlogvar[i] = real(0.5 * sign) * grad[i] * (real(1.0) - residual * residual)


@elementwise
def gradient_of_fixed_std(grad, sign, recon, x, inverse_std, drecon):
    real = drecon.dtype.type
    for i in range(drecon.size):
        residual = (recon[i] - x[i]) * inverse_std
        drecon[i] = real(sign) * grad[i] * (residual * inverse_std)


@elementwise
def gradients_of_std_a_row(grad, sign, recon, x, inverse_std, drecon, dlogvar):
    real = drecon.dtype.type
    for i in range(drecon.size):
        residual = (recon[i] - x[i]) * inverse_std[i]
        drecon[i] = real(sign) * grad[i] * (residual * inverse_std[i])
        dlogvar[i] = real(0.5 * sign) * grad[i] * (real(1.0) - residual * residual)


@elementwise
def subtract(values, result):
    for i in range(result.size):
        result[i] -= values[i]


@helper
def spread_std(logvar_ptr, tile, logvar, inverse_std, scratch):
    """Of one number a row the exponential is taken once a row, not once an element."""
    row, count, _, _ = tile
    one_a_row = load(logvar_ptr, (row, count, 0, 1), scratch[0])
    inverse = scratch[1][:count]
    exp_scaled(one_a_row, -0.5, inverse)
    spread(one_a_row, tile, 1, logvar)
    spread(inverse, tile, 1, inverse_std)


@kernel
def gaussian_nll_kernel(
    queue, step, rows, cols, scratch, samples, gradients, logvar_value, sign, scale, recon_ptr,
    x_ptr, logvar_ptr, dnll_ptr, nll_ptr, drecon_ptr, dx_ptr, dlogvar_ptr, row_dlogvar_ptr,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    nll_partial, dlogvar_partial = np.empty(BLOCK + samples), np.empty(BLOCK + samples)
    learned = present(logvar_ptr) and logvar_ptr[2] != 0  # one number an element
    real = scratch.dtype.type
    fixed = real(logvar_value), real(math.exp(-0.5 * logvar_value))
    fill(scratch[0], scale)
    factor = 0.5 * sign
    for tile in tiles(queue, step, rows, cols):
        x = load(x_ptr, tile, scratch[3])
        grad, logvar, inverse_std = scratch[0][: x.size], scratch[1][: x.size], scratch[2][: x.size]
        dx = target(dx_ptr, tile, scratch[4])
        if present(dx_ptr):
            fill(dx, 0.0)
        for k in range(samples):
            here = sample_of(tile, k, rows)
            recon = load(recon_ptr, here, scratch[5])
            if learned:
                logvar = load(logvar_ptr, here, scratch[1])
            elif present(logvar_ptr):
                spread_std(logvar_ptr, here, scratch[1], scratch[2], scratch[10:])
            if present(nll_ptr):
                partial, terms = nll_partial[k:], scratch[6]
                if learned:
                    learned_std = recon, x, logvar
                    nll_of_learned_std(learned_std, here, cols, factor, partial, nll_ptr, terms)
                elif present(logvar_ptr):
                    std_a_row = recon, x, logvar, inverse_std
                    nll_of_std_a_row(std_a_row, here, cols, factor, partial, nll_ptr, terms)
                else:
                    fixed_std = recon, x, *fixed
                    nll_of_fixed_std(fixed_std, here, cols, factor, partial, nll_ptr, terms)
            if present(dnll_ptr):
                grad = load(dnll_ptr, here, scratch[7])
            if not gradients:
                continue
            drecon = target(drecon_ptr, here, scratch[8])
            dlogvar = target(dlogvar_ptr, here, scratch[9])
            if learned:
                gradients_of_learned_std(grad, sign, recon, x, logvar, drecon, dlogvar)
            elif present(logvar_ptr):
                gradients_of_std_a_row(grad, sign, recon, x, inverse_std, drecon, dlogvar)
            else:
                gradient_of_fixed_std(grad, sign, recon, x, fixed[1], drecon)
            store(drecon_ptr, here, drecon)
            store(dlogvar_ptr, here, dlogvar)
            if present(dx_ptr):
                subtract(drecon, dx)
            if present(row_dlogvar_ptr):
                add_rows(dlogvar, here, cols, 1.0, dlogvar_partial[k:], row_dlogvar_ptr)
        store(dx_ptr, tile, dx)


def launch_gaussian_nll(
    recon, x, logvar, logvar_value, *, dnll=None, scale=1.0, sign=1, values, needs=(False,) * 3
):
    """The nll [rows of recon] if ``values`` are wanted, and the gradients that ``needs`` asks of.

    ``logvar`` [rows, cols], [rows, 1] or None for the float. x may have fewer rows than recon,
    which then holds samples one after another.
    """
    samples, x = samples_of(recon, x, needs[1])
    acc = accumulator(recon, x, logvar)
    nll = torch.empty(recon.shape[0], dtype=acc) if values else None
    drecon, dx = empty_like_rows(recon, needs[0]), empty_like_rows(x, needs[1])
    dlogvar = row_dlogvar = None
    if logvar is not None and logvar.shape == recon.shape:
        dlogvar = empty_like_rows(logvar, needs[2])
    elif needs[2]:
        row_dlogvar = torch.empty(recon.shape[0], dtype=acc)
    launch(
        gaussian_nll_kernel,
        acc,
        *x.shape,
        samples,
        any(needs),
        logvar_value,
        float(sign),
        scale,
        operand(recon),
        operand(x),
        operand(logvar if logvar is None else logvar.expand(recon.shape)),
        operand(dnll),
        operand(nll),
        *map(operand, (drecon, dx, dlogvar)),
        operand(row_dlogvar),
        cost=0.3 * samples,
    )
    if row_dlogvar is not None:
        dlogvar = row_dlogvar.to(logvar.dtype)[:, None]
    return nll, [g for g in (drecon, dx, dlogvar) if g is not None]


def gaussian_nll(recon, x, logvar, logvar_value, sign):
    """The nll of each row of recon, or with ``sign`` -1 the log-density."""
    return launch_gaussian_nll(recon, x, logvar, logvar_value, sign=sign, values=True)[0]


def gaussian_nll_backward(dnll, recon, x, logvar, logvar_value, sign, needs):
    """The wanted gradients, from dnll [rows of recon]."""
    return launch_gaussian_nll(
        recon, x, logvar, logvar_value, dnll=dnll, sign=sign, values=False, needs=needs
    )[1]
