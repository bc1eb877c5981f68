"""A call of every public function and of every drop-in, on any device: {name: function}."""

import torch
from torch.distributions import Normal

import fused_elbo
from fused_elbo import compat

BATCH, LATENTS, PIXELS, SAMPLES, MIXTURES = 8, 4, 12, 3, 10
F = fused_elbo


def normal(mu, std):
    """torch.distributions looks at the values of what it validates: a caller's own wait."""
    return Normal(mu, std, validate_args=False)


def public_calls(device, requires_grad=False):
    """Each without arguments; what it returns has tensors, in tuples and dictionaries or bare."""

    def t(*shape, of=torch.rand):
        return of(shape, device=device).requires_grad_(requires_grad)

    mu, logvar, z, other, more = (t(BATCH, LATENTS) for _ in range(5))
    recon, learned = t(BATCH, PIXELS), t(BATCH, PIXELS)
    x = torch.rand(BATCH, PIXELS, device=device)
    classes = torch.zeros(BATCH, dtype=torch.int64, device=device)
    log_ratio, recons = t(SAMPLES, BATCH), t(SAMPLES, BATCH, PIXELS)
    images, params = torch.rand(BATCH, 3, 2, 2, device=device), t(BATCH, 10 * MIXTURES, 2, 2)
    probabilities = t(BATCH, PIXELS)
    decoder = torch.nn.Linear(LATENTS, PIXELS, device=device).requires_grad_(requires_grad)
    pair, size = (mu, logvar), 100
    named = {
        "gaussian_log_prob": lambda: F.gaussian_log_prob(z, *pair),
        "gaussian_kl": lambda: (F.gaussian_kl(*pair), F.gaussian_kl(*pair, z, other)),
        "gaussian_rsample": lambda: (F.gaussian_rsample(*pair), F.gaussian_rsample(*pair, 2)),
        "rsample_kl": lambda: (F.rsample_kl(*pair), F.rsample_kl(*pair, z, other)),
        "rsample_kl_log_std": lambda: F.rsample_kl_log_std(*pair, z, other, soft_clamp=5.0),
        "balanced_kl": lambda: F.balanced_kl(*pair, z, other),
        "gaussian_nll": lambda: (F.gaussian_nll(recon, x, 0.5), F.gaussian_nll(recon, x, learned)),
        "bernoulli_nll": lambda: F.bernoulli_nll(recon, x),
        "laplace_nll": lambda: F.laplace_nll(recon, x, learned),
        "poisson_nll": lambda: F.poisson_nll(recon, x),
        "negative_binomial_nll": lambda: (
            F.negative_binomial_nll(recon, x, learned[0]),
            F.negative_binomial_nll(recon, x, learned, zero_logits=learned),
        ),
        "softmax_negative_binomial_nll": lambda: F.softmax_negative_binomial_nll(
            recon, x, learned[0], learned[:, 0], reduction="mean"
        ),
        "multinomial_nll": lambda: F.multinomial_nll(recon, x),
        "categorical_nll": lambda: F.categorical_nll(recon, classes),
        "rsample_log_ratio": lambda: (
            F.rsample_log_ratio(*pair, SAMPLES),
            F.rsample_log_ratio(*pair, 2, z, other, gradient="path", antithetic=True),
        ),
        "kl_decomposition": lambda: (
            F.kl_decomposition(z, *pair, size),
            F.kl_decomposition(z, *pair, size, estimator="weighted"),
            F.kl_decomposition(z, *pair, estimator="aggregate", dataset=(other, more)),
        ),
        "elbo_tc_loss": lambda: (
            F.elbo_tc_loss(recon, x, z, *pair, size),
            F.elbo_tc_loss(recon, x, z, *pair, size, estimator="weighted"),
        ),
        "mixture_log_prob": lambda: F.mixture_log_prob(z, *pair),
        "discretized_mix_logistic_nll": lambda: F.discretized_mix_logistic_nll(
            params, images, MIXTURES
        ),
        "importance_weights": lambda: [
            F.importance_weights(log_ratio, alpha) for alpha in (0.0, 0.5, 1.0)
        ],
        "iwae_loss": lambda: F.iwae_loss(recons, x, log_ratio),
        "chunked_iwae_loss": lambda: F.chunked_iwae_loss(decoder, x, *pair, 4, chunk_size=2),
        "elbo_loss": lambda: (
            F.elbo_loss(recon, x, *pair),
            F.elbo_loss(recon, x, *pair, likelihood="gaussian", recon_logvar=learned),
            F.elbo_loss(recon, classes, *pair, likelihood="categorical", reduction="none"),
            F.elbo_loss(recon, x, kl=log_ratio[0], beta=2.0, return_parts=True),
        ),
        "ELBOLoss": lambda: F.ELBOLoss()(recon, x, *pair),
    }
    others = {
        "AntixKBetaTCVAELoss": lambda: antixk_tcvae(recon, x, *pair, z, M_N=0.1),
        "AntixKBetaVAELoss": lambda: antixk_beta(recon, x, *pair, M_N=0.1),
        "DiagonalGaussianDistribution": lambda: diffusers(params),
        "DisvaeBtcvaeLoss": lambda: [
            compat.DisvaeBtcvaeLoss(size, is_mss=mss)(
                probabilities, x, pair, True, None, latent_sample=z
            )
            for mss in (True, False)
        ],
        "antixk_vanilla_vae_loss": lambda: compat.antixk_vanilla_vae_loss(recon, x, *pair, M_N=0.1),
        "binary_cross_entropy": lambda: compat.binary_cross_entropy(probabilities, x),
        "binary_cross_entropy_with_logits": lambda: compat.binary_cross_entropy_with_logits(
            recon, x
        ),
        "bolts_vae_loss": lambda: compat.bolts_vae_loss(recon, x, None, normal(mu, logvar)),
        "draw_gaussian_diag_samples": lambda: compat.draw_gaussian_diag_samples(*pair),
        "gaussian_analytical_kl": lambda: compat.gaussian_analytical_kl(*pair, z, other),
        "gaussian_nll_loss": lambda: compat.gaussian_nll_loss(recon, x, learned),
        "mse_loss": lambda: compat.mse_loss(recon, x),
        "nvae_disc_mix_logistic_log_prob": lambda: compat.nvae_disc_mix_logistic_log_prob(
            params, images
        ),
        "pythae_beta_tcvae_loss": lambda: [
            compat.pythae_beta_tcvae_loss(recon, x, *pair, z, size, use_mss=mss)
            for mss in (True, False)
        ],
        "pythae_beta_vae_loss": lambda: compat.pythae_beta_vae_loss(recon, x, *pair, z, beta=2.0),
        "pythae_iwae_loss": lambda: compat.pythae_iwae_loss(
            recons.transpose(0, 1),
            x,
            *(s.expand(SAMPLES, -1, -1).transpose(0, 1) for s in (*pair, z)),
        ),
        "pythae_vae_loss": lambda: compat.pythae_vae_loss(recon, x, *pair, z),
        "pythae_vamp_loss": lambda: compat.pythae_vamp_loss(
            recon, x, *pair, z, 3, prior_mu=other, prior_log_var=more, linear_scheduling_steps=9
        ),
        "pytorch_examples_vae_loss": lambda: compat.pytorch_examples_vae_loss(
            probabilities, x, *pair
        ),
        "rtqichen_tcvae_elbo": lambda: [
            compat.rtqichen_tcvae_elbo(x, recon, z, torch.stack(pair, -1), size, beta=2.0, mss=mss)
            for mss in (True, False)
        ],
        "scvi_kl_local": lambda: compat.scvi_kl_local(mu, logvar, 0.5, pz_m=z, pz_v=other),
        "scvi_log_nb_positive": lambda: compat.scvi_log_nb_positive(x, recon, learned[0]),
        "scvi_log_zinb_positive": lambda: compat.scvi_log_zinb_positive(
            x, recon, learned[0], recon
        ),
        "scvi_log_mixture_nb": lambda: compat.scvi_log_mixture_nb(
            x, recon, learned, learned[0], None, recon
        ),
        "scvi_peakvi_reconstruction_loss": lambda: compat.scvi_peakvi_reconstruction_loss(
            probabilities, 1, 1, x
        ),
        "vdvae_discretized_mix_logistic_loss": lambda: compat.vdvae_discretized_mix_logistic_loss(
            images.permute(0, 2, 3, 1), params.permute(0, 2, 3, 1)
        ),
    }
    antixk_tcvae, antixk_beta = compat.AntixKBetaTCVAELoss(), compat.AntixKBetaVAELoss()
    return named | {f"compat.{name}": call for name, call in others.items()}


def diffusers(parameters):
    posterior = compat.DiagonalGaussianDistribution(parameters)
    return posterior.sample(), posterior.kl(), posterior.nll(posterior.mode()), posterior.mode()
