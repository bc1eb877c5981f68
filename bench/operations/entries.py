"""The operations of a VAE's loss on one sample, in the order of the sweep: what matters most first.

A block an operation: what everyone runs, and its entry.
"""

import math

import torch
import torch.nn.functional as F
from torch.distributions import (
    Bernoulli,
    Categorical,
    Laplace,
    Normal,
    Poisson,
    kl_divergence,
)

import fused_elbo

from ..harness import oracle, traffic
from ..harness.operation import (
    BITS,
    CLASSES,
    COUNTS,
    DATA,
    ENCODED,
    LATENT,
    LOGVAR,
    PIXEL,
    PIXEL_BITS,
    Operation,
)

LOG_2PI = math.log(2 * math.pi)
# The fixed log variance of gaussian_nll; not 0, which would make its scale a multiplication by 1.
FIXED_LOGVAR = -1.0
FIXED_LOG_SCALE = -0.5  # of laplace_nll
ENTRIES = {}


def normal(mu, logvar):
    """torch.distributions everywhere without the validation of arguments."""
    return Normal(mu, torch.exp(0.5 * logvar), validate_args=False)


def standard_normal():
    return Normal(0.0, 1.0, validate_args=False)


def eager_rsample_kl(mu, logvar):
    return eager_rsample(mu, logvar), eager_kl(mu, logvar)


def distributions_rsample_kl(mu, logvar):
    q = normal(mu, logvar)
    return q.rsample(), kl_divergence(q, standard_normal()).sum(-1)


# Sample + KL in one pass.
ENTRIES["rsample_kl"] = Operation(
    inputs=ENCODED,
    outputs=("latent", "rows"),
    providers={
        "eager": eager_rsample_kl,
        "distributions": distributions_rsample_kl,
        "fused_elbo": fused_elbo.rsample_kl,
    },
    exact=lambda mu, logvar, eps: (oracle.sample(mu, logvar, eps), oracle.kl_standard(mu, logvar)),
    floor=traffic.SAMPLE_KL,
    in_graphs=True,
    long_row=True,
)


def eager_elbo_step(logits, x, mu, logvar):
    z, kl = eager_rsample_kl(mu, logvar)
    return z, (eager_bernoulli_nll(logits, x) + kl).mean()


def distributions_elbo_step(logits, x, mu, logvar):
    z, kl = distributions_rsample_kl(mu, logvar)
    return z, (distributions_bernoulli_nll(logits, x) + kl).mean()


def builtin_elbo_step(logits, x, mu, logvar):
    """PyTorch's VAE example: a summed cross-entropy and a summed KL, over the batch size."""
    z = eager_rsample(mu, logvar)
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum()
    return z, (nll + kl) / mu.shape[0]


def fused_elbo_step(logits, x, mu, logvar):
    z, kl = fused_elbo.rsample_kl(mu, logvar)
    return z, fused_elbo.elbo_loss(logits, x, kl=kl)


def exact_elbo_step(logits, x, mu, logvar, eps):
    loss = (oracle.bernoulli(logits, x) + oracle.kl_standard(mu, logvar)).mean()
    return oracle.sample(mu, logvar, eps), loss


# Whole loss step: sample + KL, Bernoulli likelihood of 784 pixels, mean.
ENTRIES["elbo_step"] = Operation(
    inputs={"logits": PIXEL, "pixels": PIXEL_BITS, **ENCODED},
    outputs=("latent", "scalar"),
    providers={
        "eager": eager_elbo_step,
        "distributions": distributions_elbo_step,
        "builtin": builtin_elbo_step,
        "fused_elbo": fused_elbo_step,
    },
    exact=exact_elbo_step,
    floor=lambda case: traffic.SAMPLE_KL.elements(case) + traffic.loss_pixels(case),
    in_graphs=True,
)


def eager_kl(mu, logvar):
    return -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1)


def distributions_kl(mu, logvar):
    return kl_divergence(normal(mu, logvar), standard_normal()).sum(-1)


# KL to N(0, I).
ENTRIES["gaussian_kl"] = Operation(
    inputs=ENCODED,
    providers={
        "eager": eager_kl,
        "distributions": distributions_kl,
        "fused_elbo": fused_elbo.gaussian_kl,
    },
    exact=oracle.kl_standard,
    floor=traffic.KL,
    in_graphs=True,
    few_dtypes=True,
)


def eager_rsample(mu, logvar):
    return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


# Reparameterised sample.
ENTRIES["gaussian_rsample"] = Operation(
    inputs=ENCODED,
    outputs=("latent",),
    providers={
        "eager": eager_rsample,
        "distributions": lambda mu, logvar: normal(mu, logvar).rsample(),
        "fused_elbo": fused_elbo.gaussian_rsample,
    },
    exact=oracle.sample,
    floor=traffic.Floor(3, 4, 0, 0),  # mu, logvar -> z | dz, logvar -> dmu, dlogvar
)


def gaussian_nll_constant(recon):
    return 0.5 * recon.shape[-1] * (FIXED_LOGVAR + LOG_2PI)


def eager_gaussian_nll(recon, x):
    squares = (x - recon).pow(2).sum(-1)
    return 0.5 * math.exp(-FIXED_LOGVAR) * squares + gaussian_nll_constant(recon)


def distributions_gaussian_nll(recon, x):
    sigma = math.exp(0.5 * FIXED_LOGVAR)
    return -Normal(recon, sigma, validate_args=False).log_prob(x).sum(-1)


def builtin_gaussian_nll(recon, x):
    squares = F.mse_loss(recon, x, reduction="none").sum(-1)
    return 0.5 * math.exp(-FIXED_LOGVAR) * squares + gaussian_nll_constant(recon)


# Gaussian likelihood, fixed sigma.
ENTRIES["gaussian_nll"] = Operation(
    inputs={"recon": LATENT, "x": DATA},
    providers={
        "eager": eager_gaussian_nll,
        "distributions": distributions_gaussian_nll,
        "builtin": builtin_gaussian_nll,
        "fused_elbo": lambda recon, x: fused_elbo.gaussian_nll(recon, x, FIXED_LOGVAR),
    },
    exact=lambda recon, x: -oracle.log_density(x, recon, torch.full_like(recon, FIXED_LOGVAR)),
    floor=traffic.Floor(2, 3),  # recon, x | recon, x -> drecon
)


def eager_gaussian_nll_learned(recon, x, logvar):
    return 0.5 * (LOG_2PI + logvar + (x - recon).pow(2) * torch.exp(-logvar)).sum(-1)


def builtin_gaussian_nll_learned(recon, x, logvar):
    nll = F.gaussian_nll_loss(recon, x, logvar.exp(), full=True, reduction="none")
    return nll.sum(-1)


# Gaussian likelihood, learned sigma per element.
ENTRIES["gaussian_nll_learned"] = Operation(
    inputs={"recon": LATENT, "x": DATA, "logvar": LOGVAR},
    providers={
        "eager": eager_gaussian_nll_learned,
        "distributions": lambda recon, x, logvar: -normal(recon, logvar).log_prob(x).sum(-1),
        "builtin": builtin_gaussian_nll_learned,
        "fused_elbo": fused_elbo.gaussian_nll,
    },
    exact=lambda recon, x, logvar: -oracle.log_density(x, recon, logvar),
    floor=traffic.Floor(3, 5),  # recon, x, logvar | the same -> drecon, dlogvar
)


def eager_bernoulli_nll(logits, x):
    return (F.softplus(logits) - x * logits).sum(-1)


def distributions_bernoulli_nll(logits, x):
    return -Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1)


def builtin_bernoulli_nll(logits, x):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


# Bernoulli likelihood from logits.
ENTRIES["bernoulli_nll"] = Operation(
    inputs={"recon": LATENT, "binary": BITS},
    providers={
        "eager": eager_bernoulli_nll,
        "distributions": distributions_bernoulli_nll,
        "builtin": builtin_bernoulli_nll,
        "fused_elbo": fused_elbo.bernoulli_nll,
    },
    exact=oracle.bernoulli,
    floor=traffic.Floor(2, 3),  # logits, x | logits, x -> dlogits
    few_dtypes=True,
)


def eager_log_prob(x, mu, logvar):
    return -0.5 * (LOG_2PI + logvar + (x - mu).pow(2) * torch.exp(-logvar)).sum(-1)


# Log-density of given points.
ENTRIES["gaussian_log_prob"] = Operation(
    inputs={"x": DATA, **ENCODED},
    providers={
        "eager": eager_log_prob,
        "distributions": lambda x, mu, logvar: normal(mu, logvar).log_prob(x).sum(-1),
        "fused_elbo": fused_elbo.gaussian_log_prob,
    },
    exact=oracle.log_density,
    floor=traffic.Floor(3, 5),  # x, mu, logvar | the same -> dmu, dlogvar
)


def eager_laplace_nll(recon, x):
    constant = recon.shape[-1] * (FIXED_LOG_SCALE + math.log(2))
    return (x - recon).abs().sum(-1) * math.exp(-FIXED_LOG_SCALE) + constant


def distributions_laplace_nll(recon, x):
    return -Laplace(recon, math.exp(FIXED_LOG_SCALE), validate_args=False).log_prob(x).sum(-1)


def builtin_laplace_nll(recon, x):
    constant = recon.shape[-1] * (FIXED_LOG_SCALE + math.log(2))
    distance = F.l1_loss(recon, x, reduction="none").sum(-1)
    return distance * math.exp(-FIXED_LOG_SCALE) + constant


# Laplace likelihood, fixed scale.
ENTRIES["laplace_nll"] = Operation(
    inputs={"recon": LATENT, "x": DATA},
    providers={
        "eager": eager_laplace_nll,
        "distributions": distributions_laplace_nll,
        "builtin": builtin_laplace_nll,
        "fused_elbo": lambda recon, x: fused_elbo.laplace_nll(recon, x, FIXED_LOG_SCALE),
    },
    exact=lambda recon, x: oracle.laplace(recon, x, FIXED_LOG_SCALE),
    floor=traffic.Floor(2, 3),  # as gaussian_nll
    corners=True,
    full_only=True,
)


def eager_poisson_nll(log_rate, x):
    return (log_rate.exp() - x * log_rate + torch.lgamma(x + 1)).sum(-1)


def distributions_poisson_nll(log_rate, x):
    return -Poisson(log_rate.exp(), validate_args=False).log_prob(x).sum(-1)


def builtin_poisson_nll(log_rate, x):
    """Its own log x!, full=True, is Stirling's and off by 0.04 at x = 2."""
    nll = F.poisson_nll_loss(log_rate, x, reduction="none")
    return (nll + torch.lgamma(x + 1)).sum(-1)


# Poisson likelihood from log rates.
ENTRIES["poisson_nll"] = Operation(
    inputs={"recon": LATENT, "counts": COUNTS},
    providers={
        "eager": eager_poisson_nll,
        "distributions": distributions_poisson_nll,
        "builtin": builtin_poisson_nll,
        "fused_elbo": fused_elbo.poisson_nll,
    },
    exact=oracle.poisson,
    floor=traffic.Floor(2, 3),  # log rates, x | log rates, x -> dlog_rates
    corners=True,
    full_only=True,
)


def eager_categorical_nll(logits, target):
    return logits.logsumexp(-1) - logits.gather(-1, target[..., None]).squeeze(-1)


def distributions_categorical_nll(logits, target):
    return -Categorical(logits=logits, validate_args=False).log_prob(target)


def builtin_categorical_nll(logits, target):
    return F.cross_entropy(logits, target, reduction="none")


# Categorical likelihood: a class for each row, of as many as there are latents.
ENTRIES["categorical_nll"] = Operation(
    inputs={"recon": LATENT, "classes": CLASSES},
    providers={
        "eager": eager_categorical_nll,
        "distributions": distributions_categorical_nll,
        "builtin": builtin_categorical_nll,
        "fused_elbo": fused_elbo.categorical_nll,
    },
    exact=oracle.categorical,
    floor=traffic.Floor(1, 2, 3, 3),  # logits, int64 classes | the same -> dlogits
    corners=True,
    full_only=True,
)
