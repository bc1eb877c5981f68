"""The words that arguments may be: a type for checkers, and a tuple for the checks at run time."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Implementation: TypeAlias = Literal["auto", "triton", "numba", "reference"]
IMPLEMENTATIONS = ("auto", "triton", "numba", "reference")

Reduction: TypeAlias = Literal["none", "mean", "sum"]
REDUCTIONS = ("none", "mean", "sum")

Gradient: TypeAlias = Literal["total", "path", "dreg"]
GRADIENTS = ("total", "path", "dreg")

Shape: TypeAlias = Sequence[int]


class Parametrisation(NamedTuple):
    """How a network puts a Gaussian's spread out, as the ops of posteriors take it."""

    form: Literal["clamped_logvar", "log_std", "std", "variance"]
    soft_clamp: float = 0.0
    std_offset: float = 0.0
