"""The torch.library namespace ``fused_elbo::`` and the base of the autograd functions."""

import functools
import inspect
from typing import Any

import torch

LIBRARY = torch.library.Library("fused_elbo", "DEF")


def register(schema, implementation, fake):
    """Define an opaque functional op: one implementation for all devices, one for shapes."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fused_elbo::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.fused_elbo, name)


def gradients_like(tensors, needs):
    """What a backward op returns, for its fake: the wanted gradients, contiguous."""
    layout = torch.contiguous_format
    wanted = (t for t, needed in zip(tensors, needs, strict=True) if needed)
    return [torch.empty_like(t, memory_format=layout) for t in wanted]


def spread(gradients, needs):
    """Lay the gradients that were computed back among the inputs, None elsewhere."""
    gradients = iter(gradients)
    return tuple(next(gradients) if needed else None for needed in needs)


class SecondDerivative(torch.autograd.Function):
    """The identity on a gradient, which refuses to be differentiated."""

    @staticmethod
    def forward(gradient, *sources):
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "the Triton kernels of fused_elbo have first derivatives only: "
            "for a double backward pass impl='reference'"
        )


def once_differentiable(backward):
    """Mark a backward whose result must not be differentiated again.

    torch's decorator of this name looks at the upstream gradients only: with a constant one,
    as of a plain sum, it lets the second derivative be dropped in silence.
    """

    @functools.wraps(backward)
    def wrapper(ctx, *upstream):
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        if not torch.is_grad_enabled():
            return gradients
        tensors = (t for t in (*ctx.saved_tensors, *upstream) if t is not None)
        sources = [t for t in tensors if t.requires_grad]
        if not sources:
            return gradients
        return tuple(
            None if gradient is None else SecondDerivative.apply(gradient, *sources)
            for gradient in gradients
        )

    return wrapper


class KernelFunction(torch.autograd.Function):
    """An autograd function over the ops above: first derivatives, no vmap."""

    def __init_subclass__(cls):
        # apply() asks for this signature at every call: a fifth of the host's time otherwise.
        forward: Any = cls.forward
        forward.__signature__ = inspect.signature(forward)

    @staticmethod
    def vmap(info, in_dims, *args):
        raise RuntimeError(
            "the Triton kernels of fused_elbo do not run under torch.func.vmap: they take "
            "batches [..., D] as they are; for per-example gradients pass impl='reference'"
        )
