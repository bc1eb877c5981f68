"""The reduced loss, scale * sum over rows of (mean nll + beta * kl), and its gradients.

In a training step the gradient is known in the forward pass, except for one factor. The likelihood
kernels write it there, while their inputs are in registers. Backward multiplies it by the factor,
in place, or leaves it alone where the factor is 1.
"""

import triton
import triton.language as tl

from .device import narrowed
from .launch import divide_up, launch, triton_dtype

ELEMENTS = 4096  # of a program


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
    BLOCK_ELEMENTS: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program: (loss, nll, kl) from the partial sums nll [n] and the rows kl [rows]."""
    lane = tl.arange(0, BLOCK_ELEMENTS)
    nll = tl.zeros((BLOCK_ELEMENTS,), ACC)
    for start in range(0, n, BLOCK_ELEMENTS):
        nll += tl.load(nll_ptr + start + lane, mask=start + lane < n, other=0.0)
    kl = tl.zeros((BLOCK_ELEMENTS,), ACC)
    if kl_ptr is not None:
        for start in range(0, rows, BLOCK_ELEMENTS):
            offset = (start + lane).to(tl.int64) * kl_stride
            kl += tl.load(kl_ptr + offset, mask=start + lane < rows, other=0.0).to(ACC)
    nll = tl.sum(nll, axis=0) * tl.full((), nll_scale, ACC)
    kl = tl.sum(kl, axis=0) * tl.full((), kl_scale, ACC)
    tl.store(loss_out, nll + tl.full((), beta, ACC) * kl)
    tl.store(nll_out, nll)
    tl.store(kl_out, kl)


@triton.jit
def scale_kernel(tensor_ptr, factor_ptr, n, BLOCK_ELEMENTS: tl.constexpr):
    """tensor *= factor in place. A factor of 1 costs one load per program, and no sync."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        offset = tl.program_id(0).to(tl.int64) * BLOCK_ELEMENTS + tl.arange(0, BLOCK_ELEMENTS)
        value = tl.load(tensor_ptr + offset, mask=offset < n)
        value = narrowed(value.to(factor.dtype) * factor, tensor_ptr)
        tl.store(tensor_ptr + offset, value, mask=offset < n)


def launch_total(nll, kl, nll_scale, kl_scale, beta):
    """(loss, nll, kl) from the numbers nll [n] and kl [rows], or from nll alone if kl is None."""
    totals = [nll.new_empty(()) for _ in range(3)]
    rows, kl_stride = (0, 0) if kl is None else (kl.shape[0], kl.stride(0))
    arguments = [nll, kl, *totals, nll.numel(), rows, kl_stride, beta, nll_scale, kl_scale]
    launch(
        total_kernel, (1,), arguments, {"BLOCK_ELEMENTS": ELEMENTS, "ACC": triton_dtype(nll.dtype)}
    )
    return totals


def scale_(tensor, factor):
    n = tensor.numel()
    if n:
        launch(
            scale_kernel,
            (divide_up(n, ELEMENTS),),
            [tensor, factor, n],
            {"BLOCK_ELEMENTS": ELEMENTS},
        )
