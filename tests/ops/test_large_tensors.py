"""Tensors of more than 2**31 elements, and grids for them, where no memory holds them.

Most of their memory is never touched, so that it costs nothing.
"""

import dataclasses
import math
import mmap

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from fused_elbo.estimators.reference.noise import WORD, box_muller, philox
from fused_elbo.kernels import backends
from fused_elbo.kernels.triton.launch import recording
from helpers.machine import ON_GPU, PTX
from helpers.op_calls import op_calls
from helpers.ptx import launch

ON_CPUS = pytest.mark.skipif(ON_GPU, reason="a device has no memory that costs nothing")
# CUDA's; the emulator keeps to them as well.
GRID_LIMITS = 2**31 - 1, 65_535, 65_535
NO_RESERVE = 0x4000  # mmap.MAP_NORESERVE, which Python has from 3.13 on
LAUNCHERS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def untouched(size, dtype):
    """[size], zeros that take no memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = mmap.mmap(-1, size * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype)


# Many rows; many columns, and so many latents; many of both.
@pytest.mark.parametrize(("rows", "cols"), [(2**25, 3), (3, 200_000), (70_000, 70_000)])
@pytest.mark.parametrize("op", sorted(op_calls("cpu")))
def test_grids_are_within_their_limits(op, rows, cols, monkeypatch):
    serves_meta = dataclasses.replace(backends.TRITON, serves=lambda tensor: tensor.is_meta)
    monkeypatch.setitem(backends.BACKENDS, "triton", serves_meta)
    for arguments in op_calls("meta", rows, cols)[op]:
        with recording() as launches:
            getattr(torch.ops.fused_elbo, op).default.redispatch(LAUNCHERS, *arguments)
        for kernel, grid, _, _ in launches:
            for programs, most in zip(grid, GRID_LIMITS, strict=False):
                assert 0 < programs <= most, (kernel.__name__, grid)


def spread_out(tensor):
    """The same numbers, in rows that are 2**31 elements apart, all of them together."""
    if tensor.dim() < 2 or len(tensor) == 1:
        return tensor
    step = -(-(2**31) // (len(tensor) - 1)) + 16 & -16
    memory = untouched((len(tensor) - 1) * step + tensor[0].numel(), tensor.dtype)
    return memory.as_strided(tensor.shape, (step, *tensor.stride()[1:])).copy_(tensor)


@ON_CPUS
@pytest.mark.parametrize("name", sorted(op_calls("cpu")))
def test_rows_that_are_far_apart(name, device):
    op = getattr(torch.ops.fused_elbo, name).default
    for arguments in op_calls(device, 4, 7)[name]:
        expected = tree_leaves(op(*arguments))
        found = tree_leaves(op(*tree_map_only(torch.Tensor, spread_out, arguments)))
        torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.fixture
def _last_programs_alone(monkeypatch):
    """The emulator runs the last programs of the grid's first dimension alone."""
    real = launch.run_some

    def run_blocks(program, memory, grid, schedule):
        count = min(grid[0], 16)
        with np.errstate(all="ignore"):
            for other in range(math.prod(grid[1:])):
                last = (other + 1) * grid[0]
                real(program, memory, last - count, count, grid, schedule)

    monkeypatch.setattr(launch, "run_blocks", run_blocks)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)


ROWS = 4
# They compare rows with all others, sum over the rows, or have samples where others have rows.
OVER_ROWS = (
    "importance_weights",
    "mixture",
    "marginals",
    "kl_decomposition",
    "elbo_loss",
    "softmax_negative_binomial_loss",
    "discretized_mix_logistic_loss",
    "scale_",
)
DRAWS = "rsample", "sample_kl"  # noise is of the row's number


def by_rows():
    """The calls of [rows, cols] to results of [rows] or [rows, cols], without noise."""
    for name, calls in sorted(op_calls("cpu", ROWS, 1024).items()):
        if name.startswith(OVER_ROWS) or any(part in name for part in DRAWS):
            continue
        for i, arguments in enumerate(calls):
            tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
            if all(len(t) in (1, ROWS) for t in tensors):
                yield pytest.param(name, i, id=f"{name}-{i}")


def lengthened(tensor, rows):
    """``rows`` rows, of which the last are the tensor's, and the others untouched zeros."""
    if len(tensor) == 1:
        return tensor
    memory = untouched(rows * tensor[0].numel(), tensor.dtype)
    long = memory.view(rows, *tensor.shape[1:])
    long[-len(tensor) :] = tensor
    return long


@pytest.mark.skipif(not PTX, reason="needs TRITON_PTX=1")
@pytest.mark.usefixtures("_last_programs_alone")
@pytest.mark.parametrize(("name", "call"), list(by_rows()))
def test_the_last_rows_of_many(name, call, device):
    op, arguments = getattr(torch.ops.fused_elbo, name).default, op_calls(device, ROWS, 1024)
    arguments = arguments[name][call]
    widest = max(a[0].numel() for a in arguments if isinstance(a, torch.Tensor))
    rows = 2**31 // widest + 300
    long = tree_map_only(torch.Tensor, lambda t: lengthened(t, rows), arguments)
    results = [t for t in tree_leaves(op(*long)) if isinstance(t, torch.Tensor)]
    expected = [t for t in tree_leaves(op(*arguments)) if isinstance(t, torch.Tensor)]
    compared = 0
    for found, wanted in zip(results, expected, strict=True):
        if len(found) == rows:
            torch.testing.assert_close(found[-ROWS:], wanted)
            compared += 1
    assert compared


@pytest.mark.skipif(not PTX, reason="needs TRITON_PTX=1")
@pytest.mark.usefixtures("_last_programs_alone")
def test_the_noise_of_the_last_rows_of_many(device):
    cols = 1024
    rows = 2**31 // cols + 300
    mu, logvar = (untouched(rows * cols, torch.bfloat16).view(rows, cols) for _ in range(2))
    seed = torch.tensor(2**40 + 5, device=device)
    z = torch.ops.fused_elbo.gaussian_rsample(mu, logvar, seed, 2, False)
    z = next(t for t in tree_leaves(z) if isinstance(t, torch.Tensor))
    row = torch.arange(rows - ROWS, rows).view(1, -1, 1)
    group, sample = torch.arange(cols // 4).view(1, 1, -1), torch.arange(2).view(-1, 1, 1)
    counter = torch.broadcast_tensors(group, row & WORD, row >> 32, sample)
    a, b, c, d = philox(counter, (seed & WORD, seed >> 32 & WORD))
    normals = torch.stack((*box_muller(a, b), *box_muller(c, d)), -1).flatten(-2)
    torch.testing.assert_close(z[:, -ROWS:], normals.to(z.dtype), rtol=1e-2, atol=1e-2)
