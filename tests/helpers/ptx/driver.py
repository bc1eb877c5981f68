"""A Triton driver without a GPU: kernels compile for NVIDIA, and their PTX runs on CPU tensors.

Triton's real JIT (specialisation, signatures, grids, NVIDIA's compiler and its flags) launches here
after ``activate()``. ``PTX_ARCH`` names the architecture: 80, 90 (the default) or 100.
"""

import os
from collections import Counter

import torch
import triton
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import CUDABackend

from . import launch, program
from .faults import Fault

ARCH = int(os.environ.get("PTX_ARCH", "90"))
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # of a block
LAUNCHES: Counter = Counter()  # how often each kernel ran
NOTES: Counter = Counter()  # (kernel, what is worth knowing of it)


class Compiler(CUDABackend):
    """NVIDIA's, whose binary is the PTX."""

    def __init__(self, target):
        super().__init__(target)
        self.binary_ext = "ptx"

    def add_stages(self, stages, options, language):
        super().add_stages(stages, options, language)
        del stages["cubin"]

    def hash(self):
        return f"{super().hash()}-ptx"


class Utils:
    """The functions that Triton's runtime calls on a CUDA driver."""

    @staticmethod
    def get_device_properties(device):
        return {
            "max_shared_mem": SHARED_BYTES[ARCH],
            "multiprocessor_count": 132,
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    @staticmethod
    def load_binary(name, binary, shared, device):
        loaded = program.load(binary.decode(), name)
        return loaded, loaded, 0, 0, 1024  # registers and spills of no ptxas; threads at most


class Launcher:
    """Hands on every argument that is no constexpr, as the C launcher does."""

    def __init__(self, src, metadata):
        self.signature, self.metadata = src.signature, metadata

    def __call__(self, x, y, z, stream, loaded, packed, launched, enter, leave, *args):
        if x * y * z == 0:
            return
        if self.metadata.global_scratch_size or self.metadata.profile_scratch_size:
            raise Fault(f"{loaded.name}: scratch memory is not emulated")
        values, tensors = [], []
        for (name, kind), value in zip(self.signature.items(), args, strict=True):
            if kind == "constexpr":
                continue
            if kind.startswith("*"):
                if value is None:
                    raise Fault(f"{loaded.name}: {name} is None, but a pointer")
                tensors.append((name, value))
            values.append((kind, value))
        values += [("*scratch", None)] * (len(loaded.params) - len(values))
        notes = launch.run(loaded, (x, y, z), packed[0], packed[2], values, tensors)
        LAUNCHES[loaded.name] += 1
        NOTES.update((loaded.name, note) for note in notes)


class Driver(DriverBase):
    def __init__(self):
        self.utils, self.launcher_cls = Utils(), Launcher

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        raise NotImplementedError

    def get_current_target(self):
        return GPUTarget("cuda", ARCH, 32)

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device):
        return 0

    def get_device_capability(self, device=0):
        return divmod(ARCH, 10)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError


def activate():
    """Triton's kernels run here from now on; what ``torch.empty`` makes is NaN until written."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: there would be no PTX")
    backends["nvidia"] = Backend(compiler=Compiler, driver=Driver)
    triton.runtime.driver.set_active(Driver())
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
