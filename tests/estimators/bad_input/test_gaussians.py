"""Bad input of densities, KL divergences and samples of Gaussians."""

import pytest
import torch

from helpers.bad_input import C64, I64, IMPLS, META, bad, check, t

TABLE = {
    # Shapes that do not broadcast.
    "log_prob shapes": bad(
        "gaussian_log_prob",
        t(3, 4),
        t(3, 5),
        t(3, 4),
        says=["broadcast", "x (3, 4)", "mu (3, 5)", "logvar (3, 4)"],
    ),
    "kl shapes": bad(
        "gaussian_kl", t(3, 4), t(2, 4), says=["broadcast", "mu (3, 4)", "logvar (2, 4)"]
    ),
    "kl prior shapes": bad(
        "gaussian_kl", t(3, 4), t(3, 4), t(5), says=["broadcast", "mu (3, 4)", "prior_mu (5,)"]
    ),
    "kl prior_logvar shapes": bad(
        "gaussian_kl",
        t(3, 4),
        t(3, 4),
        prior_logvar=t(2, 4),
        says=["broadcast", "mu (3, 4)", "prior_logvar (2, 4)"],
    ),
    "rsample shapes": bad(
        "gaussian_rsample", t(3, 4), t(3, 5), says=["broadcast", "mu (3, 4)", "logvar (3, 5)"]
    ),
    "rsample_kl shapes": bad(
        "rsample_kl", t(3, 4), t(3, 5), says=["broadcast", "mu (3, 4)", "logvar (3, 5)"]
    ),
    "rsample_kl prior larger than q": bad(
        "rsample_kl",
        t(3, 4),
        t(3, 4),
        t(2, 3, 4),
        says=["prior_mu (2, 3, 4)", "broadcast", "(3, 4)"],
    ),
    "rsample_kl_log_std shapes": bad(
        "rsample_kl_log_std",
        t(3, 4, 2),
        t(3, 4),
        says=["one shape", "mu (3, 4, 2)", "log_std (3, 4)"],
    ),
    "rsample_kl_log_std without examples' latents": bad(
        "rsample_kl_log_std", t(3), t(3), says=["[B, ...]", "mu (3,)", "log_std (3,)"]
    ),
    "rsample_kl_log_std prior shapes": bad(
        "rsample_kl_log_std", t(3, 4), t(3, 4), t(5), says=["prior_mu (5,)", "broadcast", "(3, 4)"]
    ),
    "rsample_kl_log_std soft_clamp": bad(
        "rsample_kl_log_std", t(3, 4), t(3, 4), soft_clamp=-1.0, says=["soft_clamp", "-1.0"]
    ),
    "rsample_kl_log_std std_offset": bad(
        "rsample_kl_log_std",
        t(3, 4),
        t(3, 4),
        std_offset="0.01",
        error=TypeError,
        says=["std_offset", "str"],
    ),
    "balanced_kl shapes": bad(
        "balanced_kl",
        t(3, 4),
        t(3, 4),
        t(2, 4),
        t(3, 4),
        says=["prior_mu (2, 4)", "broadcast", "(3, 4)"],
    ),
    "balanced_kl free_nats": bad(
        "balanced_kl", *[t(3, 4)] * 4, free_nats=-1.0, says=["free_nats", "-1.0"]
    ),
    "rsample_kl prior shapes": bad(
        "rsample_kl",
        t(3, 4),
        t(3, 4),
        prior_logvar=t(3),
        says=["prior_logvar (3,)", "broadcast", "(3, 4)"],
    ),
    # D = 0.
    "log_prob D=0": bad(
        "gaussian_log_prob",
        t(3, 0),
        t(3, 0),
        t(3, 0),
        says=["D >= 1", "x (3, 0)", "mu (3, 0)", "logvar (3, 0)"],
    ),
    "kl D=0": bad("gaussian_kl", t(3, 0), t(3, 0), says=["D >= 1", "mu (3, 0)", "logvar (3, 0)"]),
    "rsample D=0": bad("gaussian_rsample", t(3, 0), t(3, 0), says=["D >= 1", "mu (3, 0)"]),
    "rsample_kl D=0": bad("rsample_kl", t(3, 0), t(3, 0), says=["D >= 1", "mu (3, 0)"]),
    # Wrong rank.
    "log_prob of scalars": bad(
        "gaussian_log_prob", t(), t(), t(), says=["[..., D]", "x ()", "mu ()", "logvar ()"]
    ),
    "kl of scalars": bad("gaussian_kl", t(), t(), says=["mu ()", "logvar ()"]),
    "integer x of a density": bad(
        "gaussian_log_prob",
        torch.ones(3, 4, dtype=I64),
        t(3, 4),
        t(3, 4),
        error=TypeError,
        says=["x", "float32", "torch.int64"],
    ),
    "integer prior_mu": bad(
        "rsample_kl",
        t(3, 4),
        t(3, 4),
        torch.ones(4, dtype=I64),
        error=TypeError,
        says=["prior_mu", "torch.int64"],
    ),
    # Layouts.
    "sparse mu": bad(
        "gaussian_kl",
        t(3, 4).to_sparse(),
        t(3, 4),
        error=TypeError,
        says=["mu must be dense", "torch.sparse_coo"],
    ),
    "jagged mu": bad(
        "gaussian_rsample",
        torch.nested.nested_tensor([t(3, 4), t(2, 4)], layout=torch.jagged),
        t(4),
        error=TypeError,
        says=["mu must be dense", "nested"],
    ),
    "complex mu": bad(
        "gaussian_kl",
        t(3, 4, dtype=C64),
        t(3, 4),
        error=TypeError,
        says=["mu", "float32", "torch.complex64"],
    ),
    "integer logvar": bad(
        "gaussian_rsample",
        t(3, 4),
        torch.ones(3, 4, dtype=I64),
        error=TypeError,
        says=["logvar", "torch.int64"],
    ),
    # Things that are not tensors.
    "mu is a list": bad(
        "gaussian_kl", [1.0], t(1), error=TypeError, says=["mu", "torch.Tensor", "list"]
    ),
    "prior_mu is a float": bad(
        "gaussian_kl",
        t(3, 4),
        t(3, 4),
        0.5,
        error=TypeError,
        says=["prior_mu", "torch.Tensor", "float"],
    ),
    # Devices.
    "log_prob devices": bad(
        "gaussian_log_prob", t(3, 4), t(3, 4).to(META), t(3, 4), says=["x and mu", "device", "meta"]
    ),
    "kl devices": bad(
        "gaussian_kl", t(3, 4), t(3, 4), t(4).to(META), says=["mu and prior_mu", "device", "meta"]
    ),
    "rsample devices": bad(
        "gaussian_rsample", t(3, 4), t(3, 4).to(META), says=["mu and logvar", "device", "meta"]
    ),
    "num_samples zero": bad(
        "gaussian_rsample", t(3, 4), t(3, 4), 0, says=["num_samples", "at least 1", "0"]
    ),
    "num_samples negative": bad(
        "gaussian_rsample",
        t(3, 4),
        t(3, 4),
        num_samples=-2,
        says=["num_samples", "at least 1", "-2"],
    ),
    "num_samples a float": bad(
        "gaussian_rsample",
        t(3, 4),
        t(3, 4),
        2.0,
        error=TypeError,
        says=["num_samples", "int", "float"],
    ),
    "num_samples a bool": bad(
        "gaussian_rsample",
        t(3, 4),
        t(3, 4),
        True,
        error=TypeError,
        says=["num_samples", "int", "bool"],
    ),
    # K samples.
    "log_ratio shapes": bad(
        "rsample_log_ratio", t(3, 4), t(3, 5), 2, says=["broadcast", "mu (3, 4)", "logvar (3, 5)"]
    ),
    "log_ratio prior larger than q": bad(
        "rsample_log_ratio",
        t(3, 4),
        t(3, 4),
        2,
        t(2, 3, 4),
        says=["prior_mu (2, 3, 4)", "broadcast", "(3, 4)"],
    ),
    "log_ratio num_samples": bad(
        "rsample_log_ratio", t(3, 4), t(3, 4), 0, says=["num_samples", "at least 1", "0"]
    ),
    "log_ratio num_samples a float": bad(
        "rsample_log_ratio",
        t(3, 4),
        t(3, 4),
        2.0,
        error=TypeError,
        says=["num_samples", "int", "float"],
    ),
    "log_ratio gradient": bad(
        "rsample_log_ratio",
        t(3, 4),
        t(3, 4),
        2,
        gradient="stl",
        says=["gradient", "'total'", "'path'", "'dreg'", "'stl'"],
    ),
    "log_ratio odd pairs": bad(
        "rsample_log_ratio",
        t(3, 4),
        t(3, 4),
        3,
        antithetic=True,
        says=["antithetic", "even num_samples", "3"],
    ),
    "log_ratio antithetic dreg": bad(
        "rsample_log_ratio",
        t(3, 4),
        t(3, 4),
        4,
        antithetic=True,
        gradient="dreg",
        says=["gradient='dreg'", "independent samples", "antithetic=True"],
    ),
    "log_ratio integers": bad(
        "rsample_log_ratio",
        t(3, 4),
        torch.zeros(3, 4, dtype=torch.long),
        2,
        error=TypeError,
        says=["logvar", "torch.int64"],
    ),
}


@IMPLS
@pytest.mark.parametrize("case", TABLE)
def test_raises_and_names_the_argument(case, impl, device):
    check(TABLE[case], impl, device)
