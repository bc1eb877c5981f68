"""The objective of rtqichen/beta-tcvae, the code of the beta-TCVAE's paper."""

import torch
from torch import Tensor

from ..dispatch import validate
from ..dispatch.types import Implementation
from ..functional import gaussian_log_prob
from ..mixtures import kl_decomposition
from ..reference.reference import accumulate
from .terms import check_batch, check_latents, terms_of_columns, weighted
from .torch_nn import in_torch_dtype


def rtqichen_tcvae_elbo(
    x: Tensor,
    x_params: Tensor,
    zs: Tensor,
    z_params: Tensor,
    dataset_size: int,
    *,
    beta: float = 1.0,
    lamb: float = 0.0,
    include_mutinfo: bool = True,
    tcvae: bool = False,
    mss: bool = False,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    r"""``VAE.elbo`` of rtqichen/beta-tcvae, the code of the paper: an objective of each example.

    .. math:: \log p(x \mid z) - c\, a\, \mathrm{MI} - \beta\, \mathrm{TC}
              - c\, (1 - \lambda)\, \mathrm{DKL}

    with c = 1 for ``tcvae`` and beta without, a = ``include_mutinfo``, and the terms of
    :func:`fused_elbo.kl_decomposition`. Its default is ``"weighted"``, which estimates about
    q(z) / N: the total correlation is some (D - 1) log N too high, 99.7 on the case of
    docs/drop-ins.md, where it is 6.4. ``mss`` is meant to be ``"stratified"``, but writes the
    weights down the first two columns of their matrix in place of the diagonal (reported in the
    repository's pull request 1, open since 2019). A posterior's own density then has the weight
    1 / (B - 1) and not 1 / N, as if the batch were the whole data set. It gives 10.6.
    Equivalent PyTorch, for ``tcvae`` and the default estimator::

        mi, tc, dkl = kl_decomposition(
            zs, mu, 2 * log_sigma, dataset_size, estimator="weighted"
        )
        p = (torch.sigmoid(x_params) + 1e-8) * (1 - 2e-8)
        log_px = x * torch.log(p + 1e-8) + (1 - x) * torch.log(1 - p + 1e-8)
        log_px.flatten(1).sum(1) - (mi + beta * tc + (1 - lamb) * dkl)

    The one line, in place of all that follows ``x = x.view(batch_size, 1, 64, 64)``::

        return rtqichen_tcvae_elbo(
            x, *self.reconstruct_img(x)[1:], dataset_size,
            beta=self.beta, lamb=self.lamb, include_mutinfo=self.include_mutinfo,
            tcvae=self.tcvae, mss=self.mss,
        )

    Args:
        x, x_params: data in [0, 1] and logits, ``[B, ...]``, of one shape.
        zs: a sample of each example's q, ``[B, D]``.
        z_params: ``[B, D, 2]``, mean and **logarithm of the standard deviation** of q. Of the
            original's distributions only the normal one is supported.
        dataset_size: N, at least B.
        beta, lamb, include_mutinfo, tcvae, mss: attributes of the model.
        impl: ``"auto"``, ``"triton"``, ``"numba"`` or ``"reference"``.

    Returns:
        ``(modified_elbo, elbo)``, ``[B]`` in nats, to be **maximised**, the second detached.

    Raises:
        ValueError: shapes that do not fit; a ``dataset_size`` smaller than the batch; ``mss`` with
            a batch of one.

    Chen, Li, Grosse & Duvenaud, "Isolating sources of disentanglement in variational
    autoencoders", NeurIPS 2018, eq. 4; github.com/rtqichen/beta-tcvae, vae_quant.py.

    >>> x, z = torch.ones(2, 3), torch.zeros(2, 1)
    >>> rtqichen_tcvae_elbo(x, torch.zeros(2, 3), z, torch.zeros(2, 1, 2), 10, beta=6.0)[1]
    tensor([-2.0794, -2.0794])
    """
    if z_params.dim() != 3 or z_params.shape[-1] != 2 or x.shape != x_params.shape:
        named = validate.describe({"x": x, "x_params": x_params, "z_params": z_params})
        raise ValueError(
            f"expected x and x_params of one shape and z_params [B, D, 2], got {named}"
        )
    mu, log_sigma = z_params.unbind(-1)
    check_latents(x, zs=zs, mu=mu, log_sigma=log_sigma)
    check_batch(len(zs), dataset_size, mss, "mss")
    logvar = 2 * log_sigma
    log_px = saturating_log_prob(x_params, x)
    if beta == 1 and include_mutinfo and lamb == 0:
        zero = zs.new_zeros(())
        own = gaussian_log_prob(zs, mu, logvar, impl=impl)
        elbo = log_px + gaussian_log_prob(zs, zero, zero, impl=impl) - own
        elbo = in_torch_dtype(elbo, x)
        return elbo, elbo.detach()
    if mss:
        terms = terms_of_columns(zs, mu, logvar, dataset_size, impl=impl)
    else:
        terms = kl_decomposition(zs, mu, logvar, dataset_size, estimator="weighted", impl=impl)
    others = 1 if tcvae else beta
    weights = others * include_mutinfo, beta, others * (1 - lamb)
    both = log_px - weighted(terms, weights), (log_px - sum(terms)).detach()
    return tuple(in_torch_dtype(value, x) for value in both)


def saturating_log_prob(logits, x):
    """log p(x) [B] of the original's Bernoulli, which adds 1e-8 to probabilities twice."""
    logits, x = accumulate(logits, x)
    p = (torch.sigmoid(logits) + 1e-8) * (1 - 2e-8)
    return (x * torch.log(p + 1e-8) + (1 - x) * torch.log(1 - p + 1e-8)).flatten(1).sum(1)
