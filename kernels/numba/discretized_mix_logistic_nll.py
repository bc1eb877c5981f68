"""Discretised mixture of logistics, -log p of each RGB pixel: the likelihood of PixelCNN++.

A lane is a pixel. The mixtures of a block of pixels are taken one after the other: their log
densities, and gradients but for the responsibilities, stay in the cache until the sum over the
mixtures is known. One kernel serves forward, backward (``dnll`` in, gradients out) and both at
once, with ``scale`` for the gradient of every pixel.

The derivation of a bin's probability is in ``../triton/discretized_mix_logistic_nll.py``.
"""

import math

import numpy as np
import torch
from numba import carray

from ..rows import accumulator, empty_like_rows
from .compiler import elementwise, helper, inline, kernel, pointer
from .device import exp, exp_normal, expm1, fill, finite_or_zero, log, tanh
from .launch import launch
from .loops import subtract
from .memory import CODES, FLOAT32, FLOAT64, load, operand, present, store, target, tiles, workspace

PIXELS = 128  # at once; with 10 mixtures the gradients of twice as many leave half of the L2 caches
COST = 7.0  # ns per mixture and pixel, with gradients
LEAST_LOG_SCALE = -7.0
LEFT_EDGE = -0.999


@inline
def channel_at(x, mean, raw_log_scale, bins):
    """(log p - log ratio, ratio, and the gradients of log p in mean and raw_log_scale).

    An edge bin reaches to infinity: of the sigmoids' difference one term is left, 1 / (1 + e f)
    where the mean is inside, and e / (e + f) where it is not.
    """
    real = type(x)
    zero, one = real(0.0), real(1.0)
    half_bin, log_half_bin, right_edge, guard = bins
    clamped = raw_log_scale < real(LEAST_LOG_SCALE)
    log_scale = real(LEAST_LOG_SCALE) if clamped else raw_log_scale
    root, c = exp_normal(-log_scale), x - mean
    m, t = abs(c) * root, half_bin * root
    t = real(1e-30) if t < real(1e-30) else t
    e, f, lost = exp_normal(-m), exp_normal(-t), -expm1(-t)
    difference = lost * (one + f)
    left = x < real(LEFT_EDGE)
    edge = left or x > right_edge
    near = edge and left == (c >= zero)
    outer, inner = e + f, one + e * f
    guarded = not edge and e * difference < guard * (outer * inner)
    inside = not edge and not guarded

    inverse = one / ((one + e) * (one + e) if guarded else outer * inner)
    per_width = difference / t
    larger = e if e > f else f
    ratio = larger * inverse * (inner if edge else per_width)
    ratio = outer * inverse if near else ratio
    ratio = inverse + inverse if guarded else ratio
    linear = -m if guarded else ((t if m > t else m) - m)
    linear = zero if near else linear
    linear = linear if edge else linear + (log_half_bin - log_scale)

    # The gradient of an infinitely far mean stays finite, because its mixture has weight 0.
    m = real(1e37) if m > real(1e37) else m
    alpha = e * f * (outer * inverse) if near or inside else zero
    beta = f * (inner * inverse) if inside or (edge and not near) else zero
    dm = alpha - beta
    near_m = real(1e3) if m > real(1e3) else m
    dlog_scale = beta * (m - t) - alpha * (near_m + t)
    dlog_scale = dlog_scale - (real(2.0) * f * f / per_width if inside else zero)
    guarded_dm = (e - one) * ((one + e) * inverse)
    dm = guarded_dm if guarded else dm
    dlog_scale = -m * guarded_dm - one if guarded else dlog_scale
    dlog_scale = zero if clamped else dlog_scale
    dmean = dm * root
    return linear, ratio, (-dmean if c >= zero else dmean), dlog_scale


@elementwise
def log_densities(pixels, given, bins, results, logs):
    """log p under one mixture; the results are its logit once more, and the gradients of log p.

    Forward alone has no use for these, and takes a quarter longer; a loop of its own would take 2 s
    to compile.
    """
    red, green, blue = pixels
    raw_logit, (mean0, scale0, raw0), (mean1, scale1, raw1), (mean2, scale2, raw2) = given
    logit, (dmean0, dscale0, draw0), (dmean1, dscale1, draw1), (dmean2, dscale2, draw2) = results
    for i in range(logs.size):
        one = type(logs[i])(1.0)
        r, g, b = red[i], green[i], blue[i]
        a0, a1, a2 = tanh(raw0[i]), tanh(raw1[i]), tanh(raw2[i])
        center1, center2 = mean1[i] + a0 * r, mean2[i] + a1 * r + a2 * g
        linear0, ratio0, dmean0[i], dscale0[i] = channel_at(r, mean0[i], scale0[i], bins)
        linear1, ratio1, d1, dscale1[i] = channel_at(g, center1, scale1[i], bins)
        linear2, ratio2, d2, dscale2[i] = channel_at(b, center2, scale2[i], bins)
        dmean1[i], dmean2[i] = d1, d2
        draw0[i] = d1 * r * (one - a0 * a0)
        draw1[i] = d2 * r * (one - a1 * a1)
        draw2[i] = d2 * g * (one - a2 * a2)
        logit[i] = raw_logit[i]
        logs[i] = logit[i] + (linear0 + linear1 + linear2 + log(ratio0 * ratio1 * ratio2))


@helper
def log_sum_exp(values, result, total):
    """log sum_k exp(values_k) of values [mixtures * pixels]; ``total`` is a buffer."""
    size = result.size
    fill(result, -np.inf)
    fill(total, 0.0)
    for first in range(0, values.size, size):
        raise_to(values[first : first + size], result)
    for first in range(0, values.size, size):
        add_exp(values[first : first + size], result, total)
    conclude_pixels(total, result)


@elementwise
def raise_to(values, greatest):
    for i in range(greatest.size):
        greatest[i] = values[i] if not values[i] <= greatest[i] else greatest[i]


@elementwise
def add_exp(values, greatest, total):
    for i in range(total.size):
        total[i] += exp(values[i] - finite_or_zero(greatest[i]))


@elementwise
def conclude_pixels(total, result):
    for i in range(result.size):
        result[i] = finite_or_zero(result[i]) + log(total[i])


@elementwise
def weigh_mixtures(grad, logit, normaliser, log_density, logsumexp, weights, dlogit):
    """A mixture's share of -grad, per pixel, and the gradient of its logit."""
    real = dlogit.dtype.type
    for i in range(dlogit.size):
        # A pixel whose density is 0 pulls at no mixture.
        possible = logsumexp[i] > real(-np.inf) or logsumexp[i] != logsumexp[i]
        share = exp(log_density[i] - logsumexp[i]) if possible else real(0.0)
        weights[i] = -grad[i] * share
        dlogit[i] = grad[i] * (exp(logit[i] - normaliser[i]) - share)


@elementwise
def multiply(factor, values, result):
    for i in range(result.size):
        result[i] = factor[i] * values[i]


@inline
def example_of(operand, stride, example):
    """The operand [channels, pixels] of one example."""
    address, channel_stride, pixel_stride, code = operand
    itemsize = 8 if code == FLOAT64 else 4 if code == FLOAT32 else 2
    return address + itemsize * stride * example, channel_stride, pixel_stride, code


@helper
def load_channels(operand, channel, apart, tile, buffers, addresses):
    """The channels ``channel``, ``channel + apart``, ... of a tile: in place, or in buffers."""
    _, count, col, width = tile
    for i in range(addresses.size):
        here = channel + i * apart, count, col, width
        addresses[i] = load(operand, here, buffers[i]).ctypes.data


@inline
def three_at(addresses, like):
    return (
        carray(pointer(addresses[0]), like.shape, like.dtype),
        carray(pointer(addresses[1]), like.shape, like.dtype),
        carray(pointer(addresses[2]), like.shape, like.dtype),
    )


@inline
def ten_at(addresses, like):
    """(logit, then the mean, log scale and coefficient of each color) of a mixture."""
    logit = carray(pointer(addresses[0]), like.shape, like.dtype)
    red, green, blue = addresses[1:4], addresses[4:7], addresses[7:]
    return logit, three_at(red, like), three_at(green, like), three_at(blue, like)


@kernel
def discretized_mix_logistic_nll_kernel(
    queue, step, blocks, _, scratch, mixtures, pixels, half_bin, right_edge, guard, scale,
    params_ptr, params_stride, x_ptr, x_stride, dnll_ptr, nll_ptr, dparams_ptr, dparams_stride,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    real, channels = scratch.dtype.type, 10 * mixtures
    bins = real(half_bin), real(math.log(half_bin)), real(right_edge), real(guard)
    colors, given, kept = np.empty(3, np.int64), np.empty(10, np.int64), np.empty(10, np.int64)
    # The channels of a block: logits, and gradients of log densities; then the log densities.
    memory = np.empty((channels + mixtures) * PIXELS, scratch.dtype)
    work = carray(pointer(memory.ctypes.data), memory.shape, memory.dtype)  # as in ``workspace``
    of_example = -(-pixels // PIXELS)
    for block, _, _, _ in tiles(queue, step, blocks, 1, 1):
        example, first = block // of_example, block % of_example * PIXELS
        size = min(PIXELS, pixels - first)
        tile, line = (0, 1, first, size), (example, 1, first, size)
        params = example_of(params_ptr, params_stride, example)
        dparams = example_of(dparams_ptr, dparams_stride, example)
        x = example_of(x_ptr, x_stride, example)
        load_channels(x, 0, 1, tile, scratch[10:], colors)
        all_logits, all_logs = work[: mixtures * size], work[channels * size :][: mixtures * size]
        for k in range(mixtures):
            logs = all_logs[k * size : (k + 1) * size]
            load_channels(params, k, mixtures, tile, scratch, given)
            for i in range(10):
                kept[i] = work.ctypes.data + work.itemsize * (i * mixtures + k) * size
            pixel, numbers, results = (
                three_at(colors, logs),
                ten_at(given, logs),
                ten_at(kept, logs),
            )
            log_densities(pixel, numbers, bins, results, logs)
        total, normaliser, logsumexp = scratch[0][:size], scratch[1][:size], scratch[2][:size]
        log_sum_exp(all_logits, normaliser, total)
        log_sum_exp(all_logs, logsumexp, total)
        if present(nll_ptr):
            subtract(normaliser, logsumexp, target(nll_ptr, line, scratch[3]))
        if not present(dparams_ptr):
            continue
        grad, weights = scratch[3][:size], scratch[4][:size]
        fill(grad, scale)
        if present(dnll_ptr):
            grad = load(dnll_ptr, line, scratch[3])
        for k in range(mixtures):
            logs = all_logs[k * size : (k + 1) * size]
            for channel in range(k, channels, mixtures):
                values = work[channel * size : (channel + 1) * size]
                here = channel, 1, first, size
                result = target(dparams, here, scratch[5])
                if channel == k:
                    weigh_mixtures(grad, values, normaliser, logs, logsumexp, weights, result)
                else:
                    multiply(weights, values, result)
                store(dparams, here, result)
    memory[:1] = 0.0  # keeps the array alive until here


def operand_of_examples(tensor):
    """(operand [channels, pixels] of the first example, stride of examples) of [B, channels, P]."""
    if tensor is None:
        return operand(None), 0
    example, channel, pixel = tensor.stride()
    return (tensor.data_ptr(), channel, pixel, CODES[tensor.dtype]), example


def launch_discretized_mix_logistic_nll(
    params, x, half_bin, right_edge, guard, *, dnll=None, scale=1.0, values=None, needs=()
):
    """Launch on params [B, 10 mixtures, P] and x [B, 3, P]; a row is a pixel, [B, P]."""
    examples, channels, pixels = params.shape
    acc = accumulator(params, x)
    nll = torch.empty(examples, pixels, dtype=acc, device="cpu") if values else None
    dparams = empty_like_rows(params, any(needs))
    launch(
        discretized_mix_logistic_nll_kernel,
        acc,
        examples * -(-pixels // PIXELS),
        channels * min(PIXELS, pixels),
        channels // 10,
        pixels,
        half_bin,
        right_edge,
        guard,
        scale,
        *operand_of_examples(params),
        *operand_of_examples(x),
        operand(dnll),
        operand(nll),
        *operand_of_examples(dparams),
        cost=COST / 10,
    )
    return nll, [] if dparams is None else [dparams]
