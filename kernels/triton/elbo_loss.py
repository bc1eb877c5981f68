"""The reduced loss, scale * sum over rows of (mean nll + beta * kl), and its gradients.

The gradient of a training step's loss is known but for one factor before the loss is:
the likelihood kernels write it in the forward pass, where their inputs are in registers.
Backward then only multiplies by that factor, in place, and not even that where it is 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from ..rows import LOCATION_SCALE, samples_in
from .bernoulli_nll import launch_bernoulli_nll
from .categorical_nll import launch_categorical_nll
from .device import narrowed
from .gaussian_nll import launch_gaussian_nll
from .laplace_nll import launch_laplace_nll
from .launch import divide_up, launch, triton_dtype
from .poisson_nll import launch_poisson_nll

BLOCK = 4096
LIKELIHOODS: dict[str, Callable[..., Any]] = {
    "bernoulli": launch_bernoulli_nll,
    "probabilities": functools.partial(launch_bernoulli_nll, probabilities=True),
    "gaussian": launch_gaussian_nll,
    "laplace": launch_laplace_nll,
    "poisson": launch_poisson_nll,
    "categorical": launch_categorical_nll,
}


@triton.jit
def total_kernel(
    nll_ptr,
    kl_ptr,
    loss_out,
    nll_out,
    kl_out,
    n,
    rows,
    kl_stride,
    beta: tl.float64,
    nll_scale: tl.float64,
    kl_scale: tl.float64,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program: (loss, nll, kl) from the partial sums nll [n] and the rows kl [rows]."""
    lane = tl.arange(0, BLOCK)
    nll = tl.zeros((BLOCK,), ACC)
    for start in range(0, n, BLOCK):
        nll += tl.load(nll_ptr + start + lane, mask=start + lane < n, other=0.0)
    kl = tl.zeros((BLOCK,), ACC)
    if kl_ptr is not None:
        for start in range(0, rows, BLOCK):
            offset = (start + lane).to(tl.int64) * kl_stride
            kl += tl.load(kl_ptr + offset, mask=start + lane < rows, other=0.0).to(ACC)
    nll = tl.sum(nll, axis=0) * tl.full((), nll_scale, ACC)
    kl = tl.sum(kl, axis=0) * tl.full((), kl_scale, ACC)
    tl.store(loss_out, nll + tl.full((), beta, ACC) * kl)
    tl.store(nll_out, nll)
    tl.store(kl_out, kl)


@triton.jit
def scale_kernel(tensor_ptr, factor_ptr, n, BLOCK: tl.constexpr):
    """tensor *= factor in place. A factor of 1 costs one load a program, and no sync."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(tensor_ptr + offset, mask=offset < n)
        value = narrowed(value.to(factor.dtype) * factor, tensor_ptr)
        tl.store(tensor_ptr + offset, value, mask=offset < n)


def elbo_loss(recon, x, logvar, logvar_value, kl, likelihood, beta, scale, needs):
    nll_scale = scale / samples_in(recon, x)
    options = {"scale": nll_scale, "output": "tiles", "needs": needs}
    width = (logvar, logvar_value) if likelihood in LOCATION_SCALE else ()
    nll, gradients = LIKELIHOODS[likelihood](recon, x, *width, **options)
    totals = [nll.new_empty(()) for _ in range(3)]
    rows, kl_stride = (0, 0) if kl is None else (kl.shape[0], kl.stride(0))
    arguments = [nll, kl, *totals, nll.numel(), rows, kl_stride, beta, nll_scale, scale]
    launch(total_kernel, (1,), arguments, {"BLOCK": BLOCK, "ACC": triton_dtype(nll.dtype)})
    return [*totals, *gradients]


def scale_(tensor, factor):
    n = tensor.numel()
    if n:
        launch(scale_kernel, (divide_up(n, BLOCK),), [tensor, factor, n], {"BLOCK": BLOCK})
