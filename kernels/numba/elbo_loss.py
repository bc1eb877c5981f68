"""The reduced loss, scale * sum over rows of (mean nll + beta * kl), and its gradients.

The gradient of a training step's loss is known but for one factor before the loss is: the
likelihood kernels write it in the forward pass, while their inputs are in the cache. Backward
then only multiplies by that factor, in place, and not even that where it is 1.
"""

from .compiler import helper, kernel
from .launch import launch
from .memory import as_row, load, operand, present, target, tiles_of, workspace
from .sums import lane_sum


@helper
def total(operand, count, buffer):
    """The sum of an operand [1, count]; tiles are added in float64."""
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
    # An empty tensor has no address, but the mean of no rows must be NaN.
    kl = kl_scale * (total(kl_ptr, kl_rows, scratch[0]) if present(kl_ptr) else 0.0)
    number = (0, 1, 0, 1)
    target(loss_out, number, scratch[0])[0] = nll + beta * kl
    target(nll_out, number, scratch[0])[0] = nll
    target(kl_out, number, scratch[0])[0] = kl


def launch_total(nll, kl, nll_scale, kl_scale, beta):
    """(loss, nll, kl) from the numbers nll [n] and kl [rows], or from nll alone if kl is None."""
    kl_rows = 0 if kl is None else kl.shape[0]
    totals = [nll.new_empty(()) for _ in range(3)]
    launch(
        total_kernel,
        nll.dtype,
        1,
        max(nll.shape[0], kl_rows),
        nll.shape[0],
        kl_rows,
        beta,
        nll_scale,
        kl_scale,
        as_row(nll),
        as_row(kl),
        *map(operand, totals),
        cost=0.0,  # so small that one thread does it
    )
    return totals


def scale_(tensor, factor):
    """tensor *= factor in place; a factor of 1 costs nothing."""
    factor = factor.item()
    if factor != 1.0:
        tensor.mul_(factor)
