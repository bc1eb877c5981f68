"""Where the kernels of this run live.

    (nothing set)         Triton's on a CUDA device, numba's where there is none
    TRITON_INTERPRET=1    Triton's kernels, interpreted on a CPU
    TRITON_PTX=1          Triton's kernels, compiled for NVIDIA, their PTX executed on a CPU

Triton and the library decide when they are first used: import this before any module of kernels.
"""

import os
import sys

import pytest
import torch

INTERPRET = os.environ.setdefault("TRITON_INTERPRET", "0") == "1"
PTX = os.environ.get("TRITON_PTX") == "1"
# The emulator's approximate instructions are off by as much as NVIDIA documents.
WORST_INSTRUCTIONS = PTX and os.environ.get("PTX_APPROX", "exact") != "exact"
ON_GPU = not INTERPRET and not PTX and torch.cuda.is_available()
KERNELS = "triton" if INTERPRET or PTX or ON_GPU else "numba"  # what impl= calls them
NEEDS_ARVIZ = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="arviz-stats is for Python 3.11 and newer"
)

if PTX:
    from fused_elbo.kernels import backends
    from helpers.ptx import driver

    driver.activate()
    backends.INTERPRETED = True  # CPU tensors are for Triton's kernels
