"""Shared by the kernels of mixtures and of their marginals, which compare rows with components.

A program owns some rows and goes through the components, or owns some components and goes through
the rows, one tile of the two at a time, [others, own]. The others are divided into stretches, with
a program for each, because a grid of the owned tiles alone would leave most of a GPU idle.
"""

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .device import exp2, exp_scaled
from .launch import PTX, divide_up, in_stages, launch, power_of_two, sum_stages, triton_dtype

# Width of a tile: a thread owns one row or component, and no sum crosses threads.
OWN = 128
# Height of a tile, for 128 registers per thread. A pair takes two registers where all latents are
# summed, and one where a program has a single latent.
OTHERS, OTHERS_OF_LATENT = 32, 64
PROGRAMS = 1024  # to fill a GPU: 132 SMs x 8


@triton.jit
def own_and_others(tiles, turns, stretch, BLOCK_OTHERS: tl.constexpr, BLOCK_OWN: tl.constexpr):
    """(how many are owned, how many are others, latent, own, start, end, other).

    ``own`` [1, BLOCK_OWN] is the program's tile. It goes through the others from start to end, one
    tile ``other`` [BLOCK_OTHERS, 1] at a time.

    Sizes come in tiles and are returned in int64 elements, so that offsets past 2**31 hold. The
    first dimension of the grid has the tiles of one latent after another, because the other two end
    at 65,535.
    """
    owned = tl.full((), tiles, tl.int64) * BLOCK_OWN
    others = tl.full((), turns, tl.int64) * BLOCK_OTHERS
    latent = (tl.program_id(0) // tiles).to(tl.int64)
    own = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)[None, :]
    start = tl.program_id(1).to(tl.int64) * stretch * BLOCK_OTHERS
    end = tl.minimum(start + tl.full((), stretch, tl.int64) * BLOCK_OTHERS, others)
    return owned, others, latent, own, start, end, tl.arange(0, BLOCK_OTHERS)[:, None]


@triton.jit
def excess_log_weight(row, component, dataset_size, batch, ACC: tl.constexpr):
    """The log weight of each pair less log 1/M, for stratified weights with M = batch - 1.

    The weight of a row's own component is 1/N, that of the next one (N - M) / (N M).
    """
    size, others = tl.cast(dataset_size, ACC), tl.cast(batch - 1, ACC)
    gap = (component - row).to(tl.int32)
    following = tl.where(row + 1 == batch, 1 - batch, 1).to(tl.int32)
    excess = tl.where(gap == 0, tl.log(others / size), 0.0)
    return tl.where(gap == following, tl.log((size - others) / size), excess)


@triton.jit
def add_exps(logs, greatest, total, BASE_TWO: tl.constexpr, PTX: tl.constexpr):
    """(greatest, total) with one more tile of logarithms: the sum so far is exp(greatest) total."""
    top = tl.maximum(greatest, tl.max(logs, axis=0)[None, :])
    # While all logarithms are -inf, 0 takes the place of the greatest: -inf - -inf is NaN.
    shift = tl.where(top == float("-inf"), 0.0, top)
    if BASE_TWO:
        total *= exp2(greatest - shift, PTX)
        total += tl.sum(exp2(logs - shift, PTX), axis=0)[None, :]
    else:
        total *= exp_scaled(greatest - shift, 1.0, PTX)
        total += tl.sum(exp_scaled(logs - shift, 1.0, PTX), axis=0)[None, :]
    return top, total


def block_of(count):
    """The width of a tile for ``count`` rows or components."""
    return min(OWN, power_of_two(max(count, 1)))


def in_tiles(tensor, count, acc, value=0.0):
    """A tensor [..., count], padded with ``value`` to whole tiles."""
    missing = -count % block_of(count)
    return F.pad(tensor.to(acc), (0, missing), value=value).contiguous()


def log_weights_of(components, log_weights, dataset_size, acc):
    """The log weights that are given, or the one that all (stratified: most) components share."""
    if log_weights is not None:
        return log_weights.to(acc)
    return -math.log(components if dataset_size is None else components - 1)


def batch_of(z, dataset_size):
    """(dataset_size, batch) for a kernel, both None where the weights are not stratified."""
    return (None, None) if dataset_size is None else (dataset_size, len(z))


def launch_pairs(kernel, own, others, pointers, results, scalars, latents=None):
    """Run a kernel on ``own`` rows or components and on the ``others``, both in whole tiles.

    ``results`` are the shapes of what it adds up, from zero on. Returned are the partial results,
    [stretches, *shape] or [*shape] for one stretch, and the number of stretches. ``latents`` is how
    many there are, for a kernel whose programs have one latent each.
    """
    acc, device, cols = pointers[0].dtype, pointers[0].device, pointers[0].shape[0]
    most = OTHERS if latents is None else OTHERS_OF_LATENT
    most = most // 2 if acc == torch.float64 else most  # float64 takes two registers
    latents = 1 if latents is None else latents
    block_own, block_others = block_of(own), min(most, block_of(others))
    tiles, turns = own // block_own, others // block_others
    stretch = divide_up(turns, max(1, PROGRAMS // max(1, tiles * latents)))
    grid = tiles * latents, divide_up(turns, stretch)
    partial = [in_stages(grid[1], shape, acc, device).zero_() for shape in results]
    constexprs = {
        "BLOCK_OTHERS": block_others,
        "BLOCK_OWN": block_own,
        "ACC": triton_dtype(acc),
        "PTX": PTX,
    }
    # Sizes in tiles: the compiler then knows how addresses are aligned.
    arguments = [*pointers, *partial, *scalars, tiles, turns, stretch, cols]
    launch(kernel, grid, arguments, constexprs)
    return partial, grid[1]


def launch_backward(
    rows_kernel, components_kernel, tensors, logsumexp, dlog_prob, scalars, needs, latents=None
):
    """(pulls at z [cols, rows], moments of z - mu of each component), both in whole tiles.

    The moments of order 0, 1 and 2 are not divided by the variance. What is not needed is None.
    """
    z, mu, _, constant = tensors
    acc, rows = z.dtype, len(dlog_prob)
    # A row whose density is 0 pulls at no component.
    logsumexp = logsumexp.masked_fill(logsumexp == -math.inf, math.inf)
    given = [*tensors, in_tiles(logsumexp, rows, acc, math.inf), in_tiles(dlog_prob, rows, acc)]
    sizes = z.shape[1], mu.shape[1]
    pulls = moments = None
    if needs[0]:
        partial, stages = launch_pairs(rows_kernel, *sizes, given, [z.shape], scalars, latents)
        pulls = sum_stages(partial[0], stages)
    if any(needs[1:]):
        shapes = [constant.shape, mu.shape, mu.shape]
        partial, stages = launch_pairs(
            components_kernel, *sizes[::-1], given, shapes, scalars, latents
        )
        moments = [sum_stages(t, stages) for t in partial]
    return pulls, moments
