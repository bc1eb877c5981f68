"""The KL, the sampler and the likelihood of VDVAE, in log standard deviations.

Each keeps its original's names, order and shapes. ``fused_elbo.rsample_kl_log_std`` is the two in
one pass, with the KL of each example in place of a tensor of its terms.
"""

import torch
from torch import Tensor

from ..discretized import check_data
from ..dispatch import gaussian_calls, layouts, likelihood_calls, sample_calls, validate
from ..dispatch.types import Implementation, Parametrisation
from .terms import LOGISTIC_GUARD
from .torch_nn import in_torch_dtype

PARAMETRISATION = Parametrisation("log_std")


def gaussian_analytical_kl(
    mu1: Tensor,
    mu2: Tensor,
    logsigma1: Tensor,
    logsigma2: Tensor,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``gaussian_analytical_kl`` of VDVAE: the terms of the KL, one per latent, from log sigma.

    .. math:: s_2 - s_1 - \tfrac12 + \frac{e^{2 s_1} + (\mu_1 - \mu_2)^2}{2 e^{2 s_2}}

    It is accurate near q = p, and never negative. The effective beta depends on the other term of
    the loss. In VDVAE it is 1, because both terms are divided by the number of pixels. Equivalent
    PyTorch::

        -0.5 + logsigma2 - logsigma1
        + 0.5 * (logsigma1.exp() ** 2 + (mu1 - mu2) ** 2) / (logsigma2.exp() ** 2)

    The one line: ``from fused_elbo.compat import gaussian_analytical_kl``.

    Args:
        mu1, logsigma1: of q, mean and log **standard deviation**, broadcast together.
        mu2, logsigma2: of p, the prior, likewise.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        A tensor of the shape that all broadcast to, in nats, in the inputs' dtype.

    Raises:
        ValueError: shapes that do not broadcast.
        TypeError, RuntimeError: as :func:`fused_elbo.gaussian_log_prob`.

    github.com/openai/vdvae, vae_helpers.py; Child, "Very deep VAEs", ICLR 2021.

    >>> zero = torch.zeros(2, 3)
    >>> gaussian_analytical_kl(torch.ones(2, 3), zero, zero, zero)
    tensor([[0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000]])
    """
    named = {"mu1": mu1, "mu2": mu2, "logsigma1": logsigma1, "logsigma2": logsigma2}
    validate.tensors(**named)
    shape = validate.broadcast(**named)
    q = in_batches(mu1, shape), in_batches(logsigma1, shape)
    p = in_batches(mu2, shape), in_batches(logsigma2, shape)
    kl = gaussian_calls.posterior_kl(*q, *p, PARAMETRISATION, elementwise=True, impl=impl)
    dtype = mu1.dtype
    for tensor in named.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    return layouts.reshaped(kl, shape).to(dtype)


def draw_gaussian_diag_samples(
    mu: Tensor, logsigma: Tensor, *, impl: Implementation = "auto"
) -> Tensor:
    r"""``draw_gaussian_diag_samples`` of VDVAE: a reparameterised sample, from log sigma.

    .. math:: \mu + e^{s} \epsilon

    On CPUs the samples are the original's for the same seed, up to rounding. On CUDA, and on CPUs
    with ``impl="numba"``, the kernel draws its own noise. Equivalent PyTorch::

        torch.exp(logsigma) * torch.empty_like(mu).normal_(0.0, 1.0) + mu

    The one line: ``from fused_elbo.compat import draw_gaussian_diag_samples``.

    Args:
        mu, logsigma: mean and log **standard deviation**, with one shape and dtype.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        z, of the shape and dtype of ``mu``.

    Raises:
        ValueError: ``mu`` and ``logsigma`` of two shapes, or empty.
        TypeError, RuntimeError: as :func:`fused_elbo.gaussian_log_prob`.

    github.com/openai/vdvae, vae_helpers.py; Child, "Very deep VAEs", ICLR 2021.

    >>> draw_gaussian_diag_samples(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """
    validate.tensors(mu=mu, logsigma=logsigma)
    shape = validate.broadcast(mu=mu, logsigma=logsigma)
    if mu.shape != logsigma.shape:
        given = validate.describe({"mu": mu, "logsigma": logsigma})
        raise ValueError(f"expected mu and logsigma of one shape, got {given}")
    eps = None
    if impl in ("auto", "reference") and not mu.is_cuda:
        if mu.is_contiguous():
            eps = sample_calls.torch_normals(mu.shape, mu, impl=impl)
        else:  # torch draws other numbers into other layouts
            eps = torch.empty_like(mu).normal_(0.0, 1.0)
        eps = in_batches(eps, shape)
    q = in_batches(mu, shape), in_batches(logsigma, shape)
    z, _ = sample_calls.posterior_sample_kl(*q, None, None, PARAMETRISATION, eps=eps, impl=impl)
    return layouts.reshaped(z, shape)


def vdvae_discretized_mix_logistic_loss(
    x: Tensor,
    l: Tensor,  # noqa: E741  the original's name
    low_bit: bool = False,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""``discretized_mix_logistic_loss`` of VDVAE: nats per dimension of each example.

    .. math:: -\frac{1}{3HW} \sum_{pixels} \log \sum_k w_k \prod_c p_{ck}(x_c)

    as in :func:`fused_elbo.discretized_mix_logistic_nll`, with two differences: a guard, and the
    mean over pixels and colors. Beta is 1, because VDVAE divides the KL by the same number.
    Equivalent PyTorch, without the guard::

        params, pixels = l.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
        nll = discretized_mix_logistic_nll(params, pixels, l.shape[-1] // 10)
        nll / pixels[0].numel()

    The one line: ``from fused_elbo.compat import vdvae_discretized_mix_logistic_loss as
    discretized_mix_logistic_loss``, in ``vae_helpers.py``. A permuted ``l`` is read without a copy.

    Args:
        x: the data ``[B, H, W, 3]`` in [-1, 1].
        l: the decoder's output ``[B, H, W, 10 K]``.
        low_bit: whether the data have 32 levels instead of 256.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``[B]`` in the dtype of ``l``; differentiable in ``l``.

    Raises:
        ValueError: other shapes; an ``x`` that requires a gradient.

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
    bins = 1 / 31 if low_bit else 1 / 255, 0.999, LOGISTIC_GUARD
    nll = likelihood_calls.discretized_mix_logistic_nll(params, pixels, *bins, impl=impl)
    return in_torch_dtype(nll.mean(1) / 3, l)


def in_batches(tensor, shape):
    """The tensor in this shape; a single dimension becomes a batch of one."""
    wide = tensor if tensor.shape == shape else tensor.expand(shape)
    return wide if len(shape) > 1 else wide.unsqueeze(0)
