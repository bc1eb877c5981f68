"""The parts that the drop-ins' entries share."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch.distributions import Normal

from ..harness import traffic
from ..harness.cases import BOTH
from ..harness.operation import PIXEL, Operation, log_variance


def loss_floor(case):
    """The loss in one pass over the pixels, and the KL as ever."""
    return traffic.loss_pixels(case) + traffic.KL.elements(case)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DropIn(Operation):
    outputs: tuple = ("scalar",)
    floor: Callable = loss_floor
    dtypes: tuple = BOTH
    most: float = math.inf  # the largest batch


RECONSTRUCTED = {"recons": PIXEL, "image": PIXEL._replace(data=True)}


def variance(normal):
    return log_variance(normal).exp()


def normal(mean, scale):
    return Normal(mean, scale, validate_args=not torch.compiler.is_compiling())
