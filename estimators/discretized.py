"""The likelihood of images whose pixels have whole levels: a discretised mixture of logistics."""

import math
import warnings

import torch
from torch import Tensor

from .dispatch import choice, likelihood_calls, validate
from .dispatch.types import REDUCTIONS, Implementation, Reduction


def discretized_mix_logistic_nll(
    params: Tensor,
    x: Tensor,
    num_mixtures: int,
    *,
    bits: int = 8,
    right_edge: float = 0.999,
    reduction: Reduction = "none",
    impl: Implementation = "auto",
) -> Tensor:
    r"""-log p(x|z) of RGB or grey images under a discretised mixture of logistics, in nats.

    The likelihood of PixelCNN++, VDVAE and NVAE. Each pixel has a mixture; a level of a color has
    the probability that a logistic gives its bin, of half width h = 1 / (2^bits - 1):

    .. math:: -\sum_{pixels} \log \sum_k w_k \prod_{c} \Big[
              \sigma\Big(\frac{x_c + h - m_{ck}}{s_{ck}}\Big)
              - \sigma\Big(\frac{x_c - h - m_{ck}}{s_{ck}}\Big) \Big]

    The first bin, x < -0.999, and the last, x > ``right_edge``, reach to infinity. The mean of
    green is shifted by a multiple of red, that of blue by multiples of red and green. A grey image
    is one color without a shift.

    Equivalent PyTorch, of the numbers of each mixture ``[B, 3, K, H, W]``::

        logits, rest = params.split([K, 9 * K], 1)
        means, log_scales, raw = rest.unflatten(1, (3, 3, K)).unbind(2)
        a, (r, g, b) = raw.tanh(), x.unsqueeze(2).unbind(1)
        shifts = torch.stack([0 * a[:, 0], a[:, 0] * r, a[:, 1] * r + a[:, 2] * g], 1)
        c, root = x.unsqueeze(2) - means - shifts, torch.exp(-log_scales.clamp(min=-7))
        above, below = root * (c + h), root * (c - h)
        inside = torch.log(torch.sigmoid(above) - torch.sigmoid(below))
        inside = torch.where(x.unsqueeze(2) > right_edge, F.logsigmoid(-below), inside)
        log_p = torch.where(x.unsqueeze(2) < -0.999, F.logsigmoid(above), inside).sum(1)
        -torch.logsumexp(log_p + torch.log_softmax(logits, 1), 1).sum((1, 2))

    except that no difference cancels: a bin that is far from all means keeps its value and its
    gradient, where the published codes take over with the density in its middle, below 1e-5
    (:mod:`fused_elbo.compat` has them as they are).

    With ``reduction`` "mean" or "sum" the kernels compute the gradient in the forward pass already
    (except in float16 and under ``torch.compile``). With a KL per example the loss is
    ``discretized_mix_logistic_nll(params, x, K, reduction="mean") + kl.mean()``.

    Args:
        params: the decoder's output ``[B, 10 K, H, W]``, in the order of all three originals: K
            logits, and then for red, green and blue each K means, K log scales and K coefficients
            before their tanh. Any strides: channels_last and permuted tensors are read as they lie.
            ``[B, 10 K, ...]`` with other dimensions of pixels will do. For grey ``x`` there are 3 K
            numbers instead: K logits, K means and K log scales.
        x: the data ``[B, 3, H, W]``, or grey ``[B, 1, H, W]``, floating, in [-1, 1]:
            ``2 * level / (2**bits - 1) - 1``.
        num_mixtures: K.
        bits: of a level, 1 to 8. VDVAE has 5 of them for FFHQ-256.
        right_edge: where the last bin begins. 0.999 fits levels up to x = 1. NVAE has 0.99, for
            data that end at 0.992; of data that end at 1 level 254 would reach to infinity too.
        reduction: over examples: ``"none"``, ``"mean"`` or ``"sum"``.
        impl: as in :func:`gaussian_log_prob`; but the kernels have RGB images only, and for grey
            ones ``"auto"`` is the reference.

    Returns:
        ``[B]``, or a scalar, in float32, or float64 if any input is; differentiable in ``params``
        (by the kernels on CUDA once, else any number of times), whose log scales have a gradient
        of 0 below -7.

    Raises:
        ValueError: ``params`` that are not ``[B, 10 K, ...]``, or ``x`` not ``[B, 3, ...]`` with
            the same pixels (``[B, 3 K, ...]`` and ``[B, 1, ...]`` of grey images); an ``x`` that
            requires a gradient, which no implementation has, or on a CPU is outside [-1, 1]; a
            ``right_edge`` outside [0, 1], more than 8 bits.
        TypeError: integer ``x``, which would not be in [-1, 1]; otherwise as
            :func:`gaussian_log_prob`.
        RuntimeError: grey images with the kernels' ``impl``; otherwise as there.

    Salimans, Karpathy, Chen & Kingma, "PixelCNN++", ICLR 2017, eq. 2 and 3; Child, "Very deep
    VAEs", ICLR 2021; Vahdat & Kautz, "NVAE", NeurIPS 2020.

    >>> import torch
    >>> params, x = torch.zeros(1, 20, 2, 2), torch.zeros(1, 3, 2, 2)
    >>> discretized_mix_logistic_nll(params, x, num_mixtures=2)
    tensor([74.8129])
    """
    validate.count("bits", bits)
    if bits > 8:
        raise ValueError(f"bits must be at most 8, got {bits}")
    validate.number("right_edge", right_edge, 0.0, 1.0)
    validate.choice("reduction", reduction, REDUCTIONS)
    if isinstance(x, Tensor) and x.dtype in (torch.bool, *validate.INTEGERS):
        raise TypeError(
            f"x must be floating, in [-1, 1], got {x.dtype}: pass 2 * x.float() / {2**bits - 1} - 1"
        )
    check_image(params, x, num_mixtures, grey=True)
    choice.check_impl(impl)
    if x.shape[1] == 1 and impl not in ("auto", "reference"):
        raise RuntimeError(
            f"impl={impl!r}: the kernels have RGB images only, and x is grey: use impl='auto' or "
            "'reference'"
        )
    if x.numel() > 0 and choice.plain_on_cpu((x,)):
        check_levels(x, bits)
    bins = 1 / (2**bits - 1), float(right_edge), 0.0
    if reduction == "none":
        return likelihood_calls.discretized_mix_logistic_nll(params, x, *bins, impl=impl).sum(1)
    batch = x.shape[0]
    scale = 1.0 if reduction == "sum" else 1.0 / batch if batch else math.nan
    return likelihood_calls.discretized_mix_logistic_nll(params, x, *bins, scale=scale, impl=impl)


def check_image(params, x, num_mixtures, *, names=("params", "x"), grey=False):
    """params [B, 10 num_mixtures, ...] and data x [B, 3, ...] with the same pixels.

    ``grey``: or params [B, 3 num_mixtures, ...] and data x [B, 1, ...].
    """
    num_mixtures = validate.count("num_mixtures", num_mixtures)
    named = {names[0]: params, names[1]: x}
    validate.tensors(**named)
    is_grey = grey and x.dim() > 1 and x.shape[1] == 1
    channels, numbers, kind = (1, 3, "grey") if is_grey else (3, 10, "RGB")
    size = numbers * num_mixtures
    if params.dim() < 3 or params.shape[1] != size or 0 in params.shape[2:]:
        raise ValueError(
            f"expected {names[0]} [B, {size}, ...] for num_mixtures={num_mixtures} and {kind} "
            f"images, {numbers} numbers each, with pixels: {validate.describe(named)}"
        )
    if x.shape != (params.shape[0], channels, *params.shape[2:]):
        or_grey = " or [B, 1, ...]" if grey else ""
        raise ValueError(
            f"expected {names[1]} [B, 3, ...]{or_grey} with the pixels of {names[0]}: "
            f"{validate.describe(named)}"
        )
    check_data(names[1], x)


def check_levels(x, bits):
    """Refuse data outside [-1, 1]; warn of those in [0, 1] that are no levels of [-1, 1]."""
    least, greatest = (bound.item() for bound in x.aminmax())
    top = 2**bits - 1
    if least < -1.001 or greatest > 1.001:
        raise ValueError(
            f"x must be in [-1, 1], got values from {least:.6g} to {greatest:.6g}: pass "
            f"2 * x / {top} - 1 for levels of 0 to {top}"
        )
    # Half precisions do not tell a level from the next.
    if least >= 0 < greatest and x.dtype in (torch.float32, torch.float64):
        level = (x + 1) * (top / 2)
        if (level - level.round()).abs().max() > 0.05:
            warnings.warn(
                "all of x is in [0, 1], and not at levels of [-1, 1]: if it was scaled to [0, 1], "
                "pass 2 * x - 1",
                stacklevel=3,
            )


def check_data(name, x):
    if x.requires_grad:
        raise ValueError(f"{name} is data and has no gradient here: pass {name}.detach()")
