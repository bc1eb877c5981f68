"""The words that arguments may be: a type for checkers, and a tuple for the checks at run time."""

from typing import Literal, TypeAlias

Implementation: TypeAlias = Literal["auto", "triton", "numba", "reference"]
IMPLEMENTATIONS = ("auto", "triton", "numba", "reference")

Reduction: TypeAlias = Literal["none", "mean", "sum"]
REDUCTIONS = ("none", "mean", "sum")

Gradient: TypeAlias = Literal["total", "path", "dreg"]
GRADIENTS = ("total", "path", "dreg")
