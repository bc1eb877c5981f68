"""The losses of very deep VAEs and of the autoencoders of latent diffusion."""

import math

import torch
import torch.nn.functional as F

from fused_elbo import compat, rsample_kl_log_std

from ..harness import oracle, traffic
from ..harness.cases import COLORS, EVENTS, FLOAT32, NUMBERS
from ..harness.operation import LATENT, Input, log_variance
from .drop_in import DropIn

ENTRIES = {}


def levels(normal):
    """256 of them, in [-1, 1], the first and the last among them."""
    return (255 * torch.sigmoid(3 * normal)).round() / 127.5 - 1


def as_vdvae(numbers, colors):
    """[B, H, W, channels], permuted: of convolutions [B, channels, H, W]."""
    return [t.unflatten(-1, (28, 28)).permute(0, 2, 3, 1) for t in (numbers, colors)]


def original_mix_logistic(numbers, colors):
    l, x = as_vdvae(numbers, colors)  # noqa: E741
    mixtures = l.shape[-1] // 10
    logits, rest = l[..., :mixtures], l[..., mixtures:].reshape(*x.shape, 3 * mixtures)
    means, log_scales, coefficients = rest.split(mixtures, -1)
    log_scales, coefficients = log_scales.clamp(min=-7.0), torch.tanh(coefficients)
    x = x.unsqueeze(-1).expand_as(means)
    green = means[..., 1, :] + coefficients[..., 0, :] * x[..., 0, :]
    blue = means[..., 2, :] + coefficients[..., 1, :] * x[..., 0, :]
    blue = blue + coefficients[..., 2, :] * x[..., 1, :]
    centered = x - torch.stack((means[..., 0, :], green, blue), -2)
    inverse = torch.exp(-log_scales)
    upper, lower = inverse * (centered + 1 / 255), inverse * (centered - 1 / 255)
    middle, delta = inverse * centered, torch.sigmoid(upper) - torch.sigmoid(lower)
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
    inside = torch.where(delta > 1e-5, torch.log(delta.clamp(min=1e-12)), density)
    inside = torch.where(x > 0.999, -F.softplus(lower), inside)
    log_probs = torch.where(x < -0.999, upper - F.softplus(upper), inside).sum(-2)
    log_probs = torch.logsumexp(log_probs + torch.log_softmax(logits, -1), -1)
    return (-log_probs.sum((1, 2)) / (COLORS * EVENTS)).mean()


def replaced_mix_logistic(numbers, colors):
    l, x = as_vdvae(numbers, colors)  # noqa: E741
    return compat.vdvae_discretized_mix_logistic_loss(x, l).mean()


def exact_mix_logistic(numbers, colors):
    """The difference of two sigmoids. In float64 the smaller one keeps enough digits."""
    logits, *rest = numbers.chunk(10, 1)
    r, g, b = colors.unsqueeze(2).unbind(1)
    shifts = 0.0, rest[2].tanh() * r, rest[5].tanh() * r + rest[8].tanh() * g
    log_probs = torch.log_softmax(logits, 1)
    for x, mean, log_scale, shift in zip((r, g, b), rest[::3], rest[1::3], shifts, strict=True):
        centered, inverse = x - mean - shift, torch.exp(-log_scale)
        first, last = x < -0.999, x > 0.999
        upper, lower = inverse * (centered + 1 / 255), inverse * (centered - 1 / 255)
        near, far = (
            torch.where(centered > 0, -lower, upper),
            torch.where(centered > 0, -upper, lower),
        )
        inside = torch.log(torch.sigmoid(near) - torch.sigmoid(far))
        edge = F.logsigmoid(torch.where(first, upper, -lower))
        log_probs = log_probs + torch.where(first | last, edge, inside)
    return -torch.logsumexp(log_probs, 1).mean() / COLORS


# Ten mixtures of logistics for each of 784 RGB pixels, a mean.
ENTRIES["vdvae_discretized_mix_logistic_loss"] = DropIn(
    inputs={
        "numbers": Input(("batch", "numbers", "events")),
        "colors": Input(("batch", "colors", "events"), levels, data=True),
    },
    providers={"eager": original_mix_logistic, "fused_elbo": replaced_mix_logistic},
    exact=exact_mix_logistic,
    floor=lambda case: (2 * NUMBERS + COLORS) * 4 * case.batch * EVENTS,
    dtypes=FLOAT32,  # bfloat16 tells no level from the next
    tolerance={"float32": 5e-4},  # of the original's gradient: its difference of sigmoids cancels
    most=64,  # 20 MB of numbers, of which the original has a dozen copies
    full_only=True,
)


def as_image(parameters):
    """The halves of a row as four channels each."""
    return parameters.unflatten(1, (8, -1, 1))


def halves(parameters):
    mean, logvar = parameters.chunk(2, 1)
    return mean, logvar.clamp(-30.0, 20.0)


def original_diffusers(parameters):
    """DiagonalGaussianDistribution: its constructor, sample() and kl()."""
    mean, logvar = torch.chunk(as_image(parameters), 2, dim=1)
    logvar = torch.clamp(logvar, -30.0, 20.0)
    std, var = torch.exp(0.5 * logvar), torch.exp(logvar)
    z = mean + std * torch.randn(mean.shape, device=parameters.device, dtype=parameters.dtype)
    kl = 0.5 * torch.sum(torch.pow(mean, 2) + var - 1.0 - logvar, dim=[1, 2, 3])
    return z.detach().flatten(1), z.sum() + kl.sum()


def replaced_diffusers(parameters):
    posterior = compat.DiagonalGaussianDistribution(as_image(parameters))
    z = posterior.sample()
    return z.detach().flatten(1), z.sum() + posterior.kl().sum()


def exact_diffusers(parameters, eps):
    mean, logvar = halves(parameters)
    z = oracle.sample(mean, logvar, eps)
    return z, z.sum() + oracle.kl_standard(mean, logvar).sum()


# Sample + KL of latent diffusion's posterior, sums.
ENTRIES["DiagonalGaussianDistribution"] = DropIn(
    inputs={"parameters": Input(("batch", "both halves"))},
    outputs=("shown", "scalar"),
    posterior=halves,
    providers={"eager": original_diffusers, "fused_elbo": replaced_diffusers},
    exact=exact_diffusers,
    # parameters -> z | parameters -> their gradient; that of a sum is one number
    floor=lambda case: 7 * traffic.ITEM[case.dtype] * case.batch * case.latent,
)


LOG_STD = LATENT._replace(scale=lambda normal: log_variance(normal) / 2)
TWO_GAUSSIANS = {"mu": LATENT, "log_std": LOG_STD, "prior_mu": LATENT, "prior_log_std": LOG_STD}


def original_vdvae_kl(mu1, logsigma1, mu2, logsigma2):
    squares = logsigma1.exp() ** 2 + (mu1 - mu2) ** 2
    return (-0.5 + logsigma2 - logsigma1 + 0.5 * squares / (logsigma2.exp() ** 2)).sum()


def replaced_vdvae_kl(mu1, logsigma1, mu2, logsigma2):
    return compat.gaussian_analytical_kl(mu1, mu2, logsigma1, logsigma2).sum()


def exact_vdvae_kl(mu1, logsigma1, mu2, logsigma2):
    distance = (mu1 - mu2) * torch.exp(-logsigma2)
    return oracle.kl_standard(distance, 2 * (logsigma1 - logsigma2)).sum()


# KL between two learned Gaussians, one a latent, sum.
ENTRIES["gaussian_analytical_kl"] = DropIn(
    inputs=TWO_GAUSSIANS,
    providers={"eager": original_vdvae_kl, "fused_elbo": replaced_vdvae_kl},
    exact=exact_vdvae_kl,
    floor=lambda case: 13 * traffic.ITEM[case.dtype] * case.batch * case.latent,
)


def original_vdvae(mu, log_std, *prior):
    z = torch.exp(log_std) * torch.empty_like(mu).normal_(0.0, 1.0) + mu
    return z.detach(), z.sum() + original_vdvae_kl(mu, log_std, *prior)


def replaced_vdvae(*given):
    z, kl = rsample_kl_log_std(*given)
    return z.detach(), z.sum() + kl.sum()


def exact_vdvae(mu, log_std, *prior, eps):
    z = oracle.sample(mu, 2 * log_std, eps)
    return z, z.sum() + exact_vdvae_kl(mu, log_std, *prior)


# A level of VDVAE: sample + KL of two learned Gaussians, sums.
ENTRIES["rsample_kl_log_std"] = DropIn(
    inputs=TWO_GAUSSIANS,
    outputs=("shown", "scalar"),
    posterior=lambda mu, log_std, *prior: (mu, 2 * log_std),
    providers={"eager": original_vdvae, "fused_elbo": replaced_vdvae},
    exact=exact_vdvae,
    floor=lambda case: 13 * traffic.ITEM[case.dtype] * case.batch * case.latent,
)
