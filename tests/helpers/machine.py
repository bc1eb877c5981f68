"""Where the kernels of this run live: in Triton's interpreter, or on a CUDA device.

Triton decides when a kernel is defined: import this before any module of kernels.
"""

import os

import torch

INTERPRET = os.environ.setdefault("TRITON_INTERPRET", "1") == "1"
ON_GPU = not INTERPRET and torch.cuda.is_available()
