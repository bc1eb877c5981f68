"""Latents whose event has any number of dimensions, as the [..., D] that kernels and twins take.

The sum over an event does not care about order, so D runs as the latents lie in memory: what is
channels_last is a view of [..., D] too, and samples and gradients come back channels_last.
"""

import math

import torch
from torch import Tensor

from ..reference import reference


def flatten(shape, event_dims, *tensors):
    """(shape [..., D], order, tensors) of tensors that broadcast to ``shape``; None stays None.

    The last ``event_dims`` dimensions become one: views, and copies where strides allow none. With
    0 each latent is a row of its own, [N, 1]. That is no detour: of the KL of 65,536 latents, with
    gradients, one CPU thread makes 200 us so, and 470 in the reference, element by element; of four
    samples and their log ratios 1.4 ms, though of each four normals drawn one is used, and 3.6. On
    an H100 the 41 instructions an element fit into the 79 for which it waits for 8 bytes.

    Halves of a channels_last tensor have gaps, and are copied. To read them as they lie, the
    channels of a place as a row, and to add up the sums of places takes one CPU thread as long or
    longer, with gradients: 0.93 of rsample_kl's time and 1.06 of gaussian_kl's for halves
    [8, 4, 64, 64], 1.20 and 1.30 for [4, 16, 32, 32].
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


def order_in_memory(shape, first, tensors):
    """The dimensions from ``first`` on, as 0, 1, ..., outermost first; None if they lie so.

    Those of the first tensor that is not broadcast, by its strides: as torch.randn_like has it.
    """
    for tensor in tensors:
        # Lengths first: as in validate.broadcast.
        if tensor is not None and tensor.dim() == len(shape) and tensor.shape == shape:
            break
    else:
        return None
    strides = tensor.stride()[first:]
    # Places by comparison, for torch.compile sorts no symbolic strides.
    places = [
        sum(1 for j, t in enumerate(strides) if t > s or (t == s and j < i))
        for i, s in enumerate(strides)
    ]
    # Of an expanded tensor, with a stride of 0, memory says nothing.
    if places == list(range(len(strides))) or 0 in strides:
        return None
    return [places.index(place) for place in range(len(strides))]


def summed(values, shape, order, event_dims, *samples):
    """Sums over events; where nothing was summed, values that belong to the latents."""
    return values if event_dims else restore(values, shape, order, *samples)


def restore(values, shape, order, *samples):
    """Flattened values as [*samples, *shape], in the layout of the tensors that were flattened."""
    if order is None:
        return values.reshape((*samples, *shape))
    first = len(shape) - len(order)
    values = values.reshape(*samples, *shape[:first], *(shape[first + d] for d in order))
    kept = len(samples) + first
    return values.permute(*range(kept), *(kept + order.index(d) for d in range(len(order))))


def latent_shape(mean, spread):
    """That of the mean, which may be the first half of the channels."""
    if spread is not None:
        return mean.shape
    batch, channels, *places = mean.shape
    return torch.Size((batch, channels // 2, *places))


def latent_rows(shape, *latents):
    """Latents [B, C, ...] as rows, and a function that takes rows back to ``shape``.

    A row is an example; but where the first has its channels last in memory, a place of an image,
    so that nothing is copied. Of twice as many channels each half of a row has its own.
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


def is_flat(tensor):
    """Whether [..., C] is a view of rows, of contiguous columns."""
    stride, size = tensor.stride(), tensor.shape
    inner = range(tensor.dim() - 2)
    return stride[-1] == 1 and all(stride[i] == stride[i + 1] * size[i + 1] for i in inner)


def of_examples(sums, batch):
    """[B] of the sums of an example's rows."""
    return sums if len(sums) == batch else sums.view(batch, -1).sum(1)


def likelihood_data(x, recon, likelihood):
    """What the likelihood's op takes for x: classes are int64."""
    return x.long() if likelihood.is_categorical else floating(x, recon)


def floating(x, like):
    """Integer data, in the dtype of the sums beside ``like``."""
    if x.is_floating_point():
        return x
    return x.to(torch.float64 if accumulates_in_float64(like) else torch.float32)


def accumulates_in_float64(*tensors):
    return any(t is not None and t.dtype == torch.float64 for t in tensors)


def tensor_or_none(value):
    return value if isinstance(value, Tensor) else None


def example_rows(recon, x):
    """What the likelihoods' ops take: recon [K B, events] and x [B, events]."""
    if recon.dim() == x.dim() == 2 and recon.shape == x.shape:
        return recon, x
    x = x.flatten(1)
    return reshaped(recon, (math.prod(recon.shape) // x.shape[1], x.shape[1])), x


def likelihood_rows(recon, x, parameters, likelihood):
    """Those rows, then the first parameter as tensor and as float, and the others as tensors.

    Each event of a categorical likelihood is a row.
    """
    if likelihood.is_categorical:
        return recon.reshape(-1, recon.shape[-1]), x.reshape(-1), None, 0.0
    rows = example_rows(recon, x)
    if not parameters:
        return *rows, None, 0.0
    width, *others = parameters
    value = 0.0
    if tensor_or_none(width) is None:
        if not torch.compiler.is_compiling() or width == 0:
            width, value = None, float(width)
        else:
            # An op's argument is a constant to the compiler: every value would compile anew.
            width = reference.scalar(width, recon)
    shape = rows[0].shape
    width, *others = [parameter_rows(t, recon, x, shape) for t in (width, *others)]
    return *rows, width, value, *others


def parameter_rows(tensor, recon, x, shape):
    """A likelihood's parameter for the rows of recon; None stays None.

    What is constant over an example's events stays one number a row.
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
    return tensor.expand(recon.shape).reshape(shape)


def as_rows(shape, *tensors):
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


def reshaped(tensor, shape):
    """The tensor in this shape, without a node in the graph where it has it."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def whole_prior(prior_mu, prior_logvar):
    """A prior of which one half is given, with zeros for the other."""
    given = prior_mu if prior_mu is not None else prior_logvar
    if given is None:
        return None, None
    zero = given.new_zeros(())
    return zero if prior_mu is None else prior_mu, zero if prior_logvar is None else prior_logvar
