"""effective_beta: gradients of a loss are those of the ELBO with that beta, but for one factor."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

import fused_elbo
from fused_elbo import compat
from helpers.originals import (
    BATCH,
    F64,
    LATENTS,
    LIBRARIES,
    PIXELS,
    Case,
    assert_rounding,
    extra,
    kl_to_standard,
    named,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_gradient_of_elbo(loss, leaves, recon, x, kl, beta, likelihood):
    """d loss = factor * d elbo_loss(beta), the factor from the decoder's gradient."""
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
    elbo = fused_elbo.elbo_loss(recon, x, kl=kl, beta=beta, **likelihood)
    elbo_gradients = torch.autograd.grad(elbo, leaves)
    factor = (gradients[0] * elbo_gradients[0]).sum() / elbo_gradients[0].square().sum()
    for actual, expected in zip(gradients, elbo_gradients, strict=True):
        assert_rounding(actual, factor * expected, F64, "gradient")


def reduce(terms, reduction):
    """[B, n] by the names that effective_beta has."""
    if reduction == "batchmean":
        return terms.sum() / len(terms)
    return getattr(terms, reduction)()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "mse"])
@pytest.mark.parametrize(
    ("recon_reduction", "kl_reduction"),
    list(itertools.product(("sum", "batchmean", "mean"), repeat=2)),
)
def test_effective_beta(likelihood, recon_reduction, kl_reduction):
    recon, mu, logvar = leaves = Case("", ("flat", "latent", "latent"), None, None).tensors(F64)
    x, variance = extra("flat"), 0.2 if likelihood == "mse" else 1.0
    options = {"likelihood": "bernoulli"}
    if likelihood == "bernoulli":
        terms = F.binary_cross_entropy_with_logits(recon, x, reduction="none")
    elif likelihood == "gaussian":
        variances = extra("flat", seed=4) + 0.1
        terms = F.gaussian_nll_loss(recon, x, variances, reduction="none")
        options = {"likelihood": "gaussian", "recon_logvar": variances.log()}
    else:
        terms = (recon - x) ** 2
        options = {"likelihood": "gaussian", "recon_logvar": math.log(variance)}
    kl_terms = 0.5 * (mu**2 + logvar.exp() - 1 - logvar)
    loss = 3.0 * reduce(terms, recon_reduction) + 0.7 * reduce(kl_terms, kl_reduction)
    beta = compat.effective_beta(
        likelihood=likelihood,
        recon_reduction=recon_reduction,
        kl_reduction=kl_reduction,
        pixels=PIXELS,
        latents=LATENTS,
        batch=BATCH,
        recon_weight=3.0,
        kl_weight=0.7,
        variance=variance,
    )
    assert_gradient_of_elbo(loss, leaves, recon, x, kl_terms.sum(1), beta, options)


MSE = {"likelihood": "mse", "recon_reduction": "mean"}
EFFECTIVE = {
    "pytorch_examples": {
        "likelihood": "bernoulli",
        "recon_reduction": "sum",
        "kl_reduction": "sum",
    },
    "pythae_vae": {"likelihood": "mse", "recon_weight": 0.5},
    "pythae_vae_bce": {"likelihood": "bernoulli"},
    "pythae_beta_vae": {"likelihood": "mse", "recon_weight": 0.5, "kl_weight": 2.5},
    "antixk_vanilla": MSE | {"pixels": PIXELS, "kl_weight": 0.3},
    "antixk_beta": MSE | {"pixels": PIXELS, "kl_weight": 7.0 * 0.3},
    "bolts_standard": MSE
    | {"pixels": PIXELS, "kl_reduction": "mean", "latents": LATENTS, "kl_weight": 0.1},
}
BETAS = {
    "pytorch_examples": 1.0,
    "pythae_vae": 1.0,
    "pythae_vae_bce": 1.0,
    "pythae_beta_vae": 2.5,
    "antixk_vanilla": 0.3 * PIXELS / 2,
    "antixk_beta": 7.0 * 0.3 * PIXELS / 2,
    "bolts_standard": 0.1 * PIXELS / (2 * LATENTS),
}


@pytest.mark.parametrize("name", EFFECTIVE)
def test_effective_beta_of_the_libraries(name):
    """The originals' gradients, and the numbers that the docstrings give."""
    case = next(case for case in LIBRARIES if case.name == name)
    leaves = case.tensors(F64)
    beta = compat.effective_beta(**EFFECTIVE[name])
    assert beta == pytest.approx(BETAS[name], rel=1e-14)
    loss = next(iter(named(case.original(*leaves)).values()))
    recon, x, mu, last = leaves[:4]
    x = x.detach().view(recon.shape)
    logvar = 2 * last.log() if "bolts" in name else last
    likelihood = {"likelihood": "gaussian"}
    if EFFECTIVE[name]["likelihood"] == "bernoulli":
        recon, likelihood = torch.logit(recon), {"likelihood": "bernoulli"}
    kl = kl_to_standard(mu, logvar)
    assert_gradient_of_elbo(loss, [leaves[0], mu, last], recon, x, kl, beta, likelihood)


NAMED = {
    "pytorch_examples": ("pytorch_examples_vae_loss", {}),
    "pythae_vae": ("pythae_vae_loss", {}),
    "pythae_vae_bce": ("pythae_vae_loss", {"reconstruction_loss": "bce"}),
    "pythae_beta_vae": ("pythae_beta_vae_loss", {"beta": 2.5}),
    "antixk_vanilla": ("antixk_vanilla_vae_loss", {"M_N": 0.3}),
    "antixk_beta": ("AntixKBetaVAELoss", {"beta": 7.0, "loss_type": "H", "M_N": 0.3}),
    "bolts_standard": ("bolts_vae_loss", {}),  # with its default, kl_coeff = 0.1
}


@pytest.mark.parametrize("name", NAMED)
def test_effective_beta_by_name(name):
    loss, options = NAMED[name]
    beta = compat.effective_beta_of(loss, pixels=PIXELS, latents=LATENTS, **options)
    assert beta == pytest.approx(BETAS[name], rel=1e-14)


# (options, beta, the loss with all three weights alike): the terms' sum is log q(z|x) - log p(z).
TOTAL_CORRELATION = {
    "rtqichen_tcvae_elbo": (
        {"beta": 2.5},
        2.5,
        lambda recon, x, mu, logvar, z, beta: (
            -compat.rtqichen_tcvae_elbo(
                x, recon, z, torch.stack([mu, 0.5 * logvar], -1), 50, beta=beta
            )[0]
        ),
    ),
    "pythae_beta_tcvae_loss": (
        {"beta": 2.5},
        2.5,
        lambda *t, beta: compat.pythae_beta_tcvae_loss(*t, 50, alpha=beta, beta=beta, gamma=beta)[
            0
        ],
    ),
    "DisvaeBtcvaeLoss": (
        {"beta": 2.5, "rec_dist": "gaussian"},
        2.5 / 510,
        lambda recon, x, mu, logvar, z, beta, rec_dist: compat.DisvaeBtcvaeLoss(
            50, beta, beta, beta, rec_dist=rec_dist
        )(x, recon, (mu, logvar), True, None, z),
    ),
    "AntixKBetaTCVAELoss": (
        {"beta": 2.5},
        1.25,
        lambda *t, beta: compat.AntixKBetaTCVAELoss(1, beta, beta, beta)(*t, M_N=0.1)["loss"],
    ),
}


@pytest.mark.parametrize("name", TOTAL_CORRELATION)
def test_effective_beta_of_total_correlation(name):
    options, expected, loss = TOTAL_CORRELATION[name]
    beta = compat.effective_beta_of(name, **options)
    assert beta == pytest.approx(expected, rel=1e-14)
    kinds = "image", "probabilities", "latent", "latent", "latent"
    recon, x, mu, logvar, z = leaves = Case("", kinds, None, None).tensors(F64)
    kl = Normal(mu, torch.exp(0.5 * logvar)).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    likelihood = {"likelihood": "bernoulli" if name == "rtqichen_tcvae_elbo" else "gaussian"}
    value = loss(recon, x.detach(), mu, logvar, z, **options).sum()
    # Saturated at 1e-8, rtqichen's likelihood has another gradient in the eighth digit.
    tolerance = 1e-6 if name == "rtqichen_tcvae_elbo" else 1e-11
    gradients = torch.autograd.grad(value, [recon, mu, logvar, z])
    elbo = fused_elbo.elbo_loss(recon, x.detach(), kl=kl.sum(-1), beta=beta, **likelihood)
    expected = torch.autograd.grad(elbo, [leaves[0], *leaves[2:]])
    factor = (gradients[0] * expected[0]).sum() / expected[0].square().sum()
    for actual, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, factor * e, rtol=tolerance, atol=tolerance)


def test_effective_beta_by_name_has_every_loss_with_its_defaults():
    words = "vae", "vamp", "scvi"
    losses = {name for name in compat.__all__ if any(word in name.lower() for word in words)}
    named = {name for name, _ in NAMED.values()} | set(TOTAL_CORRELATION)
    likelihoods = {"vdvae_discretized_mix_logistic_loss", "nvae_disc_mix_logistic_log_prob"}
    likelihoods |= {"scvi_log_nb_positive", "scvi_log_zinb_positive", "scvi_log_mixture_nb"}
    likelihoods |= {"scvi_peakvi_reconstruction_loss"}
    assert losses - likelihoods == named | {"pythae_vamp_loss", "scvi_kl_local"}
    defaults = {"rtqichen_tcvae_elbo": 1, "DisvaeBtcvaeLoss": 6, "AntixKBetaTCVAELoss": 3}
    for name, beta in {**defaults, "pythae_vamp_loss": 1}.items():
        assert compat.effective_beta_of(name) == beta
    assert compat.effective_beta_of("scvi_kl_local") == 1.0
    assert compat.effective_beta_of("scvi_kl_local", kl_weight=0.2) == 0.2
    assert compat.effective_beta_of("pythae_beta_vae_loss") == 1.0
    # Type B is the class's default, with a gamma of 1000.
    type_b = compat.effective_beta_of("AntixKBetaVAELoss", M_N=0.3, pixels=PIXELS)
    assert type_b == pytest.approx(1000 * 0.3 * PIXELS / 2)
    vanilla = {"M_N": 0.00025, "pixels": 3 * 64 * 64}
    assert compat.effective_beta_of("antixk_vanilla_vae_loss", **vanilla) == pytest.approx(1.536)
    half = compat.effective_beta_of("antixk_vanilla_vae_loss", variance=2.0, **vanilla)
    assert half == pytest.approx(0.768)


@pytest.mark.parametrize(
    ("loss", "options", "error", "match"),
    [
        ("bolts", {}, ValueError, "loss must be one of 'pytorch_examples_vae_loss'.*got 'bolts'"),
        ("bolts_vae_loss", {"latents": 2}, ValueError, "pixels is needed"),
        ("bolts_vae_loss", {"beta": 2.0}, TypeError, "bolts_vae_loss has no option beta"),
        ("antixk_vanilla_vae_loss", {"pixels": 4}, TypeError, "needs M_N: it has no default"),
        ("AntixKBetaVAELoss", {"M_N": 1.0, "loss_type": "C"}, ValueError, "loss_type.*'H', 'B'"),
        ("pythae_vae_loss", {"reconstruction_loss": "l1"}, ValueError, "'mse', 'bce'"),
        (
            "scvi_kl_local",
            {"variance": 2.0},
            ValueError,
            "variance applies to squared-error",
        ),
    ],
    ids=str,
)
def test_effective_beta_by_name_bad_arguments(loss, options, error, match):
    with pytest.raises(error, match=match):
        compat.effective_beta_of(loss, **options)


def test_effective_beta_of_a_capacity():
    """Type B pushes the KL to its capacity with gamma's weight: up from below, down from above."""
    beta = compat.effective_beta(**MSE, pixels=PIXELS, kl_weight=1000.0 * 0.3)
    for most, sign in ((0.0, 1), (1e6, -1)):
        leaves = LIBRARIES[5].tensors(F64)
        loss_function = compat.AntixKBetaVAELoss(max_capacity=most, Capacity_max_iter=1)
        loss = loss_function(*leaves, M_N=0.3)["loss"]
        recon, x, mu, log_var = leaves
        kl = kl_to_standard(mu, log_var)
        options = {"likelihood": "gaussian"}
        gradients = [recon, mu, log_var]
        assert_gradient_of_elbo(loss.sum(), gradients, recon, x.detach(), kl, sign * beta, options)


def test_effective_beta_of_configurations_in_the_wild():
    vanilla = compat.effective_beta(**MSE, pixels=3 * 64 * 64, kl_weight=0.00025)
    assert vanilla == pytest.approx(1.536)
    bolts = compat.effective_beta(
        **MSE, pixels=3 * 32 * 32, kl_reduction="mean", latents=256, kl_weight=0.1
    )
    assert bolts == pytest.approx(0.6)
    # The variance at which the same loss has beta = 1 is beta at variance 1.
    assert compat.effective_beta(
        **MSE, pixels=3 * 64 * 64, kl_weight=0.00025, variance=vanilla
    ) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ({"likelihood": "bce"}, ValueError, "'bernoulli', 'gaussian', 'mse'"),
        ({"recon_reduction": "none"}, ValueError, "'sum', 'batchmean', 'mean'"),
        ({"kl_reduction": "none"}, ValueError, "'sum', 'batchmean', 'mean'"),
        ({"recon_reduction": "mean"}, ValueError, "pixels is needed for recon_reduction"),
        ({"kl_reduction": "mean"}, ValueError, "latents is needed for kl_reduction"),
        ({"kl_reduction": "sum"}, ValueError, "batch is needed"),
        ({"recon_reduction": "sum"}, ValueError, "batch is needed"),
        ({"kl_reduction": "mean", "latents": 2.0}, TypeError, "latents must be an int"),
        ({"recon_reduction": "mean", "pixels": 0}, ValueError, "pixels must be at least 1"),
        ({"recon_weight": 0.0}, ValueError, "must be positive"),
        ({"recon_weight": -1.0}, ValueError, "recon_weight must be a number in"),
        ({"variance": 0.0}, ValueError, "must be positive"),
        ({"likelihood": "gaussian", "variance": 2.0}, ValueError, "variance is an argument of"),
        ({"kl_weight": math.nan}, ValueError, "kl_weight must be a number"),
    ],
    ids=str,
)
def test_effective_beta_bad_arguments(wrong, error, match):
    with pytest.raises(error, match=match):
        compat.effective_beta(**{"likelihood": "mse"} | wrong)
