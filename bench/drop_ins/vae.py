"""The losses of plain VAEs."""

import math

import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from fused_elbo import compat

from ..harness import oracle, traffic
from ..harness.cases import EVENTS, FLOAT32
from ..harness.operation import ENCODED, LATENT, PIXEL, PIXEL_BITS
from .drop_in import RECONSTRUCTED, DropIn, normal, variance

ENTRIES = {}
# The compiler cannot follow the search for the KL of two types, but for one that was found before.
kl_divergence(Normal(0.0, 1.0), Normal(0.0, 1.0))


def original_pytorch_examples(recon_x, x, mu, logvar):
    cross_entropy = F.binary_cross_entropy(recon_x, x.view(-1, 784), reduction="sum")
    return cross_entropy - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def exact_pytorch_examples(recon, x, mu, logvar):
    cross_entropy = -(x * torch.log(recon) + (1 - x) * torch.log1p(-recon)).sum(-1)
    return (cross_entropy + oracle.kl_standard(mu, logvar)).sum()


# Cross-entropy of 784 probabilities + KL, sums.
ENTRIES["pytorch_examples_vae_loss"] = DropIn(
    inputs={"probabilities": PIXEL._replace(scale=torch.sigmoid), "pixels": PIXEL_BITS, **ENCODED},
    providers={"eager": original_pytorch_examples, "fused_elbo": compat.pytorch_examples_vae_loss},
    exact=exact_pytorch_examples,
    # bfloat16 has no probability between 0.996 and 1, and autocast refuses their cross-entropy.
    dtypes=FLOAT32,
)


def original_pythae(recon_x, x, mu, log_var):
    flat, target = recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1)
    recon_loss = 0.5 * F.mse_loss(flat, target, reduction="none").sum(dim=-1)
    kld = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
    returned = (recon_loss + kld).mean(dim=0), recon_loss.mean(dim=0), kld.mean(dim=0)
    return returned[0]


# Half the squared error of 784 pixels + KL, means over the batch.
ENTRIES["pythae_vae_loss"] = DropIn(
    inputs=RECONSTRUCTED | ENCODED,
    providers={
        "eager": original_pythae,
        "fused_elbo": lambda *given: compat.pythae_vae_loss(*given)[0],
    },
    exact=lambda recon, x, *q: (oracle.squares(recon, x) / 2 + oracle.kl_standard(*q)).mean(),
)


M_N = 0.00025  # the default of AntixK/PyTorch-VAE


def original_antixk(recons, x, mu, log_var):
    recons_loss = F.mse_loss(recons, x)
    kld = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1), dim=0)
    loss = recons_loss + M_N * kld
    returned = {"loss": loss, "Reconstruction_Loss": recons_loss.detach(), "KLD": -kld.detach()}
    return returned["loss"]


# Squared error, a mean over 784 pixels, + weighted KL.
ENTRIES["antixk_vanilla_vae_loss"] = DropIn(
    inputs=RECONSTRUCTED | ENCODED,
    providers={
        "eager": original_antixk,
        "fused_elbo": lambda *given: compat.antixk_vanilla_vae_loss(*given, M_N=M_N)["loss"],
    },
    exact=lambda recon, x, *q: (
        oracle.squares(recon, x) / x.shape[-1] + M_N * oracle.kl_standard(*q)
    ).mean(),
)


BOLTS_WEIGHT = 0.1  # the default of lightning-bolts


def bolts_distributions(mu, log_var):
    """The distributions of the model's ``sample``, which stays as it is."""
    std = torch.exp(log_var / 2)
    return normal(torch.zeros_like(mu), torch.ones_like(std)), normal(mu, std)


def original_bolts(x_hat, x, mu, log_var):
    p, q = bolts_distributions(mu, log_var)
    recon_loss = F.mse_loss(x_hat, x, reduction="mean")
    kl = kl_divergence(q, p).mean() * BOLTS_WEIGHT
    return kl + recon_loss


def replaced_bolts(x_hat, x, mu, log_var):
    return compat.bolts_vae_loss(x_hat, x, *bolts_distributions(mu, log_var), BOLTS_WEIGHT)[0]


def exact_bolts(recon, x, mu, logvar):
    kl = oracle.kl_standard(mu, logvar) / mu.shape[-1]
    return (oracle.squares(recon, x) / x.shape[-1] + BOLTS_WEIGHT * kl).mean()


# Squared error, a mean over 784 pixels, + KL of two Normal, a mean over latents.
ENTRIES["bolts_vae_loss"] = DropIn(
    inputs=RECONSTRUCTED | ENCODED,
    providers={"eager": original_bolts, "fused_elbo": replaced_bolts},
    exact=exact_bolts,
)


SCVI_WEIGHT = 0.5  # scvi-tools warms it up to 1; one on the way


def original_scvi(qz_m, qz_v):
    q, p = normal(qz_m, torch.sqrt(qz_v)), normal(0.0, 1.0)
    return SCVI_WEIGHT * kl_divergence(q, p).sum(dim=-1)


# Weighted KL, from variances.
ENTRIES["scvi_kl_local"] = DropIn(
    inputs={"mu": LATENT, "variance": LATENT._replace(scale=variance)},
    outputs=("rows",),
    providers={
        "eager": original_scvi,
        "fused_elbo": lambda *given: compat.scvi_kl_local(*given, SCVI_WEIGHT),
    },
    exact=lambda mean, variance: SCVI_WEIGHT * oracle.kl_standard(mean, variance.log()),
    floor=traffic.KL,
)


def original_gaussian_nll(recons, x, var):
    return F.gaussian_nll_loss(recons, x, var)


def exact_gaussian_nll(recon, x, variance):
    with_constant = -oracle.log_density(x, recon, variance.log()).mean()
    return with_constant / x.shape[-1] - 0.5 * math.log(2 * math.pi)


# Gaussian likelihood, a variance for each of 784 pixels, mean.
ENTRIES["gaussian_nll_loss"] = DropIn(
    inputs=RECONSTRUCTED | {"pixel_variance": PIXEL._replace(scale=variance)},
    providers={"eager": original_gaussian_nll, "fused_elbo": compat.gaussian_nll_loss},
    # Torch looks at its variances and may raise: no compiler has that in one graph.
    fullgraph=False,
    exact=exact_gaussian_nll,
    # The variance is read too, and its gradient written.
    floor=lambda case: 5 * traffic.ITEM[case.dtype] * case.batch * EVENTS,
)
