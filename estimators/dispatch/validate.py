"""Checks of arguments: every error names the argument and says what was found."""

import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .likelihoods import LIKELIHOODS, WIDTHS, Likelihood, owners
from .types import Shape

FINITE = sys.float_info.max
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Dtypes of a likelihood's data, by the word in its record.
DATA = {
    "real": (*DTYPES, *INTEGERS),
    "unit": (*DTYPES, torch.bool),
    "counts": (*DTYPES, *INTEGERS),
    "classes": INTEGERS,
}
STRIDED = torch.strided


def choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """``value`` must be one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> Any:
    """``value``, a real number in [least, most], as one of Python's; no tensor, bool or NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        value = float(value)  # NumPy's
    if not least <= value <= most:
        raise ValueError(f"{name} must be a number in [{least}, {most}], got {value}")
    return value


def weight(name: str, value: Any, like: Any) -> Any:
    """``value``, a number, or a scalar tensor on the device of ``like``."""
    if not isinstance(value, torch.Tensor):
        return number(name, value)
    tensors(**{name: value})
    if value.dim() > 0:
        raise ValueError(
            f"{name} must be a number or a scalar tensor, got {describe({name: value})}"
        )
    same_device(x=like, **{name: value})
    return value


def count(name: str, value: Any, least: int = 1) -> int:
    """``value``, an integer of at least ``least``, as one of Python's."""
    if isinstance(value, bool) or not isinstance(value, int):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        value = int(value)  # NumPy's
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def tensors(**named: Tensor | None) -> None:
    """Dense floating tensors on one device; arguments that are None are left out.

    Their dtypes may differ: every operand is read in its own.
    """
    first = None
    for name, tensor in named.items():
        if tensor is None:
            continue
        dense(name, tensor, DTYPES)
        if first is None:
            first_name, first = name, tensor
        elif tensor.device != first.device:
            same_device(**{first_name: first, name: tensor})


def dense(name: str, tensor: Any, dtypes: Sequence[torch.dtype]) -> None:
    """A tensor of one of the dtypes, neither sparse nor nested."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(tensor).__name__}{how_to_convert(tensor)}"
        )
    if tensor.layout is not STRIDED or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else str(tensor.layout)
        raise TypeError(f"{name} must be dense, got {kind}")
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must have one of the dtypes {allowed}, got {tensor.dtype}")


def how_to_convert(value: Any) -> str:
    return "; convert it with torch.as_tensor" if hasattr(value, "__array__") else ""


def same_device(**named: Tensor) -> None:
    """Tensors on one device."""
    (first_name, first), *others = named.items()
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(
                f"{first_name} and {name} must be on one device, "
                f"got {first.device} and {tensor.device}"
            )


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; of some devices torch cannot be asked."""
    device = tensor.device.type
    # Torch 2.11's compiler cannot ask the first.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def autocast_mixes(a: Tensor, b: Tensor) -> bool:
    """Whether autocast may hand the two dtypes to one loss."""
    return autocasts(a) and torch.float64 not in (a.dtype, b.dtype)


def describe(named: Mapping[str, Tensor | None]) -> str:
    """'mu (3, 4), logvar (3, 5)' for an error message."""
    given = ((name, t) for name, t in named.items() if t is not None)
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in given)


def broadcast(event_dims: int = 1, /, **named: Tensor | None) -> Any:
    """The shape that the named tensors broadcast to: [..., D], D >= 1.

    Or with ``event_dims`` for D, none of them empty; with 0 any shape.
    """
    if type(event_dims) is not int or event_dims != 1:
        count("event_dims", event_dims, least=0)
    shape: Any = None
    for tensor in named.values():
        if tensor is None:
            continue
        if shape is None:
            shape = tensor.shape
            continue
        # Lengths first: tuples compare elements first, and symbolic sizes would be held to them.
        if tensor.dim() == len(shape) and tensor.shape == shape:
            continue
        try:
            shape = torch.broadcast_shapes(*(t.shape for t in named.values() if t is not None))
        except RuntimeError as error:
            raise ValueError(f"shapes do not broadcast: {describe(named)}") from error
        break
    first = len(shape) - event_dims
    if first < 0 or (shape[-1] == 0 if event_dims == 1 else 0 in shape[first:]):
        expected = "shapes [..., D] with D >= 1"
        if event_dims > 1:
            expected = f"at least {event_dims} dimensions for event_dims={event_dims}, "
            expected += "and in an event at least one latent"
        raise ValueError(f"expected {expected}, got {describe(named)}")
    return shape


def samples_of_examples(recon: Tensor, x: Tensor, name: str, x_name: str) -> torch.Size:
    """The shape of the values of recon [K, B, ...], given x [B, ...]: [K, B].

    Any number of dimensions of samples, none included, stand before those of x.
    """
    shape = x.shape
    same = recon.dim() == len(shape) > 1 and recon.shape == shape  # lengths first, as above
    if same and 0 not in shape[1:]:
        return shape[:1]
    named = {name: recon, x_name: x}
    samples = recon.dim() - x.dim()
    if samples < 0 or recon.shape[samples:] != x.shape or (samples and x.dim() < 2):
        raise ValueError(
            f"expected equal shapes, or {name} [K, *x.shape] of K samples, got {describe(named)}"
        )
    if x.dim() < 2 or 0 in x.shape[1:]:
        raise ValueError(f"expected [B, ...] with events that are not empty, got {describe(named)}")
    if 0 in recon.shape[:samples]:
        raise ValueError(f"expected at least one sample, got {describe(named)}")
    return recon.shape[: samples + 1]


def likelihood(
    likelihood: str,
    recon: Tensor,
    x: Tensor,
    parameters: Sequence[Any] = (),
    *,
    name: str = "recon",
    x_name: str = "x",
) -> torch.Size:
    """Check the operands of a likelihood under their names; returns the shape [B] or [K, B]."""
    record = LIKELIHOODS[likelihood]
    dense(name, recon, DTYPES)
    data(record, x, x_name)
    if x.device != recon.device:
        same_device(**{name: recon, x_name: x})
    if record.is_categorical:
        return samples_of_classes(recon, x, name, x_name)
    if record.data == "counts" and x.requires_grad:
        raise ValueError(f"{x_name} are counts and have no gradient: pass {x_name}.detach()")
    shape = samples_of_examples(recon, x, name, x_name)
    for parameter, value in zip(record.parameters, parameters, strict=True):
        if isinstance(value, torch.Tensor):
            dense(parameter, value, DTYPES)
            same_device(**{name: recon, parameter: value})
            within(recon.shape, **{parameter: value})
        elif parameter == record.width:
            number(parameter, value)
        elif value is not None:
            dense(parameter, value, DTYPES)  # says that it is no tensor
    return shape


def mask(mask: Any, x: Tensor, name: str = "x") -> None:
    """A bool tensor that broadcasts to the data, or None."""
    if mask is None:
        return
    dense("mask", mask, (torch.bool,))
    same_device(**{name: x, "mask": mask})
    within(x.shape, mask=mask)


def data(likelihood: Likelihood, x: Tensor, name: str) -> None:
    """The data must have a dtype that the likelihood can use."""
    if isinstance(x, torch.Tensor) and x.dtype not in DTYPES:
        if likelihood.data == "unit" and x.dtype in INTEGERS:
            raise TypeError(
                f"{name} of a Bernoulli must be floating, in [0, 1], or bool, got {x.dtype}: pass "
                f"{name}.float() / 255 for grey values of 0 to 255, {name}.bool() for 0 and 1"
            )
        if likelihood.data != "unit" and x.dtype == torch.bool:
            convert = "long" if likelihood.is_categorical else "float"
            raise TypeError(
                f"{name} of likelihood {likelihood.name!r} must not be bool: "
                f"pass {name}.{convert}()"
            )
    dense(name, x, DATA[likelihood.data])


def samples_of_classes(logits: Tensor, x: Tensor, name: str, x_name: str) -> torch.Size:
    """As samples_of_examples, for logits [B, ..., C] or [K, B, ..., C] and classes [B, ...]."""
    samples, shape = logits.dim() - 1 - x.dim(), logits.shape
    if samples < 0 or x.dim() < 1 or shape[samples:-1] != x.shape:
        raise ValueError(
            f"expected {name} [B, ..., C], or [K, B, ..., C], for {x_name} [B, ...], "
            f"got {describe({name: logits, x_name: x})}"
        )
    if 0 in x.shape[1:] or 0 in shape[:samples] or shape[-1] == 0:
        raise ValueError(
            f"expected events, classes and samples, got {describe({name: logits, x_name: x})}"
        )
    return shape[: samples + 1]


def parameters(likelihood: str, **given: Any) -> tuple[Any, ...]:
    """The values of the likelihood's own parameters, selected from all that a loss takes.

    A parameter of another likelihood must not be given.
    """
    names = LIKELIHOODS[likelihood].parameters
    for name, value in given.items():
        is_width = name in WIDTHS
        if (value is None and not is_width) or (type(value) is float and is_width and value == 0.0):
            continue  # not given
        is_tensor = isinstance(value, torch.Tensor)
        if name not in names and (is_tensor or value != (0.0 if is_width else None)):
            allowed = " or ".join(map(repr, owners(name)))
            raise ValueError(f"{name} is an argument of likelihood={allowed} only")
        if is_width and not is_tensor:
            number(name, value)
    return tuple(given[name] for name in names)


def within(shape: Shape, **named: Tensor | None) -> None:
    """Tensors that broadcast to ``shape`` and do not enlarge it."""
    for name, tensor in named.items():
        if tensor is None or (tensor.dim() == len(shape) and tensor.shape == shape):
            continue
        pairs = zip(reversed(tensor.shape), reversed(shape), strict=False)
        # Not ``a not in (1, b)``: torch.compile finds no symbolic size in a tuple.
        if tensor.dim() > len(shape) or any(a != 1 and a != b for a, b in pairs):
            raise ValueError(f"{name} {tuple(tensor.shape)} does not broadcast to {tuple(shape)}")
