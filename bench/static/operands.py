"""The tensors that launches are recorded with. They are large, and nothing reads or writes them."""

from collections.abc import Callable
from typing import NamedTuple

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
ROWS = 2**16  # enough for the tile that large problems get
COLUMNS = (64, 1024)
# Samples of the kernels that loop over them. One sample would be compiled in.
SAMPLES = 4


class StaticCase(NamedTuple):
    """One launch to compile, and how its instructions are counted."""

    name: str  # the op, the variant, then "forward", "backward" or "forward + gradient"
    operands: int | None  # full-size tensors read + written; None: no contract of bytes
    call: Callable  # the launcher with its arguments
    # The loops whose instructions count: "longest" or "innermost"; None: the whole program.
    loops: str | None = None


class Operands:
    """Tensors of one dtype and row length. Memory is reserved and never touched."""

    def __init__(self, dtype, cols):
        self.dtype, self.cols = dtype, cols
        self.acc = torch.float64 if dtype == torch.float64 else torch.float32
        self.a, self.b, self.c, self.d = (self.full() for _ in range(4))
        self.rows = self.sums(ROWS)  # a number per row, such as a gradient
        self.q = (self.a, self.b, None, None)
        self.q_and_prior = (self.a, self.b, self.c, self.d)
        self.seed = torch.empty((), dtype=torch.int64)

    def full(self, *samples):
        return self.empty(*samples, ROWS, self.cols)

    def empty(self, *shape):
        return torch.empty(*shape, dtype=self.dtype)

    def sums(self, *shape):
        """In the dtype that sums have."""
        return torch.empty(*shape, dtype=self.acc)


OF_Q = (True, True, False, False)  # gradients of mu and logvar, and none of the prior
OF_ALL = (True,) * 4
