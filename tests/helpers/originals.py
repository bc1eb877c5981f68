"""The originals that fused_elbo.compat stands in for, each from its formula, paired with ours.

Over one example and one element at a time where that is what a formula means.
torch.nn.functional's own functions are their own originals.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.distributions import Normal

from fused_elbo import compat

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
BATCH, IMAGE, PIXELS, LATENTS = 5, (3, 2, 4), 24, 3
# Rounding, relative to the largest number of a tensor: sums cancel, so an element may lose more.
TOLERANCE = {F64: 1e-12, F32: 3e-6}


def kl_to_standard(mu, logvar):
    """The KL of each example by its definition, from means and standard deviations."""
    sigma = torch.exp(logvar / 2)
    return (torch.log(1 / sigma) + (sigma * sigma + mu * mu) / 2 - 1 / 2).sum(-1)


def cross_entropy(p, x):
    """Elementwise, from probabilities, either logarithm no less than -100."""
    log_p, log_not_p = (torch.log(t).clamp_min(-100) for t in (p, 1 - p))
    return -(x * log_p) - (1 - x) * log_not_p


def original_pytorch_examples(recon_x, x, mu, logvar):
    return cross_entropy(recon_x, x.view(-1, PIXELS)).sum() + kl_to_standard(mu, logvar).sum()


def original_pythae(recon_x, x, mu, log_var, z, *, beta=1.0, mode="mse", batch=BATCH):
    error = (recon_x - x) ** 2 / 2 if mode == "mse" else cross_entropy(recon_x, x)
    recon, kld = error.flatten(1).sum(1), kl_to_standard(mu, log_var)
    return (
        sum(r + beta * k for r, k in zip(recon, kld, strict=True)) / batch,
        recon.mean(),
        kld.mean(),
    )


def original_pythae_iwae(recon_x, x, mu, log_var, z, *, mode="mse"):
    """An example at a time; the weights are constants."""
    q, p = Normal(mu, torch.exp(log_var / 2)), Normal(0.0, 1.0)
    kld = (q.log_prob(z) - p.log_prob(z)).sum(-1)
    losses, recons = [], []
    for r, pixels, k in zip(recon_x, x, kld, strict=True):
        pixels = pixels.reshape(1, -1)
        error = (r - pixels) ** 2 / 2 if mode == "mse" else cross_entropy(r, pixels)
        recons.append(error.sum(-1))
        weights = torch.exp(-(recons[-1] + k)).detach()
        losses.append((weights / weights.sum() * (recons[-1] + k)).sum())
    return torch.stack(losses).mean(), torch.stack(recons).mean(), kld.mean()


def antixk_terms(recons, input, mu, log_var):
    return ((recons - input) ** 2).sum() / (BATCH * PIXELS), kl_to_standard(
        mu, log_var
    ).sum() / BATCH


def original_antixk_vanilla(recons, input, mu, log_var):
    recon, kl = antixk_terms(recons, input, mu, log_var)
    return {"loss": recon + 0.3 * kl, "Reconstruction_Loss": recon.detach(), "KLD": -kl.detach()}


def original_antixk_beta(recons, input, mu, log_var):
    recon, kl = antixk_terms(recons, input, mu, log_var)
    return {"loss": recon + 7.0 * 0.3 * kl, "Reconstruction_Loss": recon, "KLD": kl}


def original_bolts(x_hat, x, prior_mu, prior_std, mu, std):
    p, q = Normal(prior_mu, prior_std), Normal(mu, std)
    recon = ((x_hat - x) ** 2).mean()
    kl = 0.1 * torch.distributions.kl_divergence(q, p).mean()
    return recon + kl, {"recon_loss": recon, "kl": kl, "loss": recon + kl}


def original_bolts_standard(x_hat, x, mu, std):
    zero, one = torch.zeros_like(mu), torch.ones_like(mu)
    return original_bolts(x_hat, x, zero, one, mu, std)


def original_scvi(qz_m, qz_v, pz_m, pz_v):
    q, p = Normal(qz_m, qz_v.sqrt()), Normal(pz_m, pz_v.sqrt())
    return 0.4 * torch.distributions.kl_divergence(q, p).sum(-1)


def original_scvi_normals(qz_m, qz_std, pz_m, pz_std):
    return original_scvi(qz_m, qz_std**2, pz_m, pz_std**2)


def original_scvi_standard(qz_m, qz_v):
    q = Normal(qz_m, qz_v.sqrt())
    return torch.distributions.kl_divergence(q, Normal(0.0, 1.0)).sum(-1)


def column_weights(batch, size):
    """The stratified weights as published: in a matrix's columns, which should be diagonals."""
    others = batch - 1
    weights = torch.full((batch, batch), 1 / others, dtype=F64)
    for row in weights:
        row[0], row[1] = 1 / size, (size - others) / (size * others)
    weights[batch - 2, 0] = weights[0, 1]
    return weights


def tcvae_terms(z, mu, log_var, weights, power=1):
    """MI, TC and dimension-wise KL of each example, by every pair; weights [B, B]."""
    pairs = Normal(mu, torch.exp(log_var / 2)).log_prob(z[:, None])
    weights = weights.to(z.dtype)
    joint = (pairs.sum(-1).exp() * weights**power).sum(1).log()
    marginals = (pairs.exp() * weights[..., None]).sum(1).log().sum(-1)
    own, prior = pairs.diagonal().sum(0), Normal(0.0, 1.0).log_prob(z).sum(-1)
    return own - joint, joint - marginals, marginals - prior


def original_rtqichen(x, x_params, zs, z_params):
    mu, log_sigma = z_params[..., 0], z_params[..., 1]
    p = (1 / (1 + torch.exp(-x_params)) + 1e-8) * (1 - 2e-8)
    log_px = (x * (p + 1e-8).log() + (1 - x) * (1 - p + 1e-8).log()).flatten(1).sum(1)
    weights = torch.full((BATCH, BATCH), 1 / (100 * BATCH), dtype=F64)
    mi, tc, dkl = tcvae_terms(zs, mu, 2 * log_sigma, weights)
    return log_px - mi - 6.0 * tc - 0.75 * dkl, (log_px - mi - tc - dkl).detach()


def original_pythae_tcvae(recon_x, x, mu, log_var, z):
    _, recon, _ = original_pythae(recon_x, x, mu, log_var, z)
    mi, tc, dkl = tcvae_terms(z, mu, log_var, column_weights(BATCH, 100))
    kld = (0.5 * mi + 6.0 * tc + 2.0 * dkl).mean()
    return recon + kld, recon, kld


def original_disvae(data, recon, mean, logvar, z):
    """With columns, and their logarithms summed over latents."""
    weights = column_weights(BATCH, 100)
    mi, tc, dkl = (t.mean() for t in tcvae_terms(z, mean, logvar, weights, LATENTS))
    return cross_entropy(recon, data).sum() / BATCH + 6.0 * mi + 2.0 * tc + dkl


def original_disvae_sums(data, recon, mean, logvar, z):
    """The loss with a squared error of pixels up to 255, over 255, and no weights."""
    mi, tc, dkl = (t.mean() for t in tcvae_terms(z, mean, logvar, torch.ones(BATCH, BATCH)))
    squares = ((255 * recon - 255 * data) ** 2).sum() / 255
    return squares / BATCH + mi + 2.0 * tc + dkl


def original_antixk_tcvae(recons, input, mu, log_var, z):
    weights = column_weights(BATCH, BATCH / 0.02)
    mi, tc, dkl = (t.mean() for t in tcvae_terms(z, mu, log_var, weights, LATENTS))
    squares = ((recons - input) ** 2).sum()
    loss = squares / BATCH + mi + 6.0 * tc + dkl / 200  # the first of 200 steps
    return {"loss": loss, "Reconstruction_Loss": squares, "KLD": dkl, "TC_Loss": tc, "MI_Loss": mi}


def original_vamp(recon_x, x, mu, log_var, z, prior_mu, prior_log_var):
    """In the third of four epochs."""
    _, recon, _ = original_pythae(recon_x, x, mu, log_var, z)
    components = Normal(prior_mu, torch.exp(prior_log_var / 2)).log_prob(z[:, None])
    prior = components.sum(-1).exp().mean(1).log()
    kld = (Normal(mu, torch.exp(log_var / 2)).log_prob(z).sum(-1) - prior).mean()
    return recon + 0.75 * kld, recon, kld


def original_mix_logistic(params, x, *, half_bin=1 / 255, right_edge=0.999, guard=1e-5):
    """-log p of each pixel, as PixelCNN++ publishes it: params [B, 10 K, ...], x [B, 3, ...]."""
    k = params.shape[1] // 10
    logits, (mean, log_scale, raw) = params[:, :k], params[:, k:].unflatten(1, (3, 3, k)).unbind(2)
    log_scale, a, x = log_scale.clamp_min(-7.0), raw.tanh(), x.unsqueeze(2)
    green, blue = a[:, 0] * x[:, 0], a[:, 1] * x[:, 0] + a[:, 2] * x[:, 1]
    distance = x - torch.stack((mean[:, 0], mean[:, 1] + green, mean[:, 2] + blue), 1)
    inverse = torch.exp(-log_scale)
    upper, lower = (inverse * (distance + h) for h in (half_bin, -half_bin))
    difference, middle = torch.sigmoid(upper) - torch.sigmoid(lower), inverse * distance
    density = middle - log_scale - 2 * F.softplus(middle) + math.log(2 * half_bin)
    inside = torch.where(difference > guard, difference.clamp_min(1e-12).log(), density)
    inside = torch.where(x > right_edge, -F.softplus(lower), inside)
    log_p = torch.where(x < -0.999, upper - F.softplus(upper), inside).sum(1)
    return -torch.logsumexp(log_p + torch.log_softmax(logits, 1), 1)


def original_vdvae(x, l, low_bit=False):  # noqa: E741
    """Nats per dimension, of tensors [B, H, W, channels]."""
    half_bin = 1 / 31 if low_bit else 1 / 255
    nll = original_mix_logistic(l.movedim(-1, 1), x.movedim(-1, 1), half_bin=half_bin)
    return nll.sum((1, 2)) / x[0].numel()


def original_nvae(param, samples, bits=8):
    """log p of each pixel, of samples in [0, 1]."""
    half_bin = 1 / (2**bits - 1)
    return -original_mix_logistic(param, 2 * samples - 1, half_bin=half_bin, right_edge=0.99)


class OriginalDiagonalGaussian:
    """diffusers' posterior, an example at a time; noise as a call of torch.randn draws it."""

    def __init__(self, parameters, deterministic=False):
        channels = parameters.shape[1] // 2
        self.mean, free = (
            parameters.narrow(1, 0, channels),
            parameters.narrow(1, channels, channels),
        )
        free = torch.where(free > 20, torch.full_like(free, 20), free)
        self.logvar = torch.where(free < -30, torch.full_like(free, -30), free)
        self.std = torch.exp(self.logvar / 2) * (not deterministic)

    def sample(self, **options):
        shape, dtype = self.mean.shape, self.mean.dtype
        return self.mean + self.std * torch.randn(shape, dtype=dtype, **options)

    def terms(self, other=None):
        zero = torch.zeros_like(self.mean)
        p = Normal(zero, zero + 1) if other is None else Normal(other.mean, other.std)
        return torch.distributions.kl_divergence(Normal(self.mean, self.std), p)

    def kl(self, other=None):
        terms = [sum(channel.sum(0).sum(0) for channel in t) for t in self.terms(other)]
        return torch.stack(terms if self.mean.dim() == 5 else [t.sum() for t in terms])


def original_analytical_kl(mu1, mu2, logsigma1, logsigma2):
    q, p = Normal(mu1, torch.exp(logsigma1)), Normal(mu2, torch.exp(logsigma2))
    return torch.distributions.kl_divergence(q, p)


KINDS = {
    "parameters": lambda g: 3 * torch.randn(BATCH, 2 * LATENTS, 2, 4, generator=g, dtype=F64),
    "image": lambda g: torch.randn(BATCH, *IMAGE, generator=g, dtype=F64),
    "probabilities": lambda g: torch.rand(BATCH, *IMAGE, generator=g, dtype=F64),
    "flat": lambda g: torch.rand(BATCH, PIXELS, generator=g, dtype=F64),
    "latent": lambda g: torch.randn(BATCH, LATENTS, generator=g, dtype=F64),
    "samples": lambda g: torch.randn(BATCH, 2, LATENTS, generator=g, dtype=F64),
    "sample images": lambda g: torch.randn(BATCH, 2, PIXELS, generator=g, dtype=F64),
    "sample probabilities": lambda g: torch.rand(BATCH, 2, PIXELS, generator=g, dtype=F64),
    "components": lambda g: torch.randn(4, LATENTS, generator=g, dtype=F64),
    "last two": lambda g: torch.randn(BATCH, LATENTS, 2, generator=g, dtype=F64) / 2,
    "positive": lambda g: torch.randn(BATCH, LATENTS, generator=g, dtype=F64).exp(),
    "variances": lambda g: torch.randn(BATCH, *IMAGE, generator=g, dtype=F64).exp(),
    "rows": lambda g: torch.randn(BATCH, *IMAGE[:-1], generator=g, dtype=F64).exp(),
    "channels": lambda g: torch.randn(BATCH, 1, *IMAGE[1:], generator=g, dtype=F64).exp(),
    # Some under eps = 1e-6, and some 0.
    "clamped": lambda g: (
        torch.randn(BATCH, *IMAGE, generator=g, dtype=F64).clamp_min(0.0).mul(2e-6)
    ),
    "line": lambda g: torch.randn(1500, generator=g, dtype=F64),
    "unit line": lambda g: torch.rand(1500, generator=g, dtype=F64),
}


class Case(NamedTuple):
    """ours(*tensors, impl=...) and original(*tensors), on tensors of these kinds."""

    name: str
    kinds: tuple
    ours: Callable
    original: Callable

    def __repr__(self):
        return self.name

    def tensors(self, dtype, device="cpu", seed=0):
        generator = torch.Generator().manual_seed(seed)
        values = [KINDS[kind](generator).to(dtype) for kind in self.kinds]
        return [value.to(device).requires_grad_() for value in values]


def ours_bolts(x_hat, x, prior_mu, prior_std, mu, std, **options):
    return compat.bolts_vae_loss(x_hat, x, Normal(prior_mu, prior_std), Normal(mu, std), **options)


def ours_scvi_normals(m, std, pm, pstd, **options):
    q, p = Normal(m, std), Normal(pm, pstd)
    return compat.scvi_kl_local(q, kl_weight=0.4, pz_m=p, **options)


def ours_disvae(data, recon, mean, logvar, z, *, impl, **options):
    loss = compat.DisvaeBtcvaeLoss(100, impl=impl, **options)
    return loss(data, recon, (mean, logvar), True, None, z)


def ours_vamp(*tensors, impl):
    *given, prior_mu, prior_log_var = tensors
    prior = {"prior_mu": prior_mu, "prior_log_var": prior_log_var}
    return compat.pythae_vamp_loss(*given, 3, **prior, linear_scheduling_steps=4, impl=impl)


IMAGES = ("image", "image", "latent", "latent")
PROBABILITIES = ("probabilities", "probabilities", "latent", "latent", "latent")
LIBRARIES = [
    Case(
        "pytorch_examples",
        ("flat", "probabilities", "latent", "latent"),
        compat.pytorch_examples_vae_loss,
        original_pytorch_examples,
    ),
    Case("pythae_vae", (*IMAGES, "latent"), compat.pythae_vae_loss, original_pythae),
    Case(
        "pythae_vae_bce",
        PROBABILITIES,
        functools.partial(compat.pythae_vae_loss, reconstruction_loss="bce"),
        functools.partial(original_pythae, mode="bce"),
    ),
    Case(
        "pythae_beta_vae",
        (*IMAGES, "latent"),
        functools.partial(compat.pythae_beta_vae_loss, beta=2.5),
        functools.partial(original_pythae, beta=2.5),
    ),
    Case(
        "pythae_beta_vae_bce",
        PROBABILITIES,
        functools.partial(compat.pythae_beta_vae_loss, beta=2.5, reconstruction_loss="bce"),
        functools.partial(original_pythae, beta=2.5, mode="bce"),
    ),
    Case(
        "antixk_vanilla",
        IMAGES,
        functools.partial(compat.antixk_vanilla_vae_loss, M_N=0.3, batch_idx=1),
        original_antixk_vanilla,
    ),
    Case(
        "antixk_beta",
        IMAGES,
        lambda *t, impl: compat.AntixKBetaVAELoss(7.0, loss_type="H", impl=impl)(*t, M_N=0.3),
        original_antixk_beta,
    ),
    Case("bolts", ("image", "image", *("latent", "positive") * 2), ours_bolts, original_bolts),
    Case(
        "bolts_standard",
        ("image", "image", "latent", "positive"),
        lambda x_hat, x, mu, std, impl: compat.bolts_vae_loss(
            x_hat, x, None, Normal(mu, std), impl=impl
        ),
        original_bolts_standard,
    ),
    Case(
        "scvi",
        ("latent", "positive") * 2,
        lambda m, v, pm, pv, impl: compat.scvi_kl_local(m, v, 0.4, pz_m=pm, pz_v=pv, impl=impl),
        original_scvi,
    ),
    Case("scvi_standard", ("latent", "positive"), compat.scvi_kl_local, original_scvi_standard),
    Case("scvi_normals", ("latent", "positive") * 2, ours_scvi_normals, original_scvi_normals),
    Case(
        "pythae_iwae",
        ("sample images", "image", *("samples",) * 3),
        compat.pythae_iwae_loss,
        original_pythae_iwae,
    ),
    Case(
        "pythae_iwae_bce",
        ("sample probabilities", "probabilities", *("samples",) * 3),
        functools.partial(compat.pythae_iwae_loss, reconstruction_loss="bce"),
        functools.partial(original_pythae_iwae, mode="bce"),
    ),
    Case(
        "rtqichen",
        ("probabilities", "image", "latent", "last two"),
        lambda *t, impl: compat.rtqichen_tcvae_elbo(
            *t, 100, beta=6.0, lamb=0.25, tcvae=True, impl=impl
        ),
        original_rtqichen,
    ),
    Case(
        "pythae_tcvae",
        (*IMAGES, "latent"),
        lambda *t, impl: compat.pythae_beta_tcvae_loss(
            *t, 100, alpha=0.5, beta=6.0, gamma=2.0, impl=impl
        ),
        original_pythae_tcvae,
    ),
    Case(
        "disvae",
        PROBABILITIES,
        functools.partial(ours_disvae, alpha=6.0, beta=2.0),
        original_disvae,
    ),
    Case(
        "disvae_sums",
        (*IMAGES, "latent"),
        functools.partial(ours_disvae, is_mss=False, beta=2.0, rec_dist="gaussian"),
        original_disvae_sums,
    ),
    Case(
        "antixk_tcvae",
        (*IMAGES, "latent"),
        lambda *t, impl: compat.AntixKBetaTCVAELoss(impl=impl)(*t, M_N=0.02, batch_idx=1),
        original_antixk_tcvae,
    ),
    Case("pythae_vamp", (*IMAGES, "latent", "components", "components"), ours_vamp, original_vamp),
]

# Posteriors as networks put them out, without a loss of an image.
POSTERIORS = [
    Case(
        "diagonal_gaussian",
        ("parameters",),
        lambda p, impl: compat.DiagonalGaussianDistribution(p, impl=impl).kl(),
        lambda p: OriginalDiagonalGaussian(p).kl(),
    ),
    Case(
        "diagonal_gaussian_other",
        ("parameters",) * 2,
        lambda p, other, impl: compat.DiagonalGaussianDistribution(p, impl=impl).kl(
            compat.DiagonalGaussianDistribution(other)
        ),
        lambda p, other: OriginalDiagonalGaussian(p).kl(OriginalDiagonalGaussian(other)),
    ),
    Case("vdvae", ("image",) * 4, compat.gaussian_analytical_kl, original_analytical_kl),
]


def functional(name, kinds, **options):
    label = "-".join([name, kinds[-1], *(str(v) for v in options.values())])
    ours = functools.partial(getattr(compat, name), **options)
    return Case(label, kinds, ours, functools.partial(getattr(F, name), **options))


PROBABILITY_LOSSES = [
    functional("binary_cross_entropy", (kind, kind), reduction=reduction)
    for kind in ("probabilities", "unit line")
    for reduction in ("mean", "sum")
]
FUSED = [
    *(
        functional(name, (kind, kind), reduction=reduction)
        for name in ("mse_loss", "binary_cross_entropy_with_logits")
        for kind in ("image", "line")
        for reduction in ("mean", "sum")
    ),
    *(
        functional("gaussian_nll_loss", ("image", "image", var), full=full, reduction=reduction)
        for var in ("variances", "rows", "channels", "clamped")
        for full, reduction in ((False, "mean"), (True, "sum"))
    ),
    functional("gaussian_nll_loss", ("line", "line"), var=1.7, reduction="sum"),
    functional("gaussian_nll_loss", ("image", "image"), var=1e-9, full=True, eps=0.01),
]
CASES = LIBRARIES + POSTERIORS + PROBABILITY_LOSSES + FUSED


def named(result):
    """Every tensor in a result, by name."""
    if isinstance(result, torch.Tensor):
        return {"loss": result}
    if isinstance(result, tuple):
        return {f"{i}.{n}": t for i, r in enumerate(result) for n, t in named(r).items()}
    return dict(result)


def assert_rounding(actual, expected, dtype, what):
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    size = expected.abs().max().item()
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=TOLERANCE[dtype] * size, msg=lambda m: f"{what}: {m}"
    )


def compare(ours, original, ours_leaves, leaves, dtype):
    """Values, which of them have gradients, and the gradients of each."""
    ours, original = named(ours), named(original)
    assert list(ours) == list(original)
    for name, value in original.items():
        assert_rounding(ours[name].detach(), value.detach(), dtype, name)
        assert ours[name].requires_grad == value.requires_grad, name
        if not value.requires_grad:
            continue
        upstream = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).view(value.shape)
        expected = torch.autograd.grad(
            value, leaves, upstream, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        actual = torch.autograd.grad(
            ours[name],
            ours_leaves,
            upstream.to(ours[name].device),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_rounding(a.cpu(), e, dtype, f"gradient of {name} in argument {i}")


def extra(kind, seed=3):
    return KINDS[kind](torch.Generator().manual_seed(seed))


ELEMENTWISE = ["mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"]


def parameters(function):
    return dict(inspect.signature(function).parameters)
