"""Discretised mixture of logistics, -log p of each RGB pixel: the likelihood of PixelCNN++.

A program holds all mixtures of some pixels in registers, [mixtures, pixels], so that each number is
read once. One kernel serves forward, backward (``dnll`` in, gradients out) and both at once, with
``scale`` for the gradient of every pixel: outputs that are None are not computed.

Take a bin of half width h, at a distance c from the mean, with m = |c| / scale and t = h / scale.
Its probability sigmoid(m + t) - sigmoid(m - t) is e (1 - f^2) / ((e + f) (1 + e f)), with
e = exp -m and f = exp -t. Nothing cancels, so small probabilities keep their digits, and the three
channels of a mixture share one logarithm.
"""

import math

import torch
import triton
import triton.language as tl

from ..rows import accumulator, empty_like_rows
from .device import divide, exp_scaled, expm1, narrowed
from .launch import PTX, divide_up, launch, power_of_two, triton_dtype

LEAST_LOG_SCALE = tl.constexpr(-7.0)
LEFT_EDGE = tl.constexpr(-0.999)
ELEMENTS = 512  # of a tile: four pixels of one mixture per thread


@triton.jit
def tanh(x, PTX: tl.constexpr):
    magnitude = tl.abs(x)
    lost = expm1(-2.0 * magnitude, exp_scaled(magnitude, -2.0, PTX))
    value = divide(-lost, 2.0 + lost, PTX)
    return tl.where(x >= 0.0, value, -value)


@triton.jit
def channel(x, mean, raw_log_scale, half_bin, log_half_bin, right_edge, guard, PTX: tl.constexpr):
    """(log p - log ratio, ratio, and the gradients of log p in mean and raw_log_scale).

    An edge bin reaches to infinity: one term of the sigmoids' difference is left, 1 / (1 + e f)
    where the mean is inside the bin, and e / (e + f) where it is not.
    """
    clamped = raw_log_scale < LEAST_LOG_SCALE
    log_scale = tl.where(clamped, LEAST_LOG_SCALE, raw_log_scale)
    root, c = exp_scaled(log_scale, -1.0, PTX), x - mean
    m, t = tl.abs(c) * root, half_bin * root
    t = tl.where(t < 1e-30, 1e-30, t)
    e, f = exp_scaled(m, -1.0, PTX), exp_scaled(t, -1.0, PTX)
    difference = -expm1(-t, f) * (1.0 + f)
    left = x < LEFT_EDGE
    edge = left | (x > right_edge)
    near = edge & (left == (c >= 0.0))
    outer, inner = e + f, 1.0 + e * f
    guarded = (edge == 0) & (e * difference < guard * (outer * inner))
    inside = (edge | guarded) == 0

    inverse = divide(1.0, tl.where(guarded, (1.0 + e) * (1.0 + e), outer * inner), PTX)
    per_width = divide(difference, t, PTX)
    larger = tl.where(e > f, e, f)
    ratio = larger * inverse * tl.where(edge, inner, per_width)
    ratio = tl.where(near, outer * inverse, ratio)
    ratio = tl.where(guarded, 2.0 * inverse, ratio)
    linear = tl.where(guarded, -m, tl.where(m > t, t, m) - m)
    linear = tl.where(near, 0.0, linear)
    linear = tl.where(edge, linear, linear + (log_half_bin - log_scale))

    # The gradient of an infinitely far mean stays finite, because its mixture has weight 0.
    m = tl.where(m > 1e37, 1e37, m)
    alpha = tl.where(near | inside, e * f * (outer * inverse), 0.0)
    beta = tl.where(inside | (edge & (near == 0)), f * (inner * inverse), 0.0)
    dlog_scale = beta * (m - t) - alpha * (tl.where(m > 1e3, 1e3, m) + t)
    dlog_scale -= tl.where(inside, divide(2.0 * f * f, per_width, PTX), 0.0)
    guarded_dm = (e - 1.0) * ((1.0 + e) * inverse)
    dm = tl.where(guarded, guarded_dm, alpha - beta)
    dlog_scale = tl.where(guarded, -m * guarded_dm - 1.0, dlog_scale)
    dlog_scale = tl.where(clamped, 0.0, dlog_scale)
    dmean = dm * root
    return linear, ratio, tl.where(c >= 0.0, -dmean, dmean), dlog_scale


@triton.jit
def log_sum_exp(values, PTX: tl.constexpr):
    """log sum exp over the mixtures, [1, pixels]; -inf where all values are, and not NaN."""
    top = tl.max(values, axis=0)[None, :]
    shift = tl.where(top == float("-inf"), 0.0, top)
    return shift + tl.log(tl.sum(exp_scaled(values - shift, 1.0, PTX), axis=0)[None, :])


@triton.jit
def load_number(ptr, number, channel_stride, mask, ACC: tl.constexpr):
    return tl.load(ptr + number * channel_stride, mask=mask, other=0.0).to(ACC)


@triton.jit
def store_number(ptr, number, pixels, mask, value):
    tl.store(ptr + number * pixels, narrowed(value, ptr), mask=mask)


@triton.jit
def discretized_mix_logistic_nll_kernel(
    params_ptr,
    x_ptr,
    dnll_ptr,
    nll_ptr,
    dparams_ptr,
    params_stride,
    channel_stride,
    pixel_stride,
    x_stride,
    x_channel_stride,
    x_pixel_stride,
    dnll_stride,
    dnll_pixel_stride,
    mixtures,
    pixels,
    params_size,  # of an example
    pixel_tiles,
    half_bin: tl.float64,
    log_half_bin: tl.float64,
    right_edge: tl.float64,
    guard: tl.float64,
    scale: tl.float64,
    BLOCK_MIXTURES: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    ACC: tl.constexpr,
    PTX: tl.constexpr,
):
    example = (tl.program_id(0) // pixel_tiles).to(tl.int64)
    pixel = (tl.program_id(0) % pixel_tiles) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)[None, :]
    k = tl.arange(0, BLOCK_MIXTURES)[:, None].to(tl.int64)
    valid = pixel < pixels
    mask = valid & (k < mixtures)
    wide = pixel.to(tl.int64)

    x_ptr += example * x_stride + wide * x_pixel_stride
    r = tl.load(x_ptr, mask=valid, other=0.0).to(ACC)
    x_ptr += x_channel_stride
    g = tl.load(x_ptr, mask=valid, other=0.0).to(ACC)
    b = tl.load(x_ptr + x_channel_stride, mask=valid, other=0.0).to(ACC)

    ptr, stride = params_ptr + example * params_stride + wide * pixel_stride, channel_stride
    logit = load_number(ptr, k, stride, mask, ACC)
    logit = tl.where(k < mixtures, logit, float("-inf"))
    mean0 = load_number(ptr, k + mixtures, stride, mask, ACC)
    scale0 = load_number(ptr, k + 2 * mixtures, stride, mask, ACC)
    a0 = tanh(load_number(ptr, k + 3 * mixtures, stride, mask, ACC), PTX)
    mean1 = load_number(ptr, k + 4 * mixtures, stride, mask, ACC) + a0 * r
    scale1 = load_number(ptr, k + 5 * mixtures, stride, mask, ACC)
    a1 = tanh(load_number(ptr, k + 6 * mixtures, stride, mask, ACC), PTX)
    mean2 = load_number(ptr, k + 7 * mixtures, stride, mask, ACC) + a1 * r
    scale2 = load_number(ptr, k + 8 * mixtures, stride, mask, ACC)
    a2 = tanh(load_number(ptr, k + 9 * mixtures, stride, mask, ACC), PTX)

    h, log_h = tl.full((1, 1), half_bin, ACC), tl.full((1, 1), log_half_bin, ACC)
    right, least = tl.full((1, 1), right_edge, ACC), tl.full((1, 1), guard, ACC)
    linear0, ratio0, dmean0, dscale0 = channel(r, mean0, scale0, h, log_h, right, least, PTX)
    linear1, ratio1, dmean1, dscale1 = channel(g, mean1, scale1, h, log_h, right, least, PTX)
    mean2 += a2 * g
    linear2, ratio2, dmean2, dscale2 = channel(b, mean2, scale2, h, log_h, right, least, PTX)
    log_p = linear0 + linear1 + linear2 + tl.log(ratio0 * ratio1 * ratio2)
    joint, normaliser = log_sum_exp(logit + log_p, PTX), log_sum_exp(logit, PTX)

    if nll_ptr is not None:
        where = nll_ptr + example * pixels + wide
        tl.store(where, normaliser - joint, mask=valid)
    if dparams_ptr is not None:
        if dnll_ptr is not None:
            where = dnll_ptr + example * dnll_stride + wide * dnll_pixel_stride
            grad = tl.load(where, mask=valid, other=0.0).to(ACC)
        else:
            grad = tl.full((1, BLOCK_PIXELS), scale, ACC)
        # A pixel whose density is 0 pulls at no mixture.
        joint = tl.where(joint == float("-inf"), float("inf"), joint)
        share = exp_scaled(logit + log_p - joint, 1.0, PTX)
        prior = exp_scaled(logit - normaliser, 1.0, PTX)
        weight = -grad * share
        ptr = dparams_ptr + example * params_size + wide
        store_number(ptr, k, pixels, mask, grad * (prior - share))
        store_number(ptr, k + mixtures, pixels, mask, weight * dmean0)
        store_number(ptr, k + 2 * mixtures, pixels, mask, weight * dscale0)
        store_number(ptr, k + 3 * mixtures, pixels, mask, weight * (dmean1 * r * (1.0 - a0 * a0)))
        store_number(ptr, k + 4 * mixtures, pixels, mask, weight * dmean1)
        store_number(ptr, k + 5 * mixtures, pixels, mask, weight * dscale1)
        store_number(ptr, k + 6 * mixtures, pixels, mask, weight * (dmean2 * r * (1.0 - a1 * a1)))
        store_number(ptr, k + 7 * mixtures, pixels, mask, weight * dmean2)
        store_number(ptr, k + 8 * mixtures, pixels, mask, weight * dscale2)
        store_number(ptr, k + 9 * mixtures, pixels, mask, weight * (dmean2 * g * (1.0 - a2 * a2)))


def launch_discretized_mix_logistic_nll(
    params, x, half_bin, right_edge, guard, *, dnll=None, scale=1.0, values=None, needs=()
):
    """Launch on params [B, 10 mixtures, P] and x [B, 3, P]; a row is a pixel, [B, P]."""
    examples, channels, pixels = params.shape
    acc, mixtures = accumulator(params, x), channels // 10
    nll = params.new_empty((examples, pixels), dtype=acc) if values else None
    dparams = empty_like_rows(params, any(needs))
    block = power_of_two(mixtures)
    # A tile has at most a row of pixels. It has half as many elements where registers would spill:
    # in float64, which takes two registers; with many mixtures, which distribute a pixel over all
    # threads (beyond 256 they spill anyway); and in rows whose elements are read one by one, with
    # an address each.
    halved = acc == torch.float64 or block > 64 or pixels % 16 != 0
    most = ELEMENTS // 2 if halved else ELEMENTS
    block_pixels = max(1, min(most // block, power_of_two(pixels)))
    tiles = divide_up(pixels, block_pixels)
    strides = *params.stride(), *x.stride(), *((0, 0) if dnll is None else dnll.stride())
    scalars = half_bin, math.log(half_bin), right_edge, guard, scale
    constexprs = {
        "BLOCK_MIXTURES": block,
        "BLOCK_PIXELS": block_pixels,
        "ACC": triton_dtype(acc),
        "PTX": PTX,
    }
    if examples:
        sizes = mixtures, pixels, channels * pixels, tiles
        launch(
            discretized_mix_logistic_nll_kernel,
            (examples * tiles,),
            [params, x, dnll, nll, dparams, *strides, *sizes, *scalars],
            constexprs,
        )
    return nll, [] if dparams is None else [dparams]
