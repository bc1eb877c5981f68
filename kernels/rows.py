"""Operands [rows, cols], before a launch: for the launchers of every backend."""

import os
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

FLOAT32, FLOAT64 = torch.float32, torch.float64
# The process that imported the package. Another one that runs a kernel is a forked child.
PROCESS = os.getpid()


def accumulator(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of sums: float64 if any operand is, else float32."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype is FLOAT64:
            return FLOAT64
    return FLOAT32


@overload
def as_rows(tensor: Tensor) -> Tensor: ...
@overload
def as_rows(tensor: None) -> None: ...
def as_rows(tensor: Tensor | None) -> Tensor | None:
    """A [rows, cols] tensor with contiguous columns and any row stride, 0 included."""
    if tensor is None or tensor.shape[1] == 1 or tensor.stride(1) == 1:
        return tensor
    return tensor.contiguous()


@overload
def empty_like_rows(tensor: Tensor, wanted: Literal[True] = True) -> Tensor: ...
@overload
def empty_like_rows(tensor: Tensor, wanted: bool) -> Tensor | None: ...
def empty_like_rows(tensor: Tensor, wanted: bool = True) -> Tensor | None:
    """A contiguous output of the tensor's shape and dtype, or None where none is wanted."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format) if wanted else None


def zeroed_prior(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients (mu, logvar, prior_mu, prior_logvar), the prior's set to zero.

    For a call without an upstream gradient of the KL: nothing else depends on the prior, and the
    kernels write no gradients of it.
    """
    return [*gradients[:2], *(g if g is None else g.zero_() for g in gradients[2:])]


def padded(needs: Sequence[bool], count: int) -> Sequence[bool]:
    """``needs``, with False for those that are missing at its end."""
    return needs if len(needs) == count else (*needs, *(False,) * (count - len(needs)))


# The bounds to which latent diffusion's autoencoders clamp their log variances.
LEAST_LOGVAR, GREATEST_LOGVAR = -30.0, 20.0


@overload
def halves(mean: Tensor, spread: Tensor | None) -> tuple[Tensor, Tensor]: ...
@overload
def halves(mean: Tensor | None, spread: Tensor | None) -> tuple[Tensor | None, Tensor | None]: ...
def halves(mean: Tensor | None, spread: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both as they are; where ``spread`` is None, the two halves [rows, cols] of ``mean``."""
    if mean is None or spread is not None:
        return mean, spread
    cols = mean.shape[1] // 2
    return mean[:, :cols], mean[:, cols:]


def samples_in(recon: Tensor, x: Tensor) -> int:
    """The samples of each example in recon [samples * rows, cols], for x [rows, cols]."""
    rows = x.shape[0]
    return recon.shape[0] // rows if rows else 1
