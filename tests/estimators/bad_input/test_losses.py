"""Bad input of the losses."""

import pytest
import torch

from helpers.bad_input import BOOL, I64, IMPLS, META, bad, check, t

TABLE = {
    "loss shapes": bad(
        "elbo_loss", t(3, 4), t(3, 5), kl=t(3), says=["equal shapes", "recon (3, 4)", "x (3, 5)"]
    ),
    "loss kl shape": bad("elbo_loss", t(3, 4), t(3, 4), kl=t(4), says=["kl (4,)", "x (3, 4)"]),
    "loss kl scalar": bad("elbo_loss", t(3, 4), t(3, 4), kl=t(), says=["kl ()", "x (3, 4)"]),
    "loss mu of another batch": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        t(2, 5),
        t(2, 5),
        says=["mu (2, 5)", "logvar (2, 5)", "x (3, 4)"],
    ),
    "loss latents": bad(
        "elbo_loss", t(3, 4), t(3, 4), t(3, 5), t(3, 6), says=["mu (3, 5)", "logvar (3, 6)"]
    ),
    "loss prior shapes": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        t(3, 5),
        t(3, 5),
        prior_mu=t(4),
        says=["prior_mu (4,)", "mu (3, 5)"],
    ),
    "loss recon_logvar shapes": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=t(3),
        likelihood="gaussian",
        recon_logvar=t(3),
        says=["recon_logvar (3,)", "(3, 4)"],
    ),
    "loss D=0": bad(
        "elbo_loss", t(3, 4), t(3, 4), t(3, 0), t(3, 0), says=["mu (3, 0)", "logvar (3, 0)"]
    ),
    "loss empty latent event": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        t(3, 0, 2),
        t(3, 0, 2),
        says=["mu (3, 0, 2)", "logvar (3, 0, 2)"],
    ),
    "loss of a vector": bad("elbo_loss", t(3), t(3), kl=t(3), says=["recon (3,)"]),
    "loss mu of a vector": bad(
        "elbo_loss", t(3, 4), t(3, 4), t(3), t(3), says=["mu (3,)", "logvar (3,)", "x (3, 4)"]
    ),
    "nested kl": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=torch.nested.nested_tensor([t(3), t(2)]),
        error=TypeError,
        says=["kl must be dense", "nested"],
    ),
    "bool x": bad(
        "elbo_loss",
        t(3, 4),
        torch.ones(3, 4, dtype=BOOL),
        kl=t(3),
        likelihood="gaussian",
        error=TypeError,
        says=["x", "'gaussian'", "bool", "x.float()"],
    ),
    "grey values in the loss": bad(
        "elbo_loss",
        t(3, 4),
        torch.ones(3, 4, dtype=I64),
        kl=t(3),
        error=TypeError,
        says=["x of a Bernoulli", "torch.int64", "x.float() / 255", "x.bool()"],
    ),
    "integer kl": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=torch.ones(3, dtype=I64),
        error=TypeError,
        says=["kl", "torch.int64"],
    ),
    "kl is a float": bad(
        "elbo_loss", t(3, 4), t(3, 4), kl=0.5, error=TypeError, says=["kl", "torch.Tensor", "float"]
    ),
    "loss recon_logvar is a string": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=t(3),
        likelihood="gaussian",
        recon_logvar="0",
        error=TypeError,
        says=["recon_logvar", "number", "str"],
    ),
    "beta is a string": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=t(3),
        beta="1",
        error=TypeError,
        says=["beta", "number", "str"],
    ),
    "beta is a bool": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=t(3),
        beta=True,
        error=TypeError,
        says=["beta", "number", "bool"],
    ),
    "loss devices": bad(
        "elbo_loss", t(3, 4), t(3, 4), kl=t(3).to(META), says=["x and kl", "device", "meta"]
    ),
    "loss latents on another device": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        t(3, 2).to(META),
        t(3, 2).to(META),
        says=["x and mu", "device", "meta"],
    ),
    # Options.
    "likelihood": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=t(3),
        likelihood="cauchy",
        says=["likelihood", "'bernoulli'", "'gaussian'", "'cauchy'"],
    ),
    "reduction": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=t(3),
        reduction="batchmean",
        says=["reduction", "'none'", "'mean'", "'sum'", "'batchmean'"],
    ),
    # Combinations.
    "neither kl nor latents": bad(
        "elbo_loss", t(3, 4), t(3, 4), says=["exactly one", "kl", "mu, logvar"]
    ),
    "both kl and latents": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        t(3, 2),
        t(3, 2),
        kl=t(3),
        says=["exactly one", "kl", "mu, logvar"],
    ),
    "mu without logvar": bad(
        "elbo_loss", t(3, 4), t(3, 4), t(3, 2), says=["exactly one", "mu, logvar"]
    ),
    "logvar and kl": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        logvar=t(3, 2),
        kl=t(3),
        says=["exactly one", "kl", "mu, logvar"],
    ),
    "prior with kl": bad(
        "elbo_loss", t(3, 4), t(3, 4), kl=t(3), prior_mu=t(2), says=["prior_mu", "kl"]
    ),
    "recon_logvar with bernoulli": bad(
        "elbo_loss", t(3, 4), t(3, 4), kl=t(3), recon_logvar=0.5, says=["recon_logvar", "gaussian"]
    ),
    "log_scale with gaussian": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=t(3),
        likelihood="gaussian",
        log_scale=0.5,
        says=["log_scale", "laplace"],
    ),
    "log_theta with poisson": bad(
        "elbo_loss",
        t(3, 4),
        t(3, 4),
        kl=t(3),
        likelihood="poisson",
        log_theta=t(4),
        says=["log_theta", "negative_binomial"],
    ),
    "learned recon_logvar with bernoulli": bad(
        "elbo_loss", t(3, 4), t(3, 4), kl=t(3), recon_logvar=t(), says=["recon_logvar", "gaussian"]
    ),
}


@IMPLS
@pytest.mark.parametrize("case", TABLE)
def test_raises_and_names_the_argument(case, impl, device):
    check(TABLE[case], impl, device)
