"""The local KL of scvi-tools' VAE."""

import torch
from torch import Tensor
from torch.distributions import Normal

from ..dispatch import validate
from ..dispatch.types import Implementation
from ..reference.reference import accumulate
from .terms import kl_of_normals
from .torch_nn import in_torch_dtype


def scvi_kl_local(
    qz_m: Tensor | Normal,
    qz_v: Tensor | None = None,
    kl_weight: Tensor | float = 1.0,
    *,
    pz_m: Tensor | Normal | None = None,
    pz_v: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    r"""The weighted local KL of scvi-tools' VAE, of each cell, from means and **variances**.

    .. math:: w\, KL(N(m, v) \| N(m_p, v_p))
              = \tfrac{w}{2} \sum_d \big[(m - m_p)^2 / v_p + v / v_p - 1 - \log (v / v_p)\big]

    Its beta is ``kl_weight``, which scvi-tools warms up to 1. Equivalent PyTorch::

        kl_weight * kl_divergence(Normal(qz_m, qz_v.sqrt()), Normal(0, 1)).sum(-1)

    The one line: ``weighted_kl_local = scvi_kl_local(qz_m, qz_v, kl_weight)``, or of scvi-tools
    1.x, which holds distributions, ``scvi_kl_local(qz, kl_weight=kl_weight, pz_m=pz)``; the loss
    of a cell adds ``-px.log_prob(x).sum(-1)`` to it. The KL of the library size is the same with
    ``pz_m`` and ``pz_v``, and without a weight.

    Args:
        qz_m, qz_v: mean and variance of q, ``[..., D]``; or for ``qz_m`` the ``Normal`` itself.
        kl_weight: a number, or a tensor that broadcasts with the result.
        pz_m, pz_v: mean and variance of the prior; None for 0 and 1; or the ``Normal``.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``[...]`` in nats, in the inputs' dtype; differentiable in every tensor.

    Raises:
        ValueError: on CPU tensors a variance that is not positive, as ``Normal`` does. On CUDA,
            and under ``torch.compile``, nobody waits for that answer: the KL is then inf or NaN.
            Also a variance beside a ``Normal``, which has its own.

    Lopez et al., "Deep generative modeling for single-cell transcriptomics", Nature Methods
    2018; Kingma & Welling 2014, appendix B.

    >>> scvi_kl_local(torch.ones(3, 2), torch.ones(3, 2), kl_weight=0.5)
    tensor([0.5000, 0.5000, 0.5000])
    """
    form = "std" if isinstance(qz_m, Normal) and pz_v is None else "variance"
    q = _mean_and_spread(form, qz_m=qz_m, qz_v=qz_v)
    if q[1] is None:
        raise TypeError("qz_v, the variance, is needed beside a tensor of means")
    prior = _mean_and_spread(form, pz_m=pz_m, pz_v=pz_v)
    kl, _ = kl_of_normals(q, prior, form, impl, names=("qz_m", "qz_v", "pz_m", "pz_v"))
    return kl_weight * in_torch_dtype(kl, q[0])


def _mean_and_spread(form, **named):
    """(mean, spread) from a mean and a variance, or from a Normal in the mean's place.

    Either may be None.
    """
    (name, mean), (variance_name, variance) = named.items()
    if isinstance(mean, Normal):
        if variance is not None:
            raise ValueError(f"{variance_name} goes with a tensor, but {name} is a Normal")
        return mean.loc, mean.scale if form == "std" else accumulate(mean.scale)[0].square()
    if variance is not None:
        validate.tensors(**named)
        _positive(**{variance_name: variance})
    return mean, variance


def _positive(**variances):
    """Check on a CPU that variances are positive; a NaN is not."""
    for name, variance in variances.items():
        if variance is None or variance.device.type != "cpu" or torch.compiler.is_compiling():
            continue
        if not (variance > 0).all():
            raise ValueError(f"{name} must be a positive variance, and is 0, negative or NaN")
