"""Negative log-densities with a location and a scale, row sums.

They are rate (distance(t) + width + constant) with t = (x - recon) exp(-rate width). For a Gaussian
the width is the log variance and the distance t^2. For a Laplace they are the log scale and |t|.

One kernel serves forward (``nll``), backward (``dnll`` in, gradients out) and both at once, with
``scale`` for the gradient of every row. ``sign`` = -1 turns it into the log-density.
"""

import math

from ..rows import accumulator, empty_like_rows, padded
from .compiler import elementwise, helper, kernel
from .device import exp_normal, exp_scaled, fill
from .launch import launch, samples_of
from .memory import (
    TILE,
    broadcast_rows,
    load,
    operand,
    present,
    sample_of,
    store,
    target,
    tiles,
    workspace,
)
from .sums import add_rows, pieces_of_sums, row_sums


@elementwise
def subtract(values, result):
    for i in range(result.size):
        result[i] -= values[i]


@helper
def broadcast_width(width_ptr, tile, rate, width, inverse, scratch):
    """Broadcast a width per row over its columns; its exponential is computed once per row."""
    row, count, _, _ = tile
    one_a_row = load(width_ptr, (row, count, 0, 1), scratch[0])
    inverse_a_row = scratch[1][:count]
    exp_scaled(one_a_row, -rate, inverse_a_row)
    broadcast_rows(one_a_row, tile, 1, width)
    broadcast_rows(inverse_a_row, tile, 1, inverse)


def location_scale_kernel(name, distance, slope, rate, constant):
    """The kernel of a density; ``slope`` is rate times the slope of its ``distance``."""

    @row_sums
    def nll_of_fixed_width(tensors, i):
        recon, x, width, inverse = tensors
        residual = (x[i] - recon[i]) * inverse
        return distance(residual) + (width + type(residual)(constant))

    @row_sums
    def nll_of_width_a_row(tensors, i):
        recon, x, width, inverse = tensors
        residual = (x[i] - recon[i]) * inverse[i]
        return distance(residual) + (width[i] + type(residual)(constant))

    @row_sums
    def nll_of_learned_width(tensors, i):
        recon, x, width = tensors
        real = type(width[i])
        residual = (x[i] - recon[i]) * exp_normal(real(-rate) * width[i])
        return distance(residual) + (width[i] + real(constant))

    @elementwise
    def gradients_of_learned_width(grad, sign, recon, x, width, drecon, dwidth):
        real = drecon.dtype.type
        for i in range(drecon.size):
            inverse = exp_normal(real(-rate) * width[i])
            residual = (recon[i] - x[i]) * inverse
            drecon[i] = real(sign) * grad[i] * (slope(residual) * inverse)
            dwidth[i] = real(rate * sign) * grad[i] * (real(1.0) - distance(residual))

    @elementwise
    def gradient_of_fixed_width(grad, sign, recon, x, inverse, drecon):
        real = drecon.dtype.type
        for i in range(drecon.size):
            residual = (recon[i] - x[i]) * inverse
            drecon[i] = real(sign) * grad[i] * (slope(residual) * inverse)

    @elementwise
    def gradients_of_width_a_row(grad, sign, recon, x, inverse, drecon, dwidth):
        real = drecon.dtype.type
        for i in range(drecon.size):
            residual = (recon[i] - x[i]) * inverse[i]
            drecon[i] = real(sign) * grad[i] * (slope(residual) * inverse[i])
            dwidth[i] = real(rate * sign) * grad[i] * (real(1.0) - distance(residual))

    def body(
        queue, step, rows, cols, scratch, samples, gradients, width_value, sign, scale, recon_ptr,
        x_ptr, width_ptr, dnll_ptr, nll_ptr, drecon_ptr, dx_ptr, dwidth_ptr, row_dwidth_ptr,
    ):  # fmt: skip
        scratch = workspace(scratch, queue)
        nll_pieces, dwidth_pieces = pieces_of_sums(queue), pieces_of_sums(queue, samples * rows)
        learned = present(width_ptr) and width_ptr[2] != 0  # one number per element
        real = scratch.dtype.type
        fixed = real(width_value), real(math.exp(-rate * width_value))
        fill(scratch[0], scale)
        factor = rate * sign
        for tile in tiles(queue, step, rows, cols):
            x = load(x_ptr, tile, scratch[3])
            grad, width, inverse = scratch[0][: x.size], scratch[1][: x.size], scratch[2][: x.size]
            dx = target(dx_ptr, tile, scratch[4])
            if present(dx_ptr):
                fill(dx, 0.0)
            for k in range(samples):
                here = sample_of(tile, k, rows)
                recon = load(recon_ptr, here, scratch[5])
                if learned:
                    width = load(width_ptr, here, scratch[1])
                elif present(width_ptr):
                    broadcast_width(width_ptr, here, rate, scratch[1], scratch[2], scratch[10:])
                if present(nll_ptr):
                    pieces, terms = nll_pieces, scratch[6]
                    if learned:
                        given = recon, x, width
                        nll_of_learned_width(given, here, cols, factor, pieces, nll_ptr, terms)
                    elif present(width_ptr):
                        a_row = recon, x, width, inverse
                        nll_of_width_a_row(a_row, here, cols, factor, pieces, nll_ptr, terms)
                    else:
                        one = recon, x, *fixed
                        nll_of_fixed_width(one, here, cols, factor, pieces, nll_ptr, terms)
                if present(dnll_ptr):
                    grad = load(dnll_ptr, here, scratch[7])
                if not gradients:
                    continue
                drecon = target(drecon_ptr, here, scratch[8])
                dwidth = target(dwidth_ptr, here, scratch[9])
                if learned:
                    gradients_of_learned_width(grad, sign, recon, x, width, drecon, dwidth)
                elif present(width_ptr):
                    gradients_of_width_a_row(grad, sign, recon, x, inverse, drecon, dwidth)
                else:
                    gradient_of_fixed_width(grad, sign, recon, x, fixed[1], drecon)
                store(drecon_ptr, here, drecon)
                store(dwidth_ptr, here, dwidth)
                if present(dx_ptr):
                    subtract(drecon, dx)
                if present(row_dwidth_ptr):
                    add_rows(dwidth, here, cols, 1.0, dwidth_pieces, row_dwidth_ptr)
            store(dx_ptr, tile, dx)

    body.__name__ = body.__qualname__ = name  # by which numba finds its machine code on disk
    return kernel(body)


def launch_location_scale(
    density,
    recon,
    x,
    width,
    width_value,
    *,
    dnll=None,
    scale=1.0,
    sign=1,
    values=None,
    needs=(),
):
    """Launch on operands as the op has them; ``density`` is one of the kernels.

    ``width`` is [rows, cols], [rows, 1] or None for the float.
    """
    needs_recon, needs_x, needs_width = padded(needs, 3)
    samples, x = samples_of(recon, x, needs_x)
    acc = accumulator(recon, x, width)
    nll = recon.new_empty(recon.shape[0], dtype=acc) if values else None
    drecon, dx = empty_like_rows(recon, needs_recon), empty_like_rows(x, needs_x)
    dwidth, row_dwidth, wide = None, None, width
    if width is not None and width.shape == recon.shape:
        dwidth = empty_like_rows(width, needs_width)
    elif width is not None:
        row_dwidth = recon.new_empty(recon.shape[0], dtype=acc) if needs_width else None
        wide = width.expand(recon.shape)
    tensors = recon, x, wide, dnll, nll, drecon, dx, dwidth, row_dwidth
    launch(
        density,
        acc,
        *x.shape,
        samples,
        any(needs),
        width_value,
        float(sign),
        scale,
        *map(operand, tensors),
        cost=0.3 * samples,
        tile=TILE,
        sums=2 * recon.shape[0],
    )
    if row_dwidth is not None:
        dwidth = row_dwidth.to(width.dtype)[:, None]
    return nll, [g for g in (drecon, dx, dwidth) if g is not None]
