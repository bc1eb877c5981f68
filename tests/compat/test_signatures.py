"""Names and arguments are the originals'."""

import pytest
import torch.nn.functional as F

import fused_elbo
from fused_elbo import compat
from helpers.originals import ELEMENTWISE, parameters


@pytest.mark.parametrize("name", [*ELEMENTWISE, "gaussian_nll_loss"])
def test_signature_is_torchs(name):
    ours, original = parameters(getattr(compat, name)), parameters(getattr(F, name))
    impl = ours.pop("impl")
    assert impl.kind is impl.KEYWORD_ONLY
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in original.values()
    ]


ARGUMENTS = {
    "pytorch_examples_vae_loss": ["recon_x", "x", "mu", "logvar"],
    "pythae_vae_loss": ["recon_x", "x", "mu", "log_var", "z"],
    "pythae_beta_vae_loss": ["recon_x", "x", "mu", "log_var", "z"],
    "pythae_iwae_loss": ["recon_x", "x", "mu", "log_var", "z"],
    "rtqichen_tcvae_elbo": ["x", "x_params", "zs", "z_params", "dataset_size"],
    "pythae_beta_tcvae_loss": ["recon_x", "x", "mu", "log_var", "z", "dataset_size"],
    "pythae_vamp_loss": ["recon_x", "x", "mu", "log_var", "z", "epoch"],
    "DisvaeBtcvaeLoss": ["n_data", "alpha", "beta", "gamma", "is_mss"],
    "AntixKBetaTCVAELoss": ["anneal_steps", "alpha", "beta", "gamma"],
    "vdvae_discretized_mix_logistic_loss": ["x", "l", "low_bit"],
    "nvae_disc_mix_logistic_log_prob": ["param", "samples", "num_mix", "num_bits"],
    "antixk_vanilla_vae_loss": ["recons", "input", "mu", "log_var"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_the_originals(name):
    """All arguments that are ours can be given by name only."""
    ours = parameters(getattr(compat, name)).values()
    positional = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ARGUMENTS[name]


def test_names():
    assert all(callable(getattr(compat, name)) for name in compat.__all__)
    assert not hasattr(fused_elbo, "effective_beta")  # import fused_elbo brings none of it
