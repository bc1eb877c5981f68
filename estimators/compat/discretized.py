"""Drop-ins for the discretised mixtures of logistics of VDVAE and NVAE: same number and gradients.

The order of the 10 numbers of a mixture is one in all three codes, PixelCNN++'s too; layouts, data
ranges, edges and reductions are not. Their guard is kept: where a bin inside has a probability
below 1e-5, they take the density in its middle, times its width, for the probability. That is
exact for bins that are narrow beside the scale. At the least scale it is log(sinh t / t) nats of
each color too little, with t half a bin over the scale: 2.1 of 8 bits, 31 of 5 bits.
:func:`fused_elbo.discretized_mix_logistic_nll` has no guard.
"""

import torch
from torch import Tensor

from ..discretized import check_data, check_image
from ..dispatch import calls, validate
from ..dispatch.types import Implementation
from .nn_functional import in_torch_dtype

GUARD = 1e-5


def vdvae_discretized_mix_logistic_loss(
    x: Tensor,
    l: Tensor,  # noqa: E741  the original's name
    low_bit: bool = False,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``discretized_mix_logistic_loss`` of VDVAE: nats per dimension of each example.

    .. math:: -\frac{1}{3HW} \sum_{pixels} \log \sum_k w_k \prod_c p_{ck}(x_c)

    as in :func:`fused_elbo.discretized_mix_logistic_nll`, but for the guard (see the module) and
    the mean over pixels and colors. As the KL is divided by the same number, beta is 1. Equivalent
    PyTorch, without the guard::

        params, pixels = l.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
        nll = discretized_mix_logistic_nll(params, pixels, l.shape[-1] // 10)
        nll / pixels[0].numel()

    The one line: ``from fused_elbo.compat import vdvae_discretized_mix_logistic_loss as
    discretized_mix_logistic_loss``, in ``vae_helpers.py``. A permuted ``l`` is read as it lies.

    Args:
        x: the data ``[B, H, W, 3]`` in [-1, 1].
        l: the decoder's output ``[B, H, W, 10 K]``.
        low_bit: 32 levels, not 256.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``[B]`` in the dtype of ``l``; differentiable in ``l``.

    Raises:
        ValueError: shapes that are not those; an ``x`` that requires a gradient.

    Child, "Very deep VAEs", ICLR 2021; github.com/openai/vdvae, vae_helpers.py.

    >>> x, l = torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, 20)
    >>> vdvae_discretized_mix_logistic_loss(x, l)
    tensor([6.2344, 6.2344])
    """
    validate.tensors(l=l, x=x)
    channels = l.shape[-1] if l.dim() == 4 else 0
    if channels % 10 or 0 in (channels, *l.shape[1:]) or x.shape != (*l.shape[:-1], 3):
        shapes = validate.describe({"x": x, "l": l})
        raise ValueError(f"expected x [B, H, W, 3] and l [B, H, W, 10 K], got {shapes}")
    check_data("x", x)
    params, pixels = l.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    half_bin = 1 / 31 if low_bit else 1 / 255
    nll = calls.discretized_mix_logistic_nll(params, pixels, half_bin, 0.999, GUARD, impl=impl)
    return in_torch_dtype(nll.mean(1) / 3, l)


def nvae_disc_mix_logistic_log_prob(
    param: Tensor,
    samples: Tensor,
    num_mix: int = 10,
    num_bits: int = 8,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``DiscMixLogistic(param, num_mix, num_bits).log_prob(samples)`` of NVAE, of each pixel.

    .. math:: \log \sum_k w_k \prod_c p_{ck}(2 x_c - 1)

    as in :func:`fused_elbo.discretized_mix_logistic_nll`, but for the guard (see the module). The
    last bin begins at 0.99: made for levels over 256. NVAE's own ``ToTensor`` divides them by 255,
    and then level 254 is at 0.992 and reaches to infinity as 255 does, so that the probabilities
    of all levels add up to more than 1. beta is NVAE's ``kl_coeff``. Equivalent PyTorch::

        -discretized_mix_logistic_nll(param, 2 * samples - 1, num_mix, right_edge=0.99)

    without the guard, and there summed over pixels.

    Args:
        param: the decoder's output ``[B, 10 K, H, W]``.
        samples: the data ``[B, 3, H, W]`` in [0, 1].
        num_mix: K.
        num_bits: of a level, 1 to 8.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``[B, H, W]`` in the dtype of ``param``: log p, and not minus it; differentiable in
        ``param``.

    Raises:
        ValueError: shapes that are not those; on CPU tensors ``samples`` outside [0, 1], where the
            original asserts (on CUDA, and under ``torch.compile``, nobody waits for that answer);
            ``samples`` that require a gradient.

    Vahdat & Kautz, "NVAE", NeurIPS 2020; github.com/NVlabs/NVAE, distributions.py.

    >>> param, samples = torch.zeros(1, 20, 1, 2), torch.full((1, 3, 1, 2), 0.5)
    >>> nvae_disc_mix_logistic_log_prob(param, samples, num_mix=2)
    tensor([[[-18.7032, -18.7032]]])
    """
    validate.count("num_bits", num_bits)
    if num_bits > 8:
        raise ValueError(f"num_bits must be at most 8, got {num_bits}")
    check_image(param, samples, num_mix, names=("param", "samples"))
    seen = samples.device.type == "cpu" and not torch.compiler.is_compiling()
    if seen and not ((samples >= 0) & (samples <= 1)).all():
        raise ValueError("samples must be in [0, 1]")
    bins = 1 / (2**num_bits - 1), 0.99, GUARD
    nll = calls.discretized_mix_logistic_nll(param, 2 * samples - 1, *bins, impl=impl)
    return in_torch_dtype(-nll.view(samples.shape[0], *samples.shape[2:]), param)
