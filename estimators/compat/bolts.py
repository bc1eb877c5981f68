"""The loss of lightning-bolts' VAE."""

import math

from torch import Tensor
from torch.distributions import Normal

from ..dispatch.types import Implementation
from .terms import kl_of_normals, mean_squared_error
from .torch_nn import in_torch_dtype


def bolts_vae_loss(
    x_hat: Tensor,
    x: Tensor,
    p: Normal | None,
    q: Normal,
    kl_coeff: float = 0.1,
    *,
    impl: Implementation = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The loss in ``VAE.step`` of lightning-bolts: means over pixels, and also over latents.

    .. math:: \frac{1}{BP} \sum_{bi} (\hat x_{bi} - x_{bi})^2
              + k \frac{1}{BD} \sum_{bd} KL(q_{bd} \| p_{bd})

    Its beta, at a decoder's variance of 1, is ``kl_coeff * pixels / (2 * latents)``: 0.6 for
    the coefficient of 0.1, 3 x 32 x 32 pixels and 256 latents. Equivalent PyTorch::

        recon_loss = F.mse_loss(x_hat, x)
        kl = kl_coeff * torch.distributions.kl_divergence(q, p).mean()
        kl + recon_loss, {"recon_loss": recon_loss, "kl": kl, "loss": kl + recon_loss}

    The one line, after ``_run_step``: ``return bolts_vae_loss(x_hat, x, p, q, self.kl_coeff)``.

    Args:
        x_hat, x: ``[B, ...]``, of one shape.
        p, q: prior and posterior, ``torch.distributions.Normal`` of ``[B, ..., D]``. ``p`` of None
            means the standard normal; the original passes it as tensors, which must be read.
        kl_coeff: the weight of the KL, with the default of the original's constructor.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``(loss, {"recon_loss", "kl", "loss"})``, scalars in the inputs' dtype; ``kl`` is
        weighted. Differentiable in ``q`` and ``p`` (mean and standard deviation) and in both
        images.

    Raises:
        TypeError: ``p`` or ``q`` is no ``Normal``.
        ValueError: shapes that do not fit; the original broadcasts them with a warning.

    Falcon & Cho, "A framework for contrastive self-supervised learning", 2020 (lightning-bolts,
    basic_vae_module.py); Kingma & Welling 2014.

    >>> q = torch.distributions.Normal(torch.ones(4, 2), torch.ones(4, 2))
    >>> bolts_vae_loss(torch.zeros(4, 6), torch.ones(4, 6), None, q)[0]
    tensor(1.0500)
    """
    posterior = _mean_and_std("q", q)
    prior = (None, None) if p is None else _mean_and_std("p", p)
    kl, shape = kl_of_normals(posterior, prior, "std", impl)
    recon_loss = mean_squared_error(impl, x_hat=x_hat, x=x)
    kl = in_torch_dtype(kl.sum() / math.prod(shape), q.loc) * kl_coeff
    loss = kl + recon_loss
    return loss, {"recon_loss": recon_loss, "kl": kl, "loss": loss}


def _mean_and_std(name, normal):
    if not isinstance(normal, Normal):
        raise TypeError(f"{name} must be a torch.distributions.Normal, got {type(normal).__name__}")
    return normal.loc, normal.scale
