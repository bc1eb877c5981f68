"""The backends, one record each.

To add one, add its record to ``BACKENDS``, and a folder of its name beside this module, with a
module per family of ops and launchers of the same names as in the other folders.
"""

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor
from torch.compiler import is_compiling

from . import torch_state

# CPU tensors are for numba, or for Triton's interpreter: one process cannot have both.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True, eq=False)  # hashed by identity: every call of an op looks one up
class Backend:
    """A backend, as the rest of the project knows it.

    Attributes:
        name: its name as an ``impl``, and that of its folder and of the package it needs.
        title: the package's name in a sentence.
        installed: whether the package is found; it is not imported.
        serves: whether it can run on a tensor's device.
        tensors: how an error message names the tensors that it serves.
        otherwise: what an error message advises for other tensors.
        plain_only: whether impl="auto" takes the reference for what torch must see (transforms,
            compilation, tracing, tensors without data). True for CPUs, where such code has always
            run on the reference.
        probe: a module of its folder. If it cannot be imported, the backend does not work in this
            process.
        keeps_noise: whether the forward pass of one sample hands its noise to backward, because
            drawing it again takes longer.
        looks_are_free: whether reading a result on the host waits for no device.
        differentiates_again: whether second derivatives and batched gradients are those of the
            PyTorch twins. Otherwise they raise an error.
        torch_normals: the module with ``randn``, torch's normals drawn faster.
    """

    name: str
    title: str
    installed: bool
    serves: Callable[[Tensor], bool]
    tensors: str
    otherwise: str
    plain_only: bool = False
    probe: str | None = None
    keeps_noise: bool = False
    looks_are_free: bool = False
    differentiates_again: bool = False
    torch_normals: str | None = None


NUMBA = Backend(
    "numba",
    "numba",
    installed=find_spec("numba") is not None,
    serves=lambda tensor: tensor.is_cpu and not INTERPRETED,
    tensors="CPU tensors, and TRITON_INTERPRET=1 not set",
    otherwise="move the tensors to the CPU, or start Python without TRITON_INTERPRET",
    plain_only=True,
    probe="compiler",
    keeps_noise=True,
    looks_are_free=True,
    differentiates_again=True,
    torch_normals="mersenne_twister",
)
TRITON = Backend(
    "triton",
    "Triton",
    installed=find_spec("triton") is not None,
    serves=lambda tensor: tensor.is_cuda or (INTERPRETED and tensor.is_cpu),
    tensors="CUDA tensors",
    otherwise="move the tensors to a GPU, or set TRITON_INTERPRET=1 before Python starts to "
    "interpret the kernels",
)
BACKENDS = {backend.name: backend for backend in (NUMBA, TRITON)}


def serving(tensor: Tensor) -> Backend | None:
    """The backend that can run on a tensor's device, installed or not."""
    for backend in BACKENDS.values():
        if backend.serves(tensor):
            return backend
    return None


def backend_of(tensor: Tensor) -> Backend:
    """The backend that runs a call of an op; an error where there is none."""
    backend = serving(tensor)
    if backend is None:
        raise RuntimeError(f"fused_elbo has no kernels for tensors on {tensor.device}")
    return backend


def default_backend(tensor: Tensor) -> Backend | None:
    """The backend that impl="auto" takes for a tensor; never the interpreter."""
    if INTERPRETED and tensor.is_cpu:
        return None
    backend = serving(tensor)
    return backend if backend is not None and backend.installed else None


def load(backend: Backend, module: str) -> ModuleType:
    """A module of a backend. It is imported at the first call, because it imports its package."""
    return importlib.import_module(f".{backend.name}.{module}", __package__)


@functools.cache
def obstacle(backend: Backend) -> str | None:
    """Why an installed backend cannot run in this process, in words; None where it can."""
    if backend.probe is None:
        return None
    try:
        load(backend, backend.probe)
    except (ImportError, AttributeError) as error:
        return str(error)
    return None


@torch_state.constant_in_graphs  # a graph imports nothing
def works(name: str) -> bool:
    """Whether nothing stands in the way of an installed backend."""
    return obstacle(BACKENDS[name]) is None


def require(backend: Backend, tensor: Tensor) -> None:
    """Raise where the backend cannot run on this tensor."""
    impl = f"impl={backend.name!r}"
    if not backend.installed:
        raise RuntimeError(
            f"{impl} needs {backend.title}, which is not installed: pip install {backend.name}"
        )
    if not backend.serves(tensor):
        raise RuntimeError(
            f"{impl} needs {backend.tensors}, got one on {tensor.device}: {backend.otherwise}"
        )
    if is_compiling():
        return
    found = obstacle(backend)
    if found is not None:
        raise RuntimeError(f"{impl}: the kernels cannot be compiled here: {found}")
