"""The PyTorch twins of the fused operations: same names, contracts and shapes.

They add to the textbook only what the contracts ask: sums are accumulated in float32, or
in float64 for float64 inputs, samples come in the dtype of mu, and likelihoods sum over
everything but the first dimension. The noise is torch's own: ``noise.stream`` is the
kernels' noise, at 2.6 times the cost on a CPU.
"""

import math

import torch
import torch.nn.functional as F

from . import textbook


def accumulate(*tensors):
    """The tensors in the dtype that sums are accumulated in; None stays None."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    dtype = torch.float64 if wide else torch.float32
    return [None if t is None else t.to(dtype) for t in tensors]


def standard_normal(shape, like, generator=None):
    """eps ~ N(0, I) in the dtype and on the device of ``like``."""
    return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)


def gaussian_log_prob(x, mu, logvar):
    """Twin of :func:`fused_elbo.gaussian_log_prob`."""
    return textbook.gaussian_log_prob(*accumulate(x, mu, logvar))


def gaussian_kl(mu, logvar, prior_mu=None, prior_logvar=None):
    """Twin of :func:`fused_elbo.gaussian_kl`."""
    mu, logvar = torch.broadcast_tensors(mu, logvar)
    return textbook.gaussian_kl(*accumulate(mu, logvar, prior_mu, prior_logvar))


def gaussian_rsample(mu, logvar, num_samples=None, *, generator=None):
    """Twin of :func:`fused_elbo.gaussian_rsample`."""
    dtype = mu.dtype
    mu, logvar = torch.broadcast_tensors(*accumulate(mu, logvar))
    shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
    eps = standard_normal(shape, mu, generator)
    return textbook.gaussian_sample(mu, logvar, eps).to(dtype)


def rsample_kl(mu, logvar, prior_mu=None, prior_logvar=None, *, generator=None):
    """Twin of :func:`fused_elbo.rsample_kl`."""
    z = gaussian_rsample(mu, logvar, generator=generator)
    return z, gaussian_kl(mu, logvar, prior_mu, prior_logvar)


def gaussian_nll(recon, x, recon_logvar=0.0):
    """Twin of :func:`fused_elbo.gaussian_nll`."""
    if isinstance(recon_logvar, torch.Tensor):
        recon, x, logvar = accumulate(recon, x, recon_logvar.expand(recon.shape))
        return -textbook.gaussian_log_prob(x.flatten(1), recon.flatten(1), logvar.flatten(1))
    # A fixed sigma leaves the squared error to torch's own loss, in a third of the time.
    recon, x = accumulate(recon, x)
    squares = F.mse_loss(recon, x, reduction="none").flatten(1).sum(1)
    constant = math.prod(recon.shape[1:]) * (recon_logvar + textbook.LOG_2PI)
    try:
        precision = math.exp(-recon_logvar)
    except OverflowError:
        precision = math.inf
    return 0.5 * precision * squares + 0.5 * constant


def bernoulli_nll(logits, x):
    """Twin of :func:`fused_elbo.bernoulli_nll`."""
    logits, x = accumulate(logits, x)
    return -textbook.bernoulli_log_prob(x.flatten(1), logits.flatten(1))
