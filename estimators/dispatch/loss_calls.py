"""Whole losses and bounds: checked arguments in, the op or the reference out.

``shape`` is that of a likelihood's values, [B] or [K, B].
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import ops
from ..reference import reference
from .choice import all_known, left_to_torch, ordered_by_compiler, use_kernels
from .layouts import (
    accumulates_in_float64,
    likelihood_data,
    likelihood_rows,
    reshaped,
    tensor_or_none,
)
from .likelihood_calls import negative_log_likelihood
from .likelihoods import LIKELIHOODS
from .types import Implementation, Reduction, Shape


def elbo_loss(
    shape: Shape,
    recon: Tensor,
    x: Tensor,
    parameters: Sequence[Any],
    kl: Any,
    *,
    likelihood: str,
    beta: float | Tensor,
    reduction: Reduction,
    parts: bool = True,
    impl: Implementation,
) -> Any:
    """(loss, nll, kl), reduced; a ``kl`` of None is no term of the loss.

    Without ``parts`` nll and kl may be sums where the loss is a mean.
    """
    given = [tensor_or_none(value) for value in (*parameters, beta)]
    record = LIKELIHOODS[likelihood]
    if reduction != "none":
        learned = bool(parameters) and given[0] is not None
        if left_to_torch(impl, recon, likelihood, learned, in_loss=True):
            found = sums_by_torch(shape, recon, x, parameters, kl, likelihood, beta)
            return found if reduction == "sum" else means(found, x.shape[0], parts)
        if gradient_in_forward(impl, recon, x, kl, *given):
            batch = x.shape[0]
            scale = 1.0 if reduction == "sum" else 1.0 / batch if batch else math.nan
            x = likelihood_data(x, recon, record)
            operands = likelihood_rows(recon, x, parameters, record)
            options: dict[str, Any] = {"likelihood": likelihood, "scale": scale}
            if not isinstance(beta, Tensor):
                return ops.elbo_loss(*operands, kl=kl, beta=float(beta), **options)
            nll, *_ = ops.elbo_loss(*operands, kl=None, beta=1.0, **options)
            kl = getattr(kl.to(nll.dtype), reduction)()
            return weighted_loss(nll, kl, beta), nll, kl
    nll = negative_log_likelihood(shape, recon, x, parameters, likelihood=likelihood, impl=impl)
    if nll.dim() > 1:
        nll = nll.flatten(0, -2).mean(0)
    if kl is not None and kl.dtype != nll.dtype:
        nll, kl = reference.accumulate(nll, kl)
    if reduction != "none":
        nll = getattr(nll, reduction)()
        kl = None if kl is None else getattr(kl, reduction)()
    return nll if kl is None else weighted_loss(nll, kl, beta), nll, kl


def sums_by_torch(
    shape: Shape,
    recon: Tensor,
    x: Tensor,
    parameters: Sequence[Any],
    kl: Tensor | None,
    likelihood: str,
    beta: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss, nll, kl), summed, by torch's own losses.

    A small loss spends its time on operations, and sums take fewer than means.
    """
    record = LIKELIHOODS[likelihood]
    x = likelihood_data(x, recon, record)
    options = (all_known(x, recon),) if record.is_categorical else parameters
    nll = getattr(reference, f"{likelihood}_nll")(recon, x, *options, reduction="sum")
    if len(shape) > 1:
        nll = nll / math.prod(shape[:-1])
    if kl is None:
        return nll, nll, None
    if kl.dtype != nll.dtype:
        nll, kl = reference.accumulate(nll, kl)
    kl = kl.sum()
    return weighted_loss(nll, kl, beta), nll, kl


def means(
    sums: tuple[Tensor, Tensor, Tensor | None], batch: int, parts: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss, nll, kl) of their sums; without ``parts`` the loss alone is divided."""
    loss, nll, kl = sums
    if not parts:
        return loss / batch, nll, kl
    return loss / batch, nll / batch, None if kl is None else kl / batch


def weighted_loss(nll: Tensor, kl: Tensor, beta: float | Tensor) -> Tensor:
    """nll + beta kl, in their dtype."""
    if isinstance(beta, Tensor):
        return nll + beta.to(nll.dtype) * kl
    if torch.compiler.is_compiling():  # for every alpha it would compile anew
        return nll + beta * kl
    return torch.add(nll, kl, alpha=beta)


def gradient_in_forward(
    impl: Implementation, recon: Tensor, x: Tensor, kl: Tensor | None, *others: Any
) -> bool:
    """Whether the likelihood's gradient can be had in the forward pass.

    Not in float16, whose range 1/B times a gradient may leave before the loss scale is in; nor
    where the KL is in float64 and the likelihood's sum is not; nor under torch.compile, which fuses
    the factor's multiplication and the reduction itself. ``others`` are the likelihood's parameters
    and, last, beta.
    """
    if recon.dtype == torch.float16 or torch.compiler.is_compiling():
        return False
    if kl is not None and kl.dtype == torch.float64:
        *parameters, _ = others
        if not accumulates_in_float64(recon, x, *parameters):
            return False
    return use_kernels(impl, recon, x, kl, *others)


def importance_weights(
    log_weights: Tensor, alpha: float, *, impl: Implementation
) -> tuple[Tensor, Tensor, Tensor]:
    """(bound, weights, ess)."""
    if not use_kernels(impl, log_weights) or ordered_by_compiler(alpha):
        return reference.importance_weights(log_weights, alpha)
    shape = log_weights.shape[1:]
    flat = reshaped(log_weights, (len(log_weights), math.prod(shape)))
    bound, weights, ess, _ = ops.importance_weights(flat, None, float(alpha))
    return (
        reshaped(bound, shape),
        reshaped(weights, log_weights.shape),
        reshaped(ess, shape),
    )


def importance_bound(
    log_ratio: Tensor, nll: Tensor, alpha: float, *, with_weights: bool, impl: Implementation
) -> Any:
    """(bound, weights, ess, log weights) of log_ratio - nll [K, B]; the bound has a gradient.

    Weights and ess may be None where nobody wants them.
    """
    if use_kernels(impl, nll, log_ratio) and not ordered_by_compiler(alpha):
        return ops.importance_weights(log_ratio, nll, float(alpha))
    log_weights = log_ratio - nll
    bound, weights, ess = reference.importance_bound(log_weights, alpha), None, None
    if with_weights:
        _, weights, ess = reference.importance_weights(log_weights.detach(), alpha)
    return bound, weights, ess, log_weights
