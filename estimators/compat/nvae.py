"""The likelihood of NVAE's decoder, a discretised mixture of logistics."""

import torch
from torch import Tensor

from ..discretized import check_image
from ..dispatch import likelihood_calls, validate
from ..dispatch.types import Implementation
from .terms import LOGISTIC_GUARD
from .torch_nn import in_torch_dtype


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

    as in :func:`fused_elbo.discretized_mix_logistic_nll`, with a guard. The last bin begins at
    0.99, which fits levels divided by 256. NVAE's own ``ToTensor`` divides them by 255: level 254
    is then at 0.992 and reaches to infinity, as 255 does, and the probabilities of all levels add
    up to more than 1. Beta is NVAE's ``kl_coeff``. Equivalent PyTorch::

        -discretized_mix_logistic_nll(param, 2 * samples - 1, num_mix, right_edge=0.99)

    which has no guard, and sums over pixels.

    Args:
        param: the decoder's output ``[B, 10 K, H, W]``.
        samples: the data ``[B, 3, H, W]`` in [0, 1].
        num_mix: K.
        num_bits: bits of a level, 1 to 8.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        log p (not minus it) ``[B, H, W]``, in nats, in the dtype of ``param``; differentiable in
        ``param``.

    Raises:
        ValueError: other shapes; ``samples`` that require a gradient; on CPU tensors, ``samples``
            outside [0, 1], which the original asserts (on CUDA and under ``torch.compile`` they are
            not checked, to avoid a device sync).

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
    bins = 1 / (2**num_bits - 1), 0.99, LOGISTIC_GUARD
    nll = likelihood_calls.discretized_mix_logistic_nll(param, 2 * samples - 1, *bins, impl=impl)
    return in_torch_dtype(-nll.view(samples.shape[0], *samples.shape[2:]), param)
