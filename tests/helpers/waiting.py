"""Calls that make a host wait for a CUDA device, found on a machine that has none.

Tensors on "meta" stand in for CUDA's: they have a shape, a dtype, and no values to look at.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
COPIES = ATEN._to_copy.default, ATEN.copy_.default, ATEN._pin_memory.default
LOOKS = ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.masked_select.default
FROM_THE_HOST = torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor


def devices_of(values):
    return {t.device.type for t in tree_leaves(values) if isinstance(t, torch.Tensor)}


class Operations(TorchDispatchMode):
    """Raises where a value is read back, or is copied between a CPU and another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = devices_of((args, kwargs))
        if func in LOOKS and given - {"cpu"}:
            raise AssertionError(f"{func} reads a value back")
        found = func(*args, **(kwargs or {}))
        devices = given | devices_of(found)
        if func in COPIES and "cpu" in devices and devices - {"cpu"}:
            raise AssertionError(f"{func} copies between {sorted(devices)}")
        return found


class Constructors(TorchFunctionMode):
    """Raises where numbers of the host become a tensor on a device: on CUDA they are copied there.

    (``torch.full`` and ``new_full`` fill it there.)
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func in FROM_THE_HOST and devices_of(found) - devices_of(args[-1:]) - {"cpu"}:
            raise AssertionError(f"{func.__name__} copies from the host")
        return found


@contextmanager
def no_waiting():
    with Constructors(), Operations():
        yield
