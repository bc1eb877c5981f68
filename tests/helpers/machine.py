"""Where the kernels of this run live: Triton's interpreter, numba, or a CUDA device.

    TRITON_INTERPRET=0 (the default)    Triton's on a CUDA device, numba's where there is none
    TRITON_INTERPRET=1                  Triton's kernels, interpreted on a CPU

Both decide when they are first used: import this before any module of kernels.
"""

import os
import sys

import pytest
import torch

INTERPRET = os.environ.setdefault("TRITON_INTERPRET", "0") == "1"
ON_GPU = not INTERPRET and torch.cuda.is_available()
KERNELS = "triton" if INTERPRET or ON_GPU else "numba"  # what impl= calls them
NEEDS_ARVIZ = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="arviz-stats is for Python 3.11 and newer"
)
