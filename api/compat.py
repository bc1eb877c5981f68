"""One-line replacements for the losses of well-known VAE code and of torch.nn.functional.

``from fused_elbo.compat import pytorch_examples_vae_loss as loss_function``, and the like.
"""

from .estimators.compat.beta import effective_beta, effective_beta_of
from .estimators.compat.discretized import (
    nvae_disc_mix_logistic_log_prob,
    vdvae_discretized_mix_logistic_loss,
)
from .estimators.compat.latent_diffusion import DiagonalGaussianDistribution
from .estimators.compat.nn_functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    gaussian_nll_loss,
    mse_loss,
)
from .estimators.compat.tcvae import (
    AntixKBetaTCVAELoss,
    DisvaeBtcvaeLoss,
    pythae_beta_tcvae_loss,
    pythae_vamp_loss,
    rtqichen_tcvae_elbo,
)
from .estimators.compat.vae import (
    AntixKBetaVAELoss,
    antixk_vanilla_vae_loss,
    bolts_vae_loss,
    pythae_beta_vae_loss,
    pythae_iwae_loss,
    pythae_vae_loss,
    pytorch_examples_vae_loss,
    scvi_kl_local,
)
from .estimators.compat.vdvae import draw_gaussian_diag_samples, gaussian_analytical_kl

__all__ = [
    "AntixKBetaTCVAELoss",
    "AntixKBetaVAELoss",
    "DiagonalGaussianDistribution",
    "DisvaeBtcvaeLoss",
    "antixk_vanilla_vae_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "bolts_vae_loss",
    "draw_gaussian_diag_samples",
    "effective_beta",
    "effective_beta_of",
    "gaussian_analytical_kl",
    "gaussian_nll_loss",
    "mse_loss",
    "nvae_disc_mix_logistic_log_prob",
    "pythae_beta_tcvae_loss",
    "pythae_beta_vae_loss",
    "pythae_iwae_loss",
    "pythae_vae_loss",
    "pythae_vamp_loss",
    "pytorch_examples_vae_loss",
    "rtqichen_tcvae_elbo",
    "scvi_kl_local",
    "vdvae_discretized_mix_logistic_loss",
]
