"""Operands [rows, cols] on the host's side, for the launchers of every backend."""

import os

import torch

# That of the package's import, long before a kernel's: another one is a forked child.
PROCESS = os.getpid()
# The likelihoods that have a width: of a Gaussian its log variance, of a Laplace its log scale.
LOCATION_SCALE = ("gaussian", "laplace")


def accumulator(*tensors):
    """The dtype of sums: float64 if any operand is, else float32."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def as_rows(tensor):
    """A [rows, cols] tensor whose columns are contiguous; any row stride, 0 included."""
    if tensor is None or tensor.shape[1] == 1 or tensor.stride(1) == 1:
        return tensor
    return tensor.contiguous()


def empty_like_rows(tensor, wanted=True):
    """A contiguous output of the tensor's shape and dtype, or None where none is wanted."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format) if wanted else None


def samples_in(recon, x):
    """The samples of each example in recon [samples * rows, cols], for x [rows, cols]."""
    return recon.shape[0] // x.shape[0] if x.shape[0] else 1
