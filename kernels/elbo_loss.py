"""The reduced loss, scale * sum over rows of (mean nll + beta * kl), and its gradients.

The gradient of a training step's loss is known but for one factor before the loss is:
the likelihood kernels write it in the forward pass, where their inputs are in registers.
Backward then only multiplies by that factor, in place, and not even that where it is 1.
"""

import torch
import triton
import triton.language as tl

from .bernoulli_nll import bernoulli_nll_backward_op, launch_bernoulli_nll
from .gaussian_nll import gaussian_nll_backward_op, launch_gaussian_nll
from .launch import accumulator, divide_up, launch
from .library import KernelFunction, gradients_like, once_differentiable, register, spread

BLOCK = 4096
# A Bernoulli likelihood whose recon are probabilities, not logits: for fused_elbo.compat alone.
PROBABILITIES = "bernoulli-probabilities"


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
        value = (value.to(factor.dtype) * factor).to(tensor_ptr.dtype.element_ty)
        tl.store(tensor_ptr + offset, value, mask=offset < n)


def samples_in(recon, x):
    """The samples of each example in recon [samples * rows, cols], for x [rows, cols]."""
    return recon.shape[0] // x.shape[0] if x.shape[0] else 1


def _elbo_loss(recon, x, logvar, logvar_value, kl, likelihood, beta, scale, needs):
    """[loss, nll, kl, then the wanted gradients of recon, x and logvar]."""
    nll_scale = scale / samples_in(recon, x)
    options = {"scale": nll_scale, "output": "tiles", "needs": needs}
    if likelihood == "gaussian":
        nll, gradients = launch_gaussian_nll(recon, x, logvar, logvar_value, **options)
    else:
        options |= {"needs": needs[:2], "probabilities": likelihood == PROBABILITIES}
        nll, gradients = launch_bernoulli_nll(recon, x, **options)
    totals = [nll.new_empty(()) for _ in range(3)]
    rows = x.shape[0]
    kl_stride = 0 if kl is None else kl.stride(0)
    arguments = [nll, kl, *totals, nll.numel(), rows, kl_stride, beta, nll_scale, scale]
    acc = tl.float64 if nll.dtype == torch.float64 else tl.float32
    launch(total_kernel, (1,), arguments, {"BLOCK": BLOCK, "ACC": acc})
    return [*totals, *gradients]


def _elbo_loss_fake(recon, x, logvar, logvar_value, kl, likelihood, beta, scale, needs):
    acc = accumulator(recon, x, logvar)
    totals = [recon.new_empty((), dtype=acc) for _ in range(3)]
    return [*totals, *gradients_like((recon, x, logvar), needs)]


def _scale_(tensor, factor):
    n = tensor.numel()
    if n:
        launch(scale_kernel, (divide_up(n, BLOCK),), [tensor, factor, n], {"BLOCK": BLOCK})


elbo_loss_op = register(
    "elbo_loss(Tensor recon, Tensor x, Tensor? logvar, float logvar_value, Tensor? kl, "
    "str likelihood, float beta, float scale, bool[] needs) -> Tensor[]",
    _elbo_loss,
    _elbo_loss_fake,
)
scale_op = register(
    "scale_(Tensor(a!) tensor, Tensor factor) -> ()", _scale_, lambda tensor, factor: None
)


class ELBOLoss(KernelFunction):
    """(loss, nll, kl), and behind them the gradients of the likelihood, for backward.

    The first backward hands the gradients that forward wrote over, scaled in place. A
    second one, over a retained graph, computes them again: what was handed over is no
    longer ours to read.
    """

    @staticmethod
    def forward(recon, x, logvar, logvar_value, kl, likelihood, beta, scale, needs):
        return tuple(
            elbo_loss_op(recon, x, logvar, logvar_value, kl, likelihood, beta, scale, needs)
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        recon, x, logvar, ctx.logvar_value, kl, ctx.likelihood, ctx.beta, ctx.scale, _ = inputs
        ctx.save_for_backward(recon, x, logvar, kl)
        ctx.gradients = output[3:]
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss, dnll, dkl, *_):
        needs = ctx.needs_input_grad
        recon, x, logvar, kl = ctx.saved_tensors
        factor = weighted_sum((dloss, 1.0), (dnll, 1.0))
        gradients, ctx.gradients = ctx.gradients, None
        if factor is None:
            gradients = (None, None, None)
        elif gradients is not None:
            for gradient in gradients:
                scale_op(gradient, factor)
            gradients = spread(gradients, needs[:3])
        else:
            grad = (factor * (ctx.scale / samples_in(recon, x))).expand(recon.shape[0])
            likelihood_needs = list(needs[:3])
            if ctx.likelihood == "gaussian":
                gradients = gaussian_nll_backward_op(
                    grad, recon, x, logvar, ctx.logvar_value, 1, likelihood_needs
                )
            else:
                probabilities = ctx.likelihood == PROBABILITIES
                gradients = bernoulli_nll_backward_op(
                    grad, recon, x, probabilities, likelihood_needs[:2]
                )
            gradients = spread(gradients, needs[:3])
        kl_grad = None
        if needs[4]:
            kl_grad = weighted_sum((dloss, ctx.beta * ctx.scale), (dkl, ctx.scale))
            kl_grad = None if kl_grad is None else kl_grad.expand(kl.shape[0])
        return *gradients, None, kl_grad, None, None, None, None


def weighted_sum(*terms):
    """sum of weight * tensor over the tensors that are there; a weight of 1 is no launch."""
    present = [t if weight == 1.0 else t * weight for t, weight in terms if t is not None]
    return sum(present[1:], start=present[0]) if present else None


def elbo_loss(recon, x, logvar, logvar_value, *, kl, likelihood, beta, scale):
    """(loss, nll, kl): ``scale`` times the sums over rows, loss = nll + beta kl.

    ``x`` [rows, cols], ``recon`` [samples * rows, cols], whose nll is the mean over samples,
    ``logvar`` as in the launcher, ``kl`` [rows] or None.
    """
    operands = (recon, x, logvar)
    track = torch.is_grad_enabled()
    needs = [track and t is not None and t.requires_grad for t in operands]
    outputs = ELBOLoss.apply(recon, x, logvar, logvar_value, kl, likelihood, beta, scale, needs)
    return outputs[:3]
