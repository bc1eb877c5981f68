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


def with_antithetic(eps):
    """The pairs (eps, -eps) of noise [K, ...], one after another: [2 K, ...]."""
    return torch.stack((eps, -eps), 1).flatten(0, 1)


def rsample_log_ratio(
    mu,
    logvar,
    num_samples,
    prior_mu=None,
    prior_logvar=None,
    *,
    gradient="total",
    antithetic=False,
    generator=None,
):
    """Twin of :func:`fused_elbo.rsample_log_ratio`."""
    shape = torch.broadcast_shapes(mu.shape, logvar.shape)
    (like,) = accumulate(mu)
    if antithetic:
        eps = with_antithetic(standard_normal((num_samples // 2, *shape), like, generator))
    else:
        eps = standard_normal((num_samples, *shape), like, generator)
    return log_ratio_at(eps, mu, logvar, prior_mu, prior_logvar, gradient=gradient)


def log_ratio_at(
    eps, mu, logvar, prior_mu=None, prior_logvar=None, *, gradient="total", flat=False
):
    """(z, log p(z) - log q(z)) for the noise eps [K, ..., D]; ``flat`` is p(z) = 1."""
    dtype = mu.dtype
    eps, mu, logvar, prior_mu, prior_logvar = accumulate(eps, mu, logvar, prior_mu, prior_logvar)
    z = textbook.gaussian_sample(mu, logvar, eps)
    if gradient == "total":
        return z.to(dtype), log_ratio(eps, z, logvar, prior_mu, prior_logvar, flat)
    # q's own density, from the noise, is held fixed but for what it says of z.
    score = (-eps * torch.exp(-0.5 * logvar)).detach()
    held = (score * (z - z.detach())).sum(-1)
    if gradient == "path":
        ratio = log_ratio(eps, z, logvar.detach(), prior_mu, prior_logvar, flat)
        return z.to(dtype), ratio - held
    fixed = [None if t is None else t.detach() for t in (prior_mu, prior_logvar)]
    ratio = log_ratio(eps, z, logvar.detach(), *fixed, flat) - held
    z, ratio = DoublyReparameterised.apply(z, ratio)
    if any(t is not None and t.requires_grad for t in (prior_mu, prior_logvar)):
        # The prior is the model's: it keeps the weight itself.
        log_prior = log_ratio(eps, z.detach(), logvar.detach(), prior_mu, prior_logvar, False)
        ratio = ratio + (log_prior - log_prior.detach())
    return z.to(dtype), ratio


def log_ratio(eps, z, logvar, prior_mu, prior_logvar, flat):
    """log p(z) - log N(eps; 0, I) + 1/2 sum log var(q): the constants cancel."""
    if flat:
        return 0.5 * (eps.square().sum(-1) + (logvar + textbook.LOG_2PI).sum(-1))
    u, spread = z, logvar
    if prior_mu is not None:
        u = u - prior_mu
    if prior_logvar is not None:
        u = u * torch.exp(-0.5 * prior_logvar)
        spread = logvar - prior_logvar
    return 0.5 * ((eps.square() - u.square()).sum(-1) + spread.sum(-1))


class DoublyReparameterised(torch.autograd.Function):
    """The identity on samples and their log ratio, [K, ..., D] and [K, ...]; backward
    multiplies both gradients by the normalised weights, which those of the log ratio are a
    multiple of (Tucker et al. 2019, eq. 8)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z, log_ratio):
        return z.view_as(z), log_ratio.view_as(log_ratio)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, dz, dlog_ratio):
        total = dlog_ratio.sum(0)
        weights = torch.where(total == 0, 0.0, dlog_ratio / total)
        return dz * weights.unsqueeze(-1), dlog_ratio * weights


def importance_weights(log_weights, alpha=0.0):
    """Twin of :func:`fused_elbo.importance_weights`: (bound, weights, ess)."""
    (log_weights,) = accumulate(log_weights)
    samples, order = len(log_weights), 1.0 - alpha
    if order == 0:
        weights = torch.full_like(log_weights, 1 / samples)
        return log_weights.mean(0), weights, torch.full_like(log_weights[0], samples)
    powered = log_weights if order == 1 else order * log_weights
    weights = normalised(powered)
    squares = weights.square().sum(0)
    ess = torch.where(squares == 0, 0.0, 1 / squares)
    # Of -inf alone logsumexp has a gradient of NaN where the limit is 0.
    impossible = (powered == -torch.inf).all(0)
    total = torch.logsumexp(powered.masked_fill(impossible, 0.0), 0)
    bound = total.masked_fill(impossible, -torch.inf) - math.log(samples)
    if abs(order) < 0.25:
        # The rounding error of a logarithm is divided by order: where the weights are close
        # to each other, as they are with a small order, it is taken of 1 + something small.
        mean = powered.mean(0)
        close = (powered - mean).abs().max(0).values < 0.5
        excess = torch.where(close, powered - mean, 0.0)
        near = torch.log1p(torch.expm1(excess).mean(0)) + mean.masked_fill(~close, 0.0)
        bound = torch.where(close, near, bound)
    return bound / order, weights, ess


def normalised(log_weights):
    """w_k / sum_j w_j over the first dimension, detached; where softmax would be NaN its limits.

    All weights 0: no sample says anything, and all are 0. Some infinite: they share.
    """
    log_weights = log_weights.detach()
    greatest = log_weights.max(0).values
    infinite = (log_weights == torch.inf).to(log_weights.dtype)
    weights = torch.softmax(log_weights, 0)
    weights = torch.where(greatest == -torch.inf, 0.0, weights)
    return torch.where(greatest == torch.inf, infinite / infinite.sum(0), weights)


def gaussian_nll(recon, x, recon_logvar=0.0):
    """Twin of :func:`fused_elbo.gaussian_nll`."""
    event = 1 - x.dim()  # where the dimensions of an example begin, behind those of its samples
    if isinstance(recon_logvar, torch.Tensor):
        recon, x, logvar = accumulate(recon, x, recon_logvar.expand(recon.shape))
        x, recon, logvar = (t.flatten(event) for t in (x, recon, logvar))
        return -textbook.gaussian_log_prob(x, recon, logvar)
    # A fixed sigma leaves the squared error to torch's own loss, in a third of the time.
    recon, x = accumulate(recon, x)
    squares = F.mse_loss(recon, x.expand_as(recon), reduction="none").flatten(event).sum(-1)
    constant = math.prod(x.shape[1:]) * (recon_logvar + textbook.LOG_2PI)
    try:
        precision = math.exp(-recon_logvar)
    except OverflowError:
        precision = math.inf
    return 0.5 * precision * squares + 0.5 * constant


def bernoulli_nll(logits, x):
    """Twin of :func:`fused_elbo.bernoulli_nll`."""
    logits, x = accumulate(logits, x)
    event = 1 - x.dim()
    return -textbook.bernoulli_log_prob(x.flatten(event), logits.flatten(event))
