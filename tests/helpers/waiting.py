"""What makes a host wait for a CUDA device, found on a machine that has none."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoWaiting(TorchDispatchMode):
    """Raises where a value is read back, or is copied between a CPU and another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = {t.device.type for t in tree_leaves(found) if isinstance(t, torch.Tensor)}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("a value is read back")
        if "cpu" in given | made and (given | made) - {"cpu"}:
            copied = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
            if copied or func is torch.ops.aten._pin_memory.default:
                raise AssertionError(f"{func} copies between {sorted(given | made)}")
        return found


class FakeCuda:
    """Inside, ``device="cuda"`` makes tensors without memory: shapes, dtypes, and a device.

    A torch that was built for CPUs has no autograd for them: ask for no gradients.
    """

    def __enter__(self):
        self.modes = FakeTensorMode(), NoWaiting()
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)
