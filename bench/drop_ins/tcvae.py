"""The losses of beta-TCVAEs, and of pythae's VampPrior."""

import math

import torch
import torch.nn.functional as F

from fused_elbo import compat

from ..harness import oracle, traffic
from ..harness.cases import FLOAT32, HIDDEN
from ..harness.operation import ENCODED, LATENT, PIXEL, PIXEL_BITS, Input, log_variance
from .drop_in import RECONSTRUCTED, DropIn, loss_floor

ENTRIES = {}
EXAMPLES, BETA = 50_000, 6.0  # of a data set, and what weighs the total correlation
# The originals keep [B, B, latents] several times over, 2 GB each at a batch of 4096.
MOST_PAIRS = {"most": 1024, "dtypes": FLOAT32}
SAMPLED = {**ENCODED, "z": LATENT}


def sampled_floor(case):
    """Beside the loss: z read forward and backward, and its gradient written."""
    return loss_floor(case) + 3 * traffic.ITEM[case.dtype] * case.batch * case.latent


def log_normal(x, mu, logvar):
    return -0.5 * (math.log(2 * math.pi) + logvar + (x - mu) ** 2 * torch.exp(-logvar))


def all_pairs(z, mu, logvar):
    """log q(z|x) and log p(z), [B], and the densities of all pairs in each latent."""
    own = log_normal(z, mu, logvar).sum(-1)
    zeros = torch.zeros_like(z)
    prior = log_normal(z, zeros, zeros).sum(-1)
    return own, prior, log_normal(z.unsqueeze(1), mu.unsqueeze(0), logvar.unsqueeze(0))


def original_rtqichen(logits, x, mu, logvar, z):
    own, prior, pairs = all_pairs(z, mu, logvar)
    p = (torch.sigmoid(logits) + 1e-8) * (1 - 2e-8)
    log_px = (x * torch.log(p + 1e-8) + (1 - x) * torch.log(1 - p + 1e-8)).sum(1)
    size = math.log(len(z) * EXAMPLES)
    joint = torch.logsumexp(pairs.sum(2), 1) - size
    marginals = (torch.logsumexp(pairs, 1) - size).sum(1)
    returned = log_px - (own - joint) - BETA * (joint - marginals) - (marginals - prior)
    return returned


def replaced_rtqichen(logits, x, mu, logvar, z):
    parameters = torch.stack([mu, 0.5 * logvar], -1)
    given = x, logits, z, parameters, EXAMPLES
    return compat.rtqichen_tcvae_elbo(*given, beta=BETA, tcvae=True)[0]


def exact_tcvae(z, mu, logvar, log_weights):
    """The weighted terms of each example."""
    pairs = torch.distributions.Normal(mu, torch.exp(0.5 * logvar)).log_prob(z[:, None])
    joint = torch.logsumexp(pairs.sum(-1) + log_weights, 1)
    marginals = torch.logsumexp(pairs + log_weights.unsqueeze(-1), 1).sum(-1)
    zero = torch.zeros_like(z)
    own, prior = oracle.log_density(z, mu, logvar), oracle.log_density(z, zero, zero)
    return own - joint + BETA * (joint - marginals) + marginals - prior


def exact_rtqichen(logits, x, mu, logvar, z):
    weighted = z.new_full((len(z), len(z)), -math.log(len(z) * EXAMPLES))
    return -oracle.bernoulli(logits, x) - exact_tcvae(z, mu, logvar, weighted)


# Cross-entropy of 784 logits and the terms of the weighted estimate, a number an example.
ENTRIES["rtqichen_tcvae_elbo"] = DropIn(
    inputs={"logits": PIXEL, "pixels": PIXEL_BITS, **SAMPLED},
    outputs=("rows",),
    providers={"eager": original_rtqichen, "fused_elbo": replaced_rtqichen},
    exact=exact_rtqichen,
    # Beside it a gradient is read for each example, and its number written.
    floor=lambda case: sampled_floor(case) + 8 * case.batch,
    **MOST_PAIRS,
    full_only=True,
)


def columns(batch, like):
    """The logarithms of the stratified weights, as published."""
    others = batch - 1
    weights = torch.full((batch, batch), 1 / others, dtype=like.dtype, device=like.device)
    weights[:, 0] = 1 / EXAMPLES
    weights[:, 1] = (EXAMPLES - others) / (EXAMPLES * others)
    weights[batch - 2, 0] = weights[0, 1]
    return weights.log()


def original_pythae_tcvae(recon_x, x, mu, log_var, z):
    recon_loss = 0.5 * F.mse_loss(recon_x, x, reduction="none").sum(dim=-1)
    own, prior, pairs = all_pairs(z, mu, log_var)
    log_weights = columns(len(z), z)
    joint = torch.logsumexp(log_weights + pairs.sum(2), 1)
    marginals = torch.logsumexp(log_weights.unsqueeze(2) + pairs, 1).sum(1)
    kld = (own - joint) + BETA * (joint - marginals) + (marginals - prior)
    returned = (recon_loss + kld).mean(dim=0), recon_loss.mean(dim=0), kld.mean(dim=0)
    return returned[0]


def replaced_pythae_tcvae(recon_x, x, mu, log_var, z):
    return compat.pythae_beta_tcvae_loss(recon_x, x, mu, log_var, z, EXAMPLES, beta=BETA)[0]


# Half the squared error of 784 pixels and the terms of misplaced stratified weights, means.
ENTRIES["pythae_beta_tcvae_loss"] = DropIn(
    inputs=RECONSTRUCTED | SAMPLED,
    providers={"eager": original_pythae_tcvae, "fused_elbo": replaced_pythae_tcvae},
    exact=lambda recon, x, mu, logvar, z: (
        oracle.squares(recon, x) / 2 + exact_tcvae(z, mu, logvar, columns(len(z), z))
    ).mean(),
    floor=sampled_floor,
    **MOST_PAIRS,
    full_only=True,
)


def original_vamp(recon_x, x, mu, log_var, z, prior_mu, prior_log_var):
    recon_loss = 0.5 * F.mse_loss(recon_x, x, reduction="none").sum(dim=-1)
    squares = (z.unsqueeze(1) - prior_mu) ** 2 / torch.exp(prior_log_var)
    log_p_z = torch.sum(-0.5 * (prior_log_var + squares), dim=2) - math.log(len(prior_mu))
    log_q_z = (-0.5 * (log_var + (z - mu) ** 2 / log_var.exp())).sum(dim=1)
    kld = log_q_z - torch.logsumexp(log_p_z, dim=1)
    returned = (recon_loss + kld).mean(dim=0), recon_loss.mean(dim=0), kld.mean(dim=0)
    return returned[0]


def replaced_vamp(*given):
    *given, prior_mu, prior_log_var = given
    prior = {"prior_mu": prior_mu, "prior_log_var": prior_log_var}
    return compat.pythae_vamp_loss(*given, 1, **prior)[0]


def exact_vamp(recon, x, mu, logvar, z, prior_mu, prior_logvar):
    components = oracle.log_density(z[:, None], prior_mu, prior_logvar)
    prior = torch.logsumexp(components, 1) - math.log(len(prior_mu))
    return (oracle.squares(recon, x) / 2 + oracle.log_density(z, mu, logvar) - prior).mean()


COMPONENT = Input(("hidden", "latent"))  # 256 of them

# Half the squared error of 784 pixels and the KL to a mixture of 256 posteriors, means.
ENTRIES["pythae_vamp_loss"] = DropIn(
    inputs=RECONSTRUCTED
    | SAMPLED
    | {"prior_mu": COMPONENT, "prior_log_var": COMPONENT._replace(scale=log_variance)},
    providers={"eager": original_vamp, "fused_elbo": replaced_vamp},
    exact=exact_vamp,
    # Components are read forward and backward, and their gradients written.
    floor=lambda case: sampled_floor(case) + 6 * traffic.ITEM[case.dtype] * HIDDEN * case.latent,
    dtypes=FLOAT32,
    full_only=True,
)
