"""Rows of the bad-input tables: a call, its error, and the words that the message must contain."""

import gc
import re
from typing import Any, NamedTuple

import pytest
import torch

import fused_elbo

from .machine import KERNELS

IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])
F64, I64, C64, BOOL = torch.float64, torch.int64, torch.complex64, torch.bool
META = torch.device("meta")


def t(*shape, dtype=torch.float32):
    return torch.rand(shape, dtype=dtype)


def DECODER(z):  # noqa: N802
    """From z [K, B, 2] to logits [K, B, 4]."""
    return torch.cat((z, z), -1)


class Bad(NamedTuple):
    name: str
    args: tuple
    kwargs: dict[str, Any]
    error: type[Exception]
    says: list[str]


def bad(name, *args, error=ValueError, says, **kwargs):
    """A call of ``fused_elbo.name`` that must raise ``error``, in a message with all of ``says``.

    Tensors are made on the CPU, and moved to the device of the kernels under test.
    """
    return Bad(name, args, kwargs, error, says)


def check(case, impl, device):
    def move(value):
        on_cpu = isinstance(value, torch.Tensor) and value.device.type == "cpu"
        return value.to(device) if on_cpu else value

    args = [move(a) for a in case.args]
    kwargs = {name: move(a) for name, a in case.kwargs.items()}
    with pytest.raises(case.error) as raised:
        getattr(fused_elbo, case.name)(*args, **kwargs, impl=impl)
    assert type(raised.value) is case.error
    message = str(raised.value)
    for word in case.says:
        assert re.search(rf"(?<![\w.]){re.escape(word)}", message), f"no {word!r} in: {message}"
    if case.name == "chunked_iwae_loss":
        # Torch 2.11 takes the hooks of a failed checkpoint away with its traceback, not before.
        del raised
        gc.collect()
