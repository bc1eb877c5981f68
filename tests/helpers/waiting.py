"""What makes a host wait for a CUDA device, found on a machine that has none.

Inside torch's ``FakeTensorMode`` ``device="cuda"`` makes tensors without memory. A torch that was
built for CPUs has no autograd for them: they take no gradients.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
COPIES = ATEN._to_copy.default, ATEN.copy_.default, ATEN._pin_memory.default
LOOKS = ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.masked_select.default


class NoWaiting(TorchDispatchMode):
    """Raises where a value is read back, or is copied between a CPU and another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = self.devices((args, kwargs))
        if func in LOOKS and given - {"cpu"}:
            raise AssertionError(f"{func} reads a value back")
        found = func(*args, **(kwargs or {}))
        devices = given | self.devices(found)
        if func in COPIES and "cpu" in devices and devices - {"cpu"}:
            raise AssertionError(f"{func} copies between {sorted(devices)}")
        return found

    @staticmethod
    def devices(values):
        return {t.device.type for t in tree_leaves(values) if isinstance(t, torch.Tensor)}
