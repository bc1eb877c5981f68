"""The reduced loss, scale * sum over rows of (mean nll + beta * kl), and its gradients.

The gradient of a training step's loss is known but for one factor before the loss is: the
likelihood kernels write it in the forward pass, while their inputs are in the cache. Backward
then only multiplies by that factor, in place, and not even that where it is 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..rows import LOCATION_SCALE, samples_in
from .bernoulli_nll import launch_bernoulli_nll
from .categorical_nll import launch_categorical_nll
from .compiler import helper, kernel
from .gaussian_nll import launch_gaussian_nll
from .laplace_nll import launch_laplace_nll
from .launch import launch
from .memory import as_row, load, operand, present, target, tiles_of, workspace
from .poisson_nll import launch_poisson_nll
from .sums import lane_sum

LIKELIHOODS: dict[str, Callable[..., Any]] = {
    "bernoulli": partial(launch_bernoulli_nll, probabilities=False),
    "probabilities": partial(launch_bernoulli_nll, probabilities=True),
    "gaussian": launch_gaussian_nll,
    "laplace": launch_laplace_nll,
    "poisson": launch_poisson_nll,
    "categorical": launch_categorical_nll,
}


@helper
def total(operand, count, buffer):
    """The sum of an operand [1, count], in float64 from tile to tile."""
    result = 0.0
    for tile in tiles_of(0, 1, count):
        result += lane_sum(load(operand, tile, buffer))
    return result


@kernel
def total_kernel(
    queue, step, rows, cols, scratch, nll_rows, kl_rows, beta, nll_scale, kl_scale, nll_ptr, kl_ptr,
    loss_out, nll_out, kl_out,
):  # fmt: skip
    scratch = workspace(scratch, queue)
    nll = nll_scale * total(nll_ptr, nll_rows, scratch[0])
    # An empty tensor has no address: of no rows the mean is NaN all the same.
    kl = kl_scale * (total(kl_ptr, kl_rows, scratch[0]) if present(kl_ptr) else 0.0)
    number = (0, 1, 0, 1)
    target(loss_out, number, scratch[0])[0] = nll + beta * kl
    target(nll_out, number, scratch[0])[0] = nll
    target(kl_out, number, scratch[0])[0] = kl


def elbo_loss(recon, x, logvar, logvar_value, kl, likelihood, beta, scale, needs):
    """[loss, nll, kl, then the wanted gradients of recon, x and logvar].

    ``likelihood`` is the name of an op's, or "probabilities" for a Bernoulli one whose recon are
    not logits. ``recon`` and x are as the op has them, ``kl`` is a number an example or None.
    """
    nll_scale = scale / samples_in(recon, x)
    width = (logvar, logvar_value) if likelihood in LOCATION_SCALE else ()
    launch_nll = LIKELIHOODS[likelihood]
    rows, gradients = launch_nll(recon, x, *width, values=True, scale=nll_scale, needs=needs)
    kl_rows = 0 if kl is None else kl.shape[0]
    totals = [torch.empty((), dtype=rows.dtype, device="cpu") for _ in range(3)]
    launch(
        total_kernel,
        rows.dtype,
        1,
        max(rows.shape[0], kl_rows),
        rows.shape[0],
        kl_rows,
        beta,
        nll_scale,
        scale,
        as_row(rows),
        as_row(kl),
        *map(operand, totals),
        cost=0.0,  # by one thread
    )
    return [*totals, *gradients]


def scale_(tensor, factor):
    """tensor *= factor in place; a factor of 1 costs nothing."""
    factor = factor.item()
    if factor != 1.0:
        tensor.mul_(factor)
