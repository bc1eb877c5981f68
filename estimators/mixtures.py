"""Densities that compare every sample with every component, without a tensor of all pairs."""

import torch  # noqa: F401  for the examples below
from torch import Tensor

from . import dispatch, validate
from .dispatch import Implementation


def mixture_log_prob(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None = None,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    r"""Log-density of a mixture of K diagonal Gaussians, in nats.

    .. math:: \log \sum_k w_k \, N(z; \mu_k, \operatorname{diag} e^{\ell_k}), \qquad
              w = \operatorname{softmax}(\texttt{log\_weights})

    The prior of a VampPrior, whose components are q of pseudo-inputs, and the aggregate posterior
    of a data set. The kernels hold nothing of the size of all pairs: memory is that of arguments
    and results, where eager PyTorch takes [..., K, D] several times over. Results do not change
    from run to run. Differences z - mu are taken before they are squared, so that means far from
    the origin cost no digits.

    Equivalent PyTorch::

        components = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
        MixtureSameFamily(Categorical(logits=log_weights), components).log_prob(z)

    except where z is impossible of all components: there the value is -inf, and the gradients are
    0 instead of NaN.

    Args:
        z: ``[..., D]``; float16, bfloat16, float32 or float64, and the others of the same dtype.
        mu, logvar: of the components, ``[K, D]``, broadcast together; ``logvar`` is the log
            variance.
        log_weights: ``[K]``, any numbers: they are normalised here, so that the result is a
            density. -inf is a component of weight 0. None is for equal weights.
        impl: as in :func:`gaussian_log_prob`.

    Returns:
        ``[...]`` in float32, or float64 for float64 inputs; differentiable in every argument
        (by the kernels on CUDA once, else any number of times).

    Raises:
        ValueError: components that are not ``[K, D]`` with K >= 1, a ``z`` of other latents,
            ``log_weights`` that are not ``[K]``; devices differ.
        TypeError, RuntimeError: as :func:`gaussian_log_prob`.

    Tomczak & Welling, "VAE with a VampPrior", AISTATS 2018, eq. 9.

    >>> mixture_log_prob(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(3, 2))
    tensor([-1.8379])
    """
    validate.tensors(z=z, mu=mu, logvar=logvar, log_weights=log_weights)
    shape = components(mu, logvar)
    latents(z, mu, logvar)
    if log_weights is not None and log_weights.shape != shape[:1]:
        raise ValueError(
            f"expected log_weights [K], a number a component, "
            f"got {validate.describe({'log_weights': log_weights, 'mu': mu, 'logvar': logvar})}"
        )
    return dispatch.mixture_log_prob(shape, z, mu, logvar, log_weights, impl=impl)


def components(mu, logvar):
    """The shape [K, D] that the two broadcast to."""
    shape = validate.broadcast(mu=mu, logvar=logvar)
    if len(shape) != 2 or shape[0] == 0:
        named = validate.describe({"mu": mu, "logvar": logvar})
        raise ValueError(f"expected components [K, D] with K >= 1, got {named}")
    return shape


def latents(z, mu, logvar):
    """z [..., D] must have the D of the components."""
    cols = max(mu.shape[-1], logvar.shape[-1])
    if z.dim() == 0 or z.shape[-1] != cols:
        named = validate.describe({"z": z, "mu": mu, "logvar": logvar})
        raise ValueError(f"expected z [..., D] and components [K, D] of one D, got {named}")
