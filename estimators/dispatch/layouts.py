"""Layouts: latents of any event shape as the rows [..., D] that kernels and the reference take.

The sum over an event does not care about order, so D runs as the latents lie in memory: what is
channels_last is a view of [..., D] too, and samples and gradients come back channels_last.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import reference
from .likelihoods import Likelihood
from .types import Shape


def flatten(shape: Shape, event_dims: int, *tensors: Tensor | None) -> Any:
    """(shape [..., D], order, tensors) of tensors that broadcast to ``shape``; None stays None.

    The last ``event_dims`` dimensions become one: a view, or a copy where strides allow none. With
    event_dims=0 every latent is a row [N, 1]. This is still faster than the elementwise reference
    (see "One latent per row" in docs/kernels.md). Halves of a channels_last tensor have gaps, and
    are copied: reading them in place would take as long or longer.
    """
    first = len(shape) - (event_dims or len(shape))
    event, size = shape[first:], math.prod(shape[first:])
    last = (size,) if event_dims else (size, 1)
    order = order_in_memory(shape, first, tensors)
    flat = []
    for tensor in tensors:
        if tensor is not None:
            # The event alone is expanded: a prior [C, 1, 1] is copied once, not for each example.
            batch = tensor.shape[: max(tensor.dim() - len(event), 0)]
            tensor = tensor.expand((*batch, *event))
            if order is not None:
                tensor = tensor.permute(*range(len(batch)), *(len(batch) + d for d in order))
            tensor = tensor.reshape((*batch, *last))
        flat.append(tensor)
    return (*shape[:first], *last), order, flat


def order_in_memory(shape: Shape, first: int, tensors: Sequence[Tensor | None]) -> list[int] | None:
    """The dimensions from ``first`` on, outermost in memory first; None if that is 0, 1, ...

    The order is that of the strides of the first tensor that is not broadcast, as in
    torch.randn_like.
    """
    for tensor in tensors:
        # Lengths first: as in validate.broadcast.
        if tensor is not None and tensor.dim() == len(shape) and tensor.shape == shape:
            break
    else:
        return None
    strides = tensor.stride()[first:]
    # Compared rather than sorted: torch.compile cannot sort symbolic strides.
    places = [
        sum(1 for j, t in enumerate(strides) if t > s or (t == s and j < i))
        for i, s in enumerate(strides)
    ]
    # A stride of 0, of an expanded tensor, says nothing about an order in memory.
    if places == list(range(len(strides))) or 0 in strides:
        return None
    return [places.index(place) for place in range(len(strides))]


def summed(
    values: Tensor, shape: Shape, order: list[int] | None, event_dims: int, *samples: int
) -> Tensor:
    """Sums over events; with event_dims=0 nothing was summed, and values get the latents' shape."""
    return values if event_dims else restore(values, shape, order, *samples)


def restore(values: Tensor, shape: Shape, order: list[int] | None, *samples: int) -> Tensor:
    """Flattened values as [*samples, *shape], in the layout of the tensors that were flattened."""
    if order is None:
        return values.reshape((*samples, *shape))
    first = len(shape) - len(order)
    values = values.reshape(*samples, *shape[:first], *(shape[first + d] for d in order))
    kept = len(samples) + first
    return values.permute(*range(kept), *(kept + order.index(d) for d in range(len(order))))


def latent_shape(mean: Tensor, spread: Tensor | None) -> Shape:
    """The shape of the mean, which may be the first half of the channels."""
    if spread is not None:
        return mean.shape
    batch, channels, *places = mean.shape
    return torch.Size((batch, channels // 2, *places))


def latent_rows(shape: Shape, *latents: Any) -> Any:
    """Latents [B, C, ...] as rows, and a function that takes rows back to ``shape``.

    A row is an example. Where the first tensor has its channels last in memory, a row is a place of
    an image instead, so that nothing is copied. A tensor of means and spreads has twice as many
    channels: one in each half of a row.
    """
    first = latents[0]
    by_place = first.dim() > 2 and not first.is_contiguous() and is_flat(first.movedim(1, -1))
    if not by_place:
        flat = (None if t is None else t.flatten(1) for t in latents)
        return flat, lambda values: reshaped(values, shape)
    batch, channels, *places = shape
    rows = batch * math.prod(places)
    flat = (None if t is None else t.movedim(1, -1).reshape(rows, t.shape[1]) for t in latents)
    return flat, lambda values: values.view(batch, *places, channels).movedim(-1, 1)


def is_flat(tensor: Tensor) -> bool:
    """Whether [..., C] can be viewed as rows with contiguous columns."""
    stride, size = tensor.stride(), tensor.shape
    inner = range(tensor.dim() - 2)
    return stride[-1] == 1 and all(stride[i] == stride[i + 1] * size[i + 1] for i in inner)


def of_examples(sums: Tensor, batch: int) -> Tensor:
    """The sums of each example's rows, [B]."""
    return sums if len(sums) == batch else sums.view(batch, -1).sum(1)


def likelihood_data(x: Tensor, recon: Tensor, likelihood: Likelihood) -> Tensor:
    """x in a dtype that the likelihood's op takes: classes become int64."""
    return x.long() if likelihood.is_categorical else floating(x, recon)


def floating(x: Tensor, like: Tensor) -> Tensor:
    """Integer data, in the dtype of the sums beside ``like``."""
    if x.is_floating_point():
        return x
    return x.to(torch.float64 if accumulates_in_float64(like) else torch.float32)


def accumulates_in_float64(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.dtype == torch.float64 for t in tensors)


def tensor_or_none(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def example_rows(recon: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that the likelihoods' ops take: recon [K B, events] and x [B, events]."""
    if recon.dim() == x.dim() == 2 and recon.shape == x.shape:
        return recon, x
    x = x.flatten(1)
    return reshaped(recon, (math.prod(recon.shape) // x.shape[1], x.shape[1])), x


def likelihood_rows(
    recon: Tensor, x: Tensor, parameters: Sequence[Any], likelihood: Likelihood
) -> Any:
    """The rows of recon and x, then the width as tensor and as float, then other parameters.

    Each event of a categorical likelihood is a row.
    """
    if likelihood.is_categorical:
        return recon.reshape(-1, recon.shape[-1]), x.reshape(-1), None, 0.0
    rows = example_rows(recon, x)
    if not parameters:
        return *rows, None, 0.0
    width: Any
    width, *others = parameters
    value = 0.0
    if tensor_or_none(width) is None:
        if not torch.compiler.is_compiling() or width == 0:
            width, value = None, float(width)
        else:
            # An op's argument is a constant to the compiler: every value would compile anew.
            width = reference.scalar(width, recon)
    shape = rows[0].shape
    width = parameter_rows(width, recon, x, shape, likelihood.width_by_column)
    others = [None if t is None else t.expand(recon.shape).reshape(shape) for t in others]
    return *rows, width, value, *others


def parameter_rows(
    tensor: Tensor | None, recon: Tensor, x: Tensor, shape: Shape, by_column: bool = False
) -> Any:
    """A likelihood's parameter for the rows of recon; None stays None.

    A parameter that is constant over an example's events stays one number per row. With
    ``by_column`` one that is the same for all examples stays [1, cols].
    """
    if tensor is None:
        return None
    if tensor.dim() == recon.dim() and tensor.shape == recon.shape:
        return reshaped(tensor, shape)
    aligned = tensor[(None,) * (recon.dim() - tensor.dim())]
    leading = recon.shape[: recon.dim() - x.dim() + 1]
    if all(size == 1 for size in aligned.shape[len(leading) :]):
        wide = aligned.reshape(*aligned.shape[: len(leading)], 1).expand(*leading, 1)
        return wide.reshape(-1, 1)
    if by_column and all(size == 1 for size in aligned.shape[: len(leading)]):
        event = recon.shape[len(leading) :]
        return aligned.reshape(aligned.shape[len(leading) :]).expand(event).reshape(1, -1)
    return tensor.expand(recon.shape).reshape(shape)


def as_rows(shape: Shape, *tensors: Tensor | None) -> Any:
    """Views (copies where strides allow none) of shape [rows, D] after broadcasting."""
    for tensor in tensors:
        # Lengths first: as in validate.broadcast.
        if tensor is not None and (tensor.dim() != len(shape) or tensor.shape != shape):
            break
    else:
        if len(shape) == 2:
            return tensors
    flat = (math.prod(shape[:-1]), shape[-1])
    wide = (
        t if t is None or (t.dim() == len(shape) and t.shape == shape) else t.expand(shape)
        for t in tensors
    )
    return [None if t is None else reshaped(t, flat) for t in wide]


def reshaped(tensor: Tensor, shape: Shape) -> Tensor:
    """The tensor in this shape, without a node in the graph where it has it."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def whole_prior(
    prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """A prior of which one half is given, with zeros for the other."""
    given = prior_mu if prior_mu is not None else prior_logvar
    if given is None:
        return None, None
    zero = given.new_zeros(())
    return zero if prior_mu is None else prior_mu, zero if prior_logvar is None else prior_logvar
