"""The choice of an implementation by ``impl`` and the tensors: the one reader of ``impl``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import backends, library, torch_state
from ...kernels.backends import Backend
from . import validate
from .likelihoods import LIKELIHOODS
from .types import IMPLEMENTATIONS, Implementation

is_compiling = torch.compiler.is_compiling
# Below this many classes torch's softmax uses no packed registers, and a kernel is faster.
FEW_CLASSES = 16
# Means of a mixture, K x D, up to which torch's composition is faster: see docs/kernels.md.
FEW_MEANS = 8


def check_impl(impl: str) -> None:
    validate.choice("impl", impl, IMPLEMENTATIONS)


def use_kernels(impl: Implementation, *tensors: Any, fits: bool = True) -> bool:
    """Whether ``impl`` means the kernels for these tensors, of which some may be None.

    ``fits``: whether there is one for the other arguments.

    >>> use_kernels("reference", torch.zeros(2))
    False
    """
    if impl == "auto":
        return fits and default_backend(*tensors) is not None
    check_impl(impl)
    if impl == "reference":
        return False
    backends.require(backends.BACKENDS[impl], tensors[0])
    if not fits:
        raise RuntimeError(
            f"impl={impl!r}: no kernel supports these arguments. Kernels need tensors of one shape "
            "and one floating dtype, reduction 'mean' or 'sum', and no weights; for probabilities "
            "also no float16, autocast or torch.compile. Use impl='auto' to fall back to torch."
        )
    return True


def default_backend(*tensors: Any) -> Backend | None:
    """The backend that impl="auto" takes for these tensors; None for the reference.

    On a CPU that is the reference where a kernel cannot do all that the reference can: in forward
    mode, under torch.func, for subclasses and for tensors without data. A graph of torch.compile
    holds kernels as opaque ops; torch.export and torch.jit.trace get the reference, which runs
    anywhere.
    """
    backend = backends.default_backend(tensors[0])
    if backend is None or not backend.plain_only:
        return backend
    served = in_graph(tensors) if is_compiling() else seen_by_autograd_only(tensors)
    return backend if served and backends.works(backend.name) else None


def in_graph(tensors: Sequence[Any]) -> bool:
    """Whether torch.compile, and nobody else, sees these tensors of a CPU."""
    if not tensors[0].is_cpu or torch.compiler.is_exporting():
        return False
    if torch_state.transforming() or torch_state.forward_mode():
        return False
    given = [t for t in tensors if t is not None]
    if not all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in given):
        return False
    # The compiler takes no tensor twice for an autograd function.
    return all(a is not b for i, a in enumerate(given) for b in given[:i])


def plain_on_cpu(tensors: Sequence[Any]) -> bool:
    """Whether these are CPU tensors with data, and only autograd records what is done with them."""
    return tensors[0].is_cpu and not is_compiling() and seen_by_autograd_only(tensors)


def seen_by_autograd_only(tensors: Sequence[Any]) -> bool:
    """The same, where nothing compiles, and of any device."""
    return not torch_state.forward_mode() and not library.torch_must_see(tensors)


def left_to_torch(
    impl: Implementation,
    tensor: Tensor,
    likelihood: str,
    learned: bool = False,
    in_loss: bool = False,
) -> bool:
    """Whether impl="auto" should use torch's own loss, which is faster for small inputs on a CPU.

    ``learned``: the width is a tensor. ``in_loss``: the kernel would be that of a whole loss.
    """
    # A compiler would hold the batch to the side of a threshold that it was traced on.
    if impl != "auto" or not tensor.is_cpu or is_compiling():
        return False
    record = LIKELIHOODS[likelihood]
    if record.is_categorical and tensor.shape[-1] < FEW_CLASSES:
        return False
    below = record.torch_below_if_learned if learned else record.torch_below
    if in_loss:
        below = 0 if learned else record.torch_below_in_loss
    return tensor.numel() < below


def few_means(impl: Implementation, mu: Tensor) -> bool:
    """Whether impl="auto" leaves a mixture with few and short components to torch on a CPU.

    The kernel has a register's lanes for sixteen components.
    """
    return impl == "auto" and mu.is_cpu and mu.numel() <= FEW_MEANS


def left_to_compiler(impl: str, tensor: Tensor) -> bool:
    """Whether impl="auto" leaves elementwise operations and their sum to torch.compile on a CPU.

    It fuses them with what is around, and an opaque op costs a call in Python.
    """
    return is_compiling() and impl == "auto" and tensor.is_cpu


def looks_are_free(tensor: Tensor) -> bool:
    """Whether reading a result on the host waits for no device."""
    backend = backends.serving(tensor)
    return backend is not None and backend.looks_are_free


def noise_is_kept(mu: Tensor, logvar: Tensor) -> bool:
    """Whether the kernel of one sample hands its noise to backward."""
    wanted = torch.is_grad_enabled() and (mu.requires_grad or logvar.requires_grad)
    return wanted and backends.backend_of(mu).keeps_noise


def where_it_fits(impl: Implementation, fits: bool) -> Implementation:
    """The impl for one term of a loss: kernels if they support it, else the reference."""
    return impl if fits or impl == "auto" else "reference"


def chosen_impl(impl: Implementation, other: Implementation) -> Implementation:
    """The impl for an operation on two objects: the first that is not "auto"."""
    return other if impl == "auto" else impl


def ordered_by_compiler(alpha: float) -> bool:
    """Whether torch.compile sees an order other than IWAE's.

    The compiler takes an op's argument for a constant, so every order would compile anew.
    """
    return is_compiling() and alpha != 0


def all_known(target: Tensor, logits: Tensor) -> bool:
    """Whether every class is known to be in [0, C), checked only where reading waits for no device.

    The check is cheap beside the masks that the reference needs without it.
    """
    if target.numel() == 0 or not plain_on_cpu((logits, target)):
        return False
    least, greatest = target.aminmax()
    return least.item() >= 0 and greatest.item() < logits.shape[-1]


def compiled_for_cpu() -> tuple[int, list[Any]]:
    """(number of the CPU kernels that this process has, folders where their machine code lies)."""
    numba = backends.BACKENDS["numba"]
    if not numba.installed:
        return 0, []
    return len(backends.load(numba, "launch").compiled), sorted(backends.load(numba, "cache").USED)
