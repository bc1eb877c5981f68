"""Masked events: data and parameters whose likelihood is 1 outside of the mask."""

from typing import Any

import torch
from torch import Tensor

from ..reference import reference
from .likelihoods import LIKELIHOODS


def behind_mask(
    mask: Tensor | None, recon: Tensor, x: Tensor, parameters: Any, likelihood: str
) -> tuple[Tensor, Tensor, Any]:
    """(recon, x, parameters) whose events outside of the mask have a likelihood of 1.

    They are replaced and not multiplied by 0, so that no NaN is read, and no gradient passes.
    """
    if mask is None:
        return recon, x, parameters
    record = LIKELIHOODS[likelihood]
    shown, hidden = mask, recon.new_full((), record.hidden)
    if record.is_categorical:  # certainly class 0
        shown, hidden = mask.unsqueeze(-1), recon.new_full(recon.shape[-1:], record.hidden)
        hidden[0] = 0.0
    recon, x = torch.where(shown, recon, hidden), torch.where(mask, x, x.new_zeros(()))
    if record.hidden_width is not None:
        parameters = _parameters_behind_mask(mask, recon, parameters, record.hidden_width)
    return recon, x, parameters


def behind_mask_of_softmax(
    mask: Tensor | None, logits: Tensor, x: Tensor, parameters: Any
) -> tuple[Tensor, Any]:
    """(x, parameters) of negative binomials that are 0 for certain outside of the mask.

    They are so at an inverse dispersion of 0 whatever their mean is. So the logits stay as they
    are, and with them the shares of the other events.
    """
    if mask is None:
        return x, parameters
    x = torch.where(mask, x, x.new_zeros(()))
    return x, _parameters_behind_mask(mask, logits, parameters, -1e4)


def _parameters_behind_mask(
    mask: Tensor, recon: Tensor, parameters: Any, hidden_width: float
) -> tuple[Any, ...]:
    (wide,) = reference.accumulate(recon)
    width, *others = parameters
    width = width if isinstance(width, Tensor) else wide.new_tensor(width)
    others = [t if t is None else torch.where(mask, t, t.new_zeros(())) for t in others]
    return torch.where(mask, width, wide.new_tensor(hidden_width)), *others
