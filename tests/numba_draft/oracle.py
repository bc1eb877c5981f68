"""The ops in float64 PyTorch, from the formulas, differentiable by autograd; eps is given."""

import math

import torch
import torch.nn.functional as F

LOG_2PI = math.log(2 * math.pi)


def wide(*tensors):
    """Float64 leaves of the tensors; None stays None."""
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def gaussian_kl(mu, logvar, prior_mu=None, prior_logvar=None):
    if prior_mu is None:
        prior_mu, prior_logvar = torch.zeros_like(mu), torch.zeros_like(mu)
    ratio = logvar - prior_logvar
    square = ((mu - prior_mu) * (-0.5 * prior_logvar).exp()).square()
    return 0.5 * (square + (torch.expm1(ratio) - ratio)).sum(-1)


def gaussian_nll(recon, x, logvar, logvar_value, sign):
    x = x.repeat(recon.shape[0] // x.shape[0], 1)
    logvar = torch.full_like(recon, logvar_value) if logvar is None else logvar.expand_as(recon)
    square = ((x - recon) * (-0.5 * logvar).exp()).square()
    return 0.5 * sign * (square + logvar + LOG_2PI).sum(-1)


def bernoulli_nll(recon, x, probabilities):
    x = x.repeat(recon.shape[0] // x.shape[0], 1)
    if probabilities:
        return F.binary_cross_entropy(recon, x, reduction="none").sum(-1)
    return F.binary_cross_entropy_with_logits(recon, x, reduction="none").sum(-1)


def sample(mu, logvar, eps):
    return mu + (0.5 * logvar).exp() * eps


def log_ratio(mu, logvar, prior_mu, prior_logvar, eps, flat=False):
    """log p - log q at the sample, with q's noise and the prior's density in full."""
    z = sample(mu, logvar, eps)
    log_q = -0.5 * (eps.square() + logvar + LOG_2PI)
    if flat:
        return z, -log_q.sum(-1)
    if prior_mu is None:
        prior_mu, prior_logvar = torch.zeros_like(mu), torch.zeros_like(mu)
    log_p = -0.5 * ((z - prior_mu).square() * (-prior_logvar).exp() + prior_logvar + LOG_2PI)
    return z, (log_p - log_q).sum(-1)


def log_ratio_gradients(dz, dlr, mu, logvar, prior_mu, prior_logvar, eps, gradient, flat, needs):
    """From the definitions: "path" stops q's parameters where log q is evaluated at z."""
    inputs = mu, logvar, prior_mu, prior_logvar
    total = dlr.sum(0)
    weight = torch.where(total == 0, 0.0, dlr / total).detach()

    def surrogate(z_weight, log_p_z, stopped):
        z = sample(mu, logvar, eps)
        q_mu, q_logvar = (mu.detach(), logvar.detach()) if stopped else (mu, logvar)
        q = -0.5 * ((z - q_mu).square() * (-q_logvar).exp() + q_logvar + LOG_2PI).sum(-1)
        p = 0.0
        if not flat:
            m = torch.zeros_like(mu) if prior_mu is None else prior_mu
            s = torch.zeros_like(mu) if prior_logvar is None else prior_logvar
            p = -0.5 * ((log_p_z(z) - m).square() * (-s).exp() + s + LOG_2PI).sum(-1)
        w = z_weight.unsqueeze(-1)
        return (dlr * z_weight * (p - q)).sum() + (dz * w * z).sum()

    one = torch.ones_like(dlr)
    q_loss = surrogate(weight if gradient == "dreg" else one, lambda z: z, gradient != "total")
    p_loss = surrogate(one, lambda z: z.detach(), True)
    result = []
    for index, (tensor, needed) in enumerate(zip(inputs, needs, strict=True)):
        if needed:
            loss = q_loss if index < 2 else p_loss
            (g,) = torch.autograd.grad(loss, [tensor], retain_graph=True, allow_unused=True)
            result.append(torch.zeros_like(tensor) if g is None else g)
    return result


def importance_weights(log_weights, alpha):
    samples = len(log_weights)
    if alpha == 1:
        uniform = torch.full_like(log_weights, 1 / samples)
        return log_weights.mean(0), uniform, torch.full_like(log_weights[0], samples)
    x = (1 - alpha) * log_weights
    bound = (torch.logsumexp(x, 0) - math.log(samples)) / (1 - alpha)
    weights = torch.softmax(x, 0)
    return bound, weights, 1 / weights.square().sum(0)
