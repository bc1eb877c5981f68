"""The ops in PyTorch, on rows: on a CPU autograd differentiates them in a kernel's stead again.

Each function has the arguments of an op of ``kernels/ops.py``, and calls the function of
``reference`` at the noise that the op drew.
"""

import torch
import torch.nn.functional as F

from . import noise, reference


def by_samples(tensor, x):
    """[samples, rows, cols] of [samples * rows, cols]; None stays."""
    return None if tensor is None else tensor.view(-1, x.shape[0], tensor.shape[1])


def gaussian_nll(recon, x, logvar, logvar_value, sign):
    logvar = logvar_value if logvar is None else by_samples(logvar, x)
    return sign * reference.gaussian_nll(by_samples(recon, x), x, logvar).flatten()


def bernoulli_nll(recon, x, probabilities):
    recon = by_samples(recon, x)
    if not probabilities:
        return reference.bernoulli_nll(recon, x).flatten()
    recon, x = reference.accumulate(recon, x)
    nll = F.binary_cross_entropy(recon, x.expand_as(recon), reduction="none")
    return nll.sum(-1).flatten()


def laplace_nll(recon, x, log_scale, log_scale_value):
    log_scale = log_scale_value if log_scale is None else by_samples(log_scale, x)
    return reference.laplace_nll(by_samples(recon, x), x, log_scale).flatten()


def poisson_nll(log_rate, x):
    return reference.poisson_nll(by_samples(log_rate, x), x).flatten()


def negative_binomial_nll(log_mean, x, log_theta, zero_logits, log_theta_value, elementwise=False):
    zero_logits = by_samples(zero_logits, x)
    if log_theta is None:
        log_theta = log_theta_value
    elif len(log_theta) == len(log_mean):  # else it is one row for all
        log_theta = by_samples(log_theta, x)
    log_mean = by_samples(log_mean, x)
    if elementwise:
        terms = reference.negative_binomial_nll_terms(log_mean, x, log_theta, zero_logits)
        return terms.flatten(0, 1)
    return reference.negative_binomial_nll(log_mean, x, log_theta, zero_logits).flatten()


def softmax_negative_binomial_nll(logits, x, log_theta, log_library, zero_logits, log_theta_value):
    (wide,) = reference.accumulate(logits)
    log_mean = log_library + torch.log_softmax(wide, -1)
    return negative_binomial_nll(log_mean, x, log_theta, zero_logits, log_theta_value)


def softmax_negative_binomial_loss(*arguments):
    *given, scale, _ = arguments
    return softmax_negative_binomial_nll(*given).sum() * scale


def multinomial_nll(logits, x):
    return reference.multinomial_nll(by_samples(logits, x), x).flatten()


def categorical_nll(logits, target):
    return reference.categorical_nll(by_samples(logits, target), target).flatten()


def rsample(mu, logvar, seed, samples, keep_noise=False):
    number = 1 if samples is None else samples
    z, _ = rsample_log_ratio(mu, logvar, None, None, seed, 0, number, "total", True, False)
    return z.squeeze(0) if samples is None else z


def rsample_kl(mu, logvar, prior_mu, prior_logvar, seed, keep_noise=False):
    kl = reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar)
    return rsample(mu, logvar, seed, None), kl


def posterior_sample_kl(q, q_spread, prior, prior_spread, eps, seed, *options):
    *form, _ = options
    if eps is None:
        mu, _ = reference.gaussian_of(q, q_spread, *form)
        (eps,) = noise.stream(seed, 1, *mu.shape)
    return reference.posterior_sample_kl(q, q_spread, prior, prior_spread, eps, *form)


def rsample_log_ratio(
    mu,
    logvar,
    prior_mu,
    prior_logvar,
    seed,
    first_draw,
    samples,
    gradient,
    improper_prior,
    antithetic,
):
    sides = 1 + antithetic
    eps = noise.stream(seed, samples // sides, *mu.shape, first_draw=first_draw)
    eps = reference.with_antithetic(eps) if antithetic else eps
    q = mu, logvar, prior_mu, prior_logvar
    return reference.log_ratio_at(eps, *q, gradient=gradient, improper_prior=improper_prior)


def importance_weights(log_ratio, nll, alpha):
    log_ratio, nll = reference.accumulate(log_ratio, nll)
    return reference.importance_bound(log_ratio if nll is None else log_ratio - nll, alpha)


def elbo_loss(nll, batch, kl, beta, scale):
    """(loss, nll, kl) of the likelihood's rows, which are samples of ``batch`` examples."""
    nll = nll.view(-1, batch).mean(0).sum() * scale
    if kl is None:
        return nll, nll
    kl = kl.sum().to(nll.dtype) * scale
    return nll + beta * kl, nll, kl


def discretized_mix_logistic_loss(params, x, half_bin, right_edge, guard, scale, needs):
    nll = reference.discretized_mix_logistic_nll(params, x, half_bin, right_edge, guard)
    return nll.sum() * scale
