"""One-line replacements for the losses of well-known VAE code and of torch.nn.functional.

``from fused_elbo.compat import pytorch_examples_vae_loss as loss_function``, and the like.
"""

from .estimators.compat.antixk import (
    AntixKBetaTCVAELoss,
    AntixKBetaVAELoss,
    antixk_vanilla_vae_loss,
)
from .estimators.compat.bolts import bolts_vae_loss
from .estimators.compat.diffusers import DiagonalGaussianDistribution
from .estimators.compat.disvae import DisvaeBtcvaeLoss
from .estimators.compat.effective_beta import effective_beta, effective_beta_of
from .estimators.compat.nvae import nvae_disc_mix_logistic_log_prob
from .estimators.compat.pythae import (
    pythae_beta_tcvae_loss,
    pythae_beta_vae_loss,
    pythae_iwae_loss,
    pythae_vae_loss,
    pythae_vamp_loss,
)
from .estimators.compat.pytorch_examples import pytorch_examples_vae_loss
from .estimators.compat.rtqichen import rtqichen_tcvae_elbo
from .estimators.compat.scvi import (
    scvi_kl_local,
    scvi_log_mixture_nb,
    scvi_log_nb_positive,
    scvi_log_zinb_positive,
    scvi_peakvi_reconstruction_loss,
)
from .estimators.compat.torch_nn import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    gaussian_nll_loss,
    mse_loss,
)
from .estimators.compat.vdvae import (
    draw_gaussian_diag_samples,
    gaussian_analytical_kl,
    vdvae_discretized_mix_logistic_loss,
)

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
    "scvi_log_mixture_nb",
    "scvi_log_nb_positive",
    "scvi_log_zinb_positive",
    "scvi_peakvi_reconstruction_loss",
    "vdvae_discretized_mix_logistic_loss",
]
