"""Operands [rows, cols] on the host's side, for the launchers of every backend."""

import os

import torch

FLOAT32, FLOAT64 = torch.float32, torch.float64
# That of the package's import, long before a kernel's: another one is a forked child.
PROCESS = os.getpid()


def accumulator(*tensors):
    """The dtype of sums: float64 if any operand is, else float32."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype is FLOAT64:
            return FLOAT64
    return FLOAT32


def as_rows(tensor):
    """A [rows, cols] tensor whose columns are contiguous; any row stride, 0 included."""
    if tensor is None or tensor.shape[1] == 1 or tensor.stride(1) == 1:
        return tensor
    return tensor.contiguous()


def empty_like_rows(tensor, wanted=True):
    """A contiguous output of the tensor's shape and dtype, or None where none is wanted."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format) if wanted else None


def padded(needs, count):
    """``needs`` with False for the missing ones at its end."""
    return needs if len(needs) == count else (*needs, *(False,) * (count - len(needs)))


# To these latent diffusion's autoencoders clamp their log variances.
LEAST_LOGVAR, GREATEST_LOGVAR = -30.0, 20.0


def halves(mean, spread):
    """The two as they are; or of ``mean`` the two halves [rows, cols], where ``spread`` is None."""
    if mean is None or spread is not None:
        return mean, spread
    cols = mean.shape[1] // 2
    return mean[:, :cols], mean[:, cols:]


def samples_in(recon, x):
    """The samples of each example in recon [samples * rows, cols], for x [rows, cols]."""
    rows = x.shape[0]
    return recon.shape[0] // rows if rows else 1
