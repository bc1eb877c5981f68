"""The losses of well-known VAE code, as their users have them, and what replaces them.

Both take the same tensors and return the loss that is differentiated, forward + backward alone.
Distributions are part of it where a model makes them anyway. They check their arguments, as
torch's default has it; where torch.compile is at work they do not, as its default has it. A
dictionary or tuple that a loss returns is made on either side, but the compiler leaves out what
of it nobody reads. Exact answers are the equations of papers or documentation.

A block a loss, under its name in fused_elbo.compat; the original is "eager".
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from fused_elbo import compat, rsample_kl_log_std
from fused_elbo.distributions import DiagonalNormal

from ..harness import oracle, traffic
from ..harness.cases import BOTH, EVENTS, FLOAT32
from ..harness.operation import ENCODED, LATENT, PIXEL, PIXEL_BITS, Input, Operation, log_variance
from ..samples.entries import DECODER, decode, decoder_floor

ENTRIES = {}
# The compiler cannot follow the search for the KL of two types, but for one that was found before.
kl_divergence(Normal(0.0, 1.0), Normal(0.0, 1.0))


def loss_floor(case):
    """The loss in one pass over the pixels, and the KL as ever."""
    return traffic.loss_pixels(case) + traffic.KL.elements(case)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DropIn(Operation):
    outputs: tuple = ("scalar",)
    floor: Callable = loss_floor
    dtypes: tuple = BOTH
    most: float = math.inf  # the largest batch


RECONSTRUCTED = {"recons": PIXEL, "image": PIXEL._replace(data=True)}


def variance(normal):
    return log_variance(normal).exp()


def normal(mean, scale):
    return Normal(mean, scale, validate_args=not torch.compiler.is_compiling())


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
    """Of the model's ``sample``, which stays as it is."""
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


# Last, and imported where it is run: importing Pyro changes the defaults of torch.distributions.


@functools.cache
def pyro_diagonal_normal():
    """As DiagonalNormal's documentation says."""
    from pyro.distributions.torch_distribution import TorchDistributionMixin

    return type("PyroDiagonalNormal", (DiagonalNormal, TorchDistributionMixin), {})


def pyro_loss(prior, posterior, x, decoder):
    """(z, loss) of an amortised VAE; the loss is summed over the batch."""
    import pyro
    from pyro.distributions import Bernoulli
    from pyro.infer import TraceMeanField_ELBO

    shown = None

    def model():
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", prior)
            pixels = Bernoulli(logits=decode(z, *decoder)).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide():
        nonlocal shown
        with pyro.plate("batch", len(x)):
            shown = pyro.sample("z", posterior)

    loss = TraceMeanField_ELBO().differentiable_loss(model, guide)
    return shown.detach(), loss


def original_pyro(mu, logvar, x, *decoder):
    from pyro.distributions import Normal

    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu)).to_event(1)
    posterior = Normal(mu, torch.exp(0.5 * logvar)).to_event(1)
    return pyro_loss(prior, posterior, x, decoder)


def replaced_pyro(mu, logvar, x, *decoder):
    diagonal, zero = pyro_diagonal_normal(), torch.zeros_like(mu)
    return pyro_loss(diagonal(mu=zero, logvar=zero), diagonal(mu, logvar), x, decoder)


def exact_pyro(mu, logvar, x, *decoder, eps):
    z = oracle.sample(mu, logvar, eps)
    nll = oracle.bernoulli(oracle.decode(z, *decoder), x)
    return z, (nll + oracle.kl_standard(mu, logvar)).sum()


# Whole loss of Pyro: TraceMeanField_ELBO, MLP decoder of 784 pixels, sum.
ENTRIES["pyro_step"] = DropIn(
    inputs={**ENCODED, "pixels": PIXEL_BITS, **DECODER},
    outputs=("shown", "scalar"),
    providers={"eager": original_pyro, "fused_elbo": replaced_pyro},
    compiles=False,
    exact=exact_pyro,
    floor=lambda case: (
        traffic.SAMPLE_KL.elements(case) + decoder_floor(case) + traffic.loss_pixels(case)
    ),
    needs="pyro",
    dtypes=FLOAT32,  # Pyro sums over the batch in the dtype of its inputs
    most=1024,  # what Pyro adds to a step does not grow with the batch
)
