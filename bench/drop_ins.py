"""The losses of well-known VAE code, as their users have them, and what replaces them.

Both take the same tensors, in the order of ``cases.DROP_INS``, and return the loss that is
differentiated. Distributions are part of it where a model makes them anyway. They check their
arguments, as torch's default has it; where torch.compile is at work they do not, as its default
has it. A dictionary or tuple that a loss returns is made on either side, but the compiler leaves
out what of it nobody reads.
"""

import importlib.util

import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from fused_elbo import compat

from .cases import ANTIXK_WEIGHT, BOLTS_WEIGHT, SCVI_WEIGHT

PYRO = "pyro_step"
# Torch looks at its variances and may raise: no compiler has that in one graph.
GRAPH_BREAK = "gaussian_nll_loss"
# The compiler cannot follow the search for the KL of two types, but for one that was found before.
kl_divergence(Normal(0.0, 1.0), Normal(0.0, 1.0))


def has_pyro():
    """Whether it could be imported; this does not."""
    return importlib.util.find_spec("pyro") is not None


def normal(mean, scale):
    return Normal(mean, scale, validate_args=not torch.compiler.is_compiling())


# --- the originals ---------------------------------------------------------------------------


def original_pytorch_examples(recon_x, x, mu, logvar):
    cross_entropy = F.binary_cross_entropy(recon_x, x.view(-1, 784), reduction="sum")
    return cross_entropy - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def original_pythae(recon_x, x, mu, log_var):
    flat, target = recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1)
    recon_loss = 0.5 * F.mse_loss(flat, target, reduction="none").sum(dim=-1)
    kld = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
    returned = (recon_loss + kld).mean(dim=0), recon_loss.mean(dim=0), kld.mean(dim=0)
    return returned[0]


def original_antixk(recons, x, mu, log_var):
    recons_loss = F.mse_loss(recons, x)
    kld = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1), dim=0)
    loss = recons_loss + ANTIXK_WEIGHT * kld
    returned = {"loss": loss, "Reconstruction_Loss": recons_loss.detach(), "KLD": -kld.detach()}
    return returned["loss"]


def bolts_distributions(mu, log_var):
    """Of the model's ``sample``, which stays as it is."""
    std = torch.exp(log_var / 2)
    return normal(torch.zeros_like(mu), torch.ones_like(std)), normal(mu, std)


def original_bolts(x_hat, x, mu, log_var):
    p, q = bolts_distributions(mu, log_var)
    recon_loss = F.mse_loss(x_hat, x, reduction="mean")
    kl = kl_divergence(q, p).mean() * BOLTS_WEIGHT
    return kl + recon_loss


def original_scvi(qz_m, qz_v):
    q, p = normal(qz_m, torch.sqrt(qz_v)), normal(0.0, 1.0)
    return SCVI_WEIGHT * kl_divergence(q, p).sum(dim=-1)


def original_gaussian_nll(recons, x, var):
    return F.gaussian_nll_loss(recons, x, var)


def original_pyro(*inputs):
    from . import pyro_step  # which imports Pyro

    return pyro_step.original(*inputs)


ORIGINALS = {
    "pytorch_examples_vae_loss": original_pytorch_examples,
    "pythae_vae_loss": original_pythae,
    "antixk_vanilla_vae_loss": original_antixk,
    "bolts_vae_loss": original_bolts,
    "scvi_kl_local": original_scvi,
    "gaussian_nll_loss": original_gaussian_nll,
    PYRO: original_pyro,
}


# --- fused_elbo ------------------------------------------------------------------------------


def replaced_pythae(recon_x, x, mu, log_var):
    return compat.pythae_vae_loss(recon_x, x, mu, log_var)[0]


def replaced_antixk(recons, x, mu, log_var):
    return compat.antixk_vanilla_vae_loss(recons, x, mu, log_var, M_N=ANTIXK_WEIGHT)["loss"]


def replaced_bolts(x_hat, x, mu, log_var):
    return compat.bolts_vae_loss(x_hat, x, *bolts_distributions(mu, log_var), BOLTS_WEIGHT)[0]


def replaced_scvi(qz_m, qz_v):
    return compat.scvi_kl_local(qz_m, qz_v, SCVI_WEIGHT)


def replaced_pyro(*inputs):
    from . import pyro_step

    return pyro_step.replaced(*inputs)


REPLACEMENTS = {
    "pytorch_examples_vae_loss": compat.pytorch_examples_vae_loss,
    "pythae_vae_loss": replaced_pythae,
    "antixk_vanilla_vae_loss": replaced_antixk,
    "bolts_vae_loss": replaced_bolts,
    "scvi_kl_local": replaced_scvi,
    "gaussian_nll_loss": compat.gaussian_nll_loss,
    PYRO: replaced_pyro,
}
