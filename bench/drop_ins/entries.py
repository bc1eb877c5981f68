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
from ..harness.cases import BOTH, COLORS, EVENTS, FLOAT32, HIDDEN, NUMBERS
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
)


def columns(batch, like):
    """Of the stratified weights, as published."""
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
)


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
    """By the difference of sigmoids, of either sign: float64 has enough digits of the smaller."""
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
