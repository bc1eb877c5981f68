"""Which implementation an ``impl`` means for these tensors: the one reader of ``impl``."""

import importlib.util

import torch

from ...kernels import library
from . import validate
from .likelihoods import LIKELIHOODS
from .types import IMPLEMENTATIONS

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_NUMBA = importlib.util.find_spec("numba") is not None

# Classes below which torch's softmax packs no registers: 11 ns an element, and a kernel 2.
FEW_CLASSES = 16


def check_impl(impl):
    validate.choice("impl", impl, IMPLEMENTATIONS)


def use_kernels(impl, *tensors, fits=True):
    """Whether ``impl`` means the kernels for these tensors, of which some may be None.

    ``fits``: whether there is one for the other arguments.

    >>> use_kernels("reference", torch.zeros(2))
    False
    """
    if impl == "auto":
        return fits and (HAS_TRITON if tensors[0].is_cuda else served_on_cpu(tensors))
    check_impl(impl)
    if impl == "reference":
        return False
    require_backend(impl, tensors[0].device)
    if not fits:
        raise RuntimeError(
            f"impl={impl!r}: no kernel supports these arguments. Kernels need tensors of one shape "
            "and one floating dtype, reduction 'mean' or 'sum', and no weights; for probabilities "
            "also no float16, autocast or torch.compile. Use impl='auto' to fall back to torch."
        )
    return True


def served_on_cpu(tensors):
    """Whether numba's kernels can do all that the reference can with these tensors.

    Not forward mode, torch.func, tensors without numbers or of a subclass. A graph of torch.compile
    holds kernels as opaque ops; torch.export and torch.jit.trace get the reference, which runs
    anywhere.
    """
    if not HAS_NUMBA or library.INTERPRETED:
        return False
    served = in_graph(tensors) if torch.compiler.is_compiling() else plain_on_cpu(tensors)
    return served and library.obstacle("numba") is None


def in_graph(tensors):
    """Whether torch.compile, and nobody else, sees these tensors of a CPU."""
    if not tensors[0].is_cpu or torch.compiler.is_exporting():
        return False
    if library.transforming() or library.forward_mode():
        return False
    return all(t is None or type(t) in (torch.Tensor, torch.nn.Parameter) for t in tensors)


def plain_on_cpu(tensors):
    """Whether these are numbers on a CPU that nobody but autograd watches."""
    return (
        tensors[0].is_cpu
        and not torch.compiler.is_compiling()
        and not library.forward_mode()
        and not library.watched(tensors)
    )


def require_backend(impl, device):
    """Raise where the kernels of ``impl`` cannot run."""
    if impl == "triton":
        if not HAS_TRITON:
            raise RuntimeError(
                "impl='triton' needs Triton, which is not installed: pip install triton"
            )
        if device.type != "cuda" and not library.INTERPRETED:
            raise RuntimeError(
                f"impl='triton' needs CUDA tensors, got one on {device}: move the tensors to a "
                "GPU, or set TRITON_INTERPRET=1 before Python starts to interpret the kernels"
            )
        return
    if not HAS_NUMBA:
        raise RuntimeError("impl='numba' needs numba, which is not installed: pip install numba")
    if device.type != "cpu" or library.INTERPRETED:
        raise RuntimeError(
            f"impl='numba' needs CPU tensors, and TRITON_INTERPRET=1 not set: got one on {device}"
        )
    obstacle = library.obstacle("numba")
    if obstacle is not None:
        raise RuntimeError(f"impl='numba': the kernels cannot be compiled here: {obstacle}")


def left_to_torch(impl, tensor, likelihood, learned=False):
    """Whether impl="auto" should use torch's own loss, which is faster for small inputs on a CPU.

    ``learned``: the width is a tensor.
    """
    # A compiler would hold the batch to the side of a threshold that it was traced on.
    if impl != "auto" or not tensor.is_cpu or torch.compiler.is_compiling():
        return False
    record = LIKELIHOODS[likelihood]
    if record.is_categorical and tensor.shape[-1] < FEW_CLASSES:
        return False
    small = record.torch_below_if_learned if learned else record.torch_below
    return tensor.numel() < small


def is_numba(tensor):
    """Whether its kernels, if they run, are numba's: to look at a result makes nobody wait."""
    return library.backend(tensor) == "numba"


def noise_is_kept(mu, logvar):
    """Whether backward reads the noise of one sample: on a CPU to draw it again takes longer."""
    wanted = torch.is_grad_enabled() and (mu.requires_grad or logvar.requires_grad)
    return wanted and is_numba(mu)


def where_it_fits(impl, fits):
    """For a term of a whole loss, where a name of kernels asks for them where there are any."""
    return impl if fits or impl == "auto" else "reference"


def chosen_impl(impl, other):
    """Of two that meet in one operation, the one that is no default."""
    return other if impl == "auto" else impl


def ordered_by_compiler(alpha):
    """Whether torch.compile sees an order other than IWAE's.

    An op's argument is a constant to it: for every order it would compile anew.
    """
    return torch.compiler.is_compiling() and alpha != 0


def all_known(target, logits):
    """Whether no class is outside [0, C), as far as to look makes nobody wait.

    Of 64 examples the look takes 1.5 us; without it torch masks classes and values, for 15 more.
    """
    if target.numel() == 0 or not plain_on_cpu((logits, target)):
        return False
    least, greatest = target.aminmax()
    return least.item() >= 0 and greatest.item() < logits.shape[-1]
