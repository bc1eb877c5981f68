"""Negative log-likelihoods: checked arguments in, the op or the reference out.

``shape`` is that of a likelihood's values, [B] or [K, B].
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import ops
from ..reference import reference
from . import layouts
from .choice import all_known, left_to_compiler, left_to_torch, plain_on_cpu, use_kernels
from .layouts import as_rows, floating, likelihood_data, likelihood_rows, reshaped, tensor_or_none
from .likelihoods import LIKELIHOODS
from .types import Implementation, Shape

# A look at the data takes a quarter of a small call, and data of a wrong scale remain so: the first
# calls are looked at, as many as this, and from then on one of so many.
LOOKED_AT = 100
unit_calls = itertools.count()  # of Bernoullis


def negative_log_likelihood(
    shape: Shape,
    recon: Tensor,
    x: Tensor,
    parameters: Sequence[Any] = (),
    *,
    likelihood: str,
    impl: Implementation,
) -> Tensor:
    """-log p(x|z) of each example, or of every sample of it.

    ``parameters`` are the values of those that the likelihood's record names.
    """
    record = LIKELIHOODS[likelihood]
    x = likelihood_data(x, recon, record)
    given = [tensor_or_none(value) for value in parameters]
    learned = bool(given) and given[0] is not None
    fits = not left_to_torch(impl, recon, likelihood, learned)
    fits = fits and not (record.left_to_compiler and left_to_compiler(impl, recon))
    if not use_kernels(impl, recon, x, *given, fits=fits):
        options = (all_known(x, recon),) if record.is_categorical else parameters
        return getattr(reference, f"{likelihood}_nll")(recon, x, *options)
    recon, x, *rest = likelihood_rows(recon, x, parameters, record)
    op, options = ops.likelihood_op(likelihood, *rest)
    nll = op(recon, x, *options)
    if nll.numel() != math.prod(shape):  # one number for each event
        nll = nll.view(math.prod(shape), -1).sum(-1)
    return reshaped(nll, shape)


def warn_of_data(likelihood: str, nll: Tensor) -> None:
    """Warn where a Bernoulli's x cannot be in [0, 1], as far as a look makes nobody wait.

    A look at the result costs less than one at x, and sees every x whose loss falls below zero.
    """
    if LIKELIHOODS[likelihood].data != "unit" or torch.compiler.is_compiling():
        return
    number = next(unit_calls)
    if number >= LOOKED_AT and number % LOOKED_AT != 0:
        return
    if nll.numel() == 0 or not plain_on_cpu((nll,)):
        return
    least = (nll if nll.dim() == 0 else nll.detach().amin()).item()
    if least < 0:
        warnings.warn(
            f"a Bernoulli has a negative log-likelihood of {least:.6g} nats here, which only data "
            "outside [0, 1] can have: scale x, as by x / 255 for grey values of 0 to 255",
            stacklevel=3,
        )


def negative_binomial_nll_terms(
    log_mean: Tensor,
    x: Tensor,
    log_theta: Tensor,
    zero_logits: Tensor | None,
    *,
    impl: Implementation,
) -> Tensor:
    """The nll of each element of log_mean [..., G]; the others broadcast to it."""
    if not use_kernels(impl, log_mean, x, log_theta, zero_logits):
        return reference.negative_binomial_nll_terms(log_mean, x, log_theta, zero_logits)
    shape = log_mean.shape
    m, x, z = as_rows(shape, log_mean, floating(x, log_mean), zero_logits)
    (a,) = as_rows(shape, log_theta)
    if log_theta.numel() == shape[-1] == log_theta.shape[-1]:  # one for all rows
        a = log_theta.reshape(1, -1)
    return reshaped(ops.negative_binomial_nll(m, x, a, z, 0.0, True), shape)


def softmax_negative_binomial_nll(
    shape: Shape,
    logits: Tensor,
    x: Tensor,
    log_theta: float | Tensor,
    log_library: Tensor,
    zero_logits: Tensor | None,
    *,
    scale: float | None = None,
    impl: Implementation,
) -> Tensor:
    """-log p of each example; with ``scale``, their sum times it.

    The sum's gradients come from the forward pass, except in float16 and under torch.compile, as
    ``loss_calls.gradient_in_forward`` says.
    """
    record = LIKELIHOODS["negative_binomial"]
    given = tensor_or_none(log_theta), log_library, zero_logits
    x = likelihood_data(x, logits, record)
    if not use_kernels(impl, logits, x, *given):
        nll = reference.softmax_negative_binomial_nll(
            logits, x, log_theta, log_library, zero_logits
        )
        return nll if scale is None else nll.sum() * scale
    parameters = log_theta, zero_logits
    rows, x, width, value, zeros = likelihood_rows(logits, x, parameters, record)
    library = layouts.parameter_rows(log_library, logits, x, rows.shape)
    operands = rows, x, width, library, zeros, value
    in_forward = logits.dtype != torch.float16 and not torch.compiler.is_compiling()
    if scale is not None and in_forward:
        return ops.softmax_negative_binomial_loss(*operands, scale)
    nll = reshaped(ops.softmax_negative_binomial_nll(*operands), shape)
    return nll if scale is None else nll.sum() * scale


def discretized_mix_logistic_nll(
    params: Tensor,
    x: Tensor,
    half_bin: float,
    right_edge: float,
    guard: float,
    *,
    scale: float | None = None,
    impl: Implementation,
) -> Tensor:
    """-log p of each pixel [B, P]; with ``scale``, their sum times it.

    The sum's gradient comes from the forward pass, except in float16 and under torch.compile, as
    ``loss_calls.gradient_in_forward`` says.
    """
    bins = half_bin, right_edge, guard
    params, x = params.flatten(2), x.flatten(2)
    kernels = use_kernels(impl, params, x, fits=x.shape[1] == 3)
    in_forward = params.dtype != torch.float16 and not torch.compiler.is_compiling()
    if kernels and scale is not None and in_forward:
        return ops.discretized_mix_logistic_loss(params, x, *bins, scale)
    function = ops if kernels else reference
    nll = function.discretized_mix_logistic_nll(params, x, *bins)
    return nll if scale is None else nll.sum() * scale
