"""Every row of the bad-input table: what is raised, and that the message names the arguments."""

import dataclasses
import gc
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import fused_elbo
from fused_elbo import ELBOLoss, elbo_loss
from fused_elbo.kernels import backends
from helpers.machine import KERNELS

IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])


def t(*shape, dtype=torch.float32):
    return torch.rand(shape, dtype=dtype)


F64, I64, C64, BOOL = torch.float64, torch.int64, torch.complex64, torch.bool
META = torch.device("meta")


def DECODER(z):  # noqa: N802
    """From z [K, B, 2] to logits [K, B, 4]."""
    return torch.cat((z, z), -1)


def call(name, *args, **kwargs):
    return name, args, kwargs


# id: (call, error, everything that the message must contain). Tensors are made on the CPU and
# moved to the device of the kernels under test.
TABLE = {
    # Shapes that do not broadcast.
    "log_prob shapes": (
        call("gaussian_log_prob", t(3, 4), t(3, 5), t(3, 4)),
        ValueError,
        ["broadcast", "x (3, 4)", "mu (3, 5)", "logvar (3, 4)"],
    ),
    "kl shapes": (
        call("gaussian_kl", t(3, 4), t(2, 4)),
        ValueError,
        ["broadcast", "mu (3, 4)", "logvar (2, 4)"],
    ),
    "kl prior shapes": (
        call("gaussian_kl", t(3, 4), t(3, 4), t(5)),
        ValueError,
        ["broadcast", "mu (3, 4)", "prior_mu (5,)"],
    ),
    "kl prior_logvar shapes": (
        call("gaussian_kl", t(3, 4), t(3, 4), prior_logvar=t(2, 4)),
        ValueError,
        ["broadcast", "mu (3, 4)", "prior_logvar (2, 4)"],
    ),
    "rsample shapes": (
        call("gaussian_rsample", t(3, 4), t(3, 5)),
        ValueError,
        ["broadcast", "mu (3, 4)", "logvar (3, 5)"],
    ),
    "rsample_kl shapes": (
        call("rsample_kl", t(3, 4), t(3, 5)),
        ValueError,
        ["broadcast", "mu (3, 4)", "logvar (3, 5)"],
    ),
    "rsample_kl prior larger than q": (
        call("rsample_kl", t(3, 4), t(3, 4), t(2, 3, 4)),
        ValueError,
        ["prior_mu (2, 3, 4)", "broadcast", "(3, 4)"],
    ),
    "rsample_kl_log_std shapes": (
        call("rsample_kl_log_std", t(3, 4, 2), t(3, 4)),
        ValueError,
        ["one shape", "mu (3, 4, 2)", "log_std (3, 4)"],
    ),
    "rsample_kl_log_std without examples' latents": (
        call("rsample_kl_log_std", t(3), t(3)),
        ValueError,
        ["[B, ...]", "mu (3,)", "log_std (3,)"],
    ),
    "rsample_kl_log_std prior shapes": (
        call("rsample_kl_log_std", t(3, 4), t(3, 4), t(5)),
        ValueError,
        ["prior_mu (5,)", "broadcast", "(3, 4)"],
    ),
    "rsample_kl_log_std soft_clamp": (
        call("rsample_kl_log_std", t(3, 4), t(3, 4), soft_clamp=-1.0),
        ValueError,
        ["soft_clamp", "-1.0"],
    ),
    "rsample_kl_log_std std_offset": (
        call("rsample_kl_log_std", t(3, 4), t(3, 4), std_offset="0.01"),
        TypeError,
        ["std_offset", "str"],
    ),
    "balanced_kl shapes": (
        call("balanced_kl", t(3, 4), t(3, 4), t(2, 4), t(3, 4)),
        ValueError,
        ["prior_mu (2, 4)", "broadcast", "(3, 4)"],
    ),
    "balanced_kl free_nats": (
        call("balanced_kl", *[t(3, 4)] * 4, free_nats=-1.0),
        ValueError,
        ["free_nats", "-1.0"],
    ),
    "rsample_kl prior shapes": (
        call("rsample_kl", t(3, 4), t(3, 4), prior_logvar=t(3)),
        ValueError,
        ["prior_logvar (3,)", "broadcast", "(3, 4)"],
    ),
    "mixture latents": (
        call("mixture_log_prob", t(5, 4), t(3, 2), t(3, 2)),
        ValueError,
        ["one D", "z (5, 4)", "mu (3, 2)", "logvar (3, 2)"],
    ),
    "mixture of latents that would broadcast": (
        call("mixture_log_prob", t(5, 1), t(3, 2), t(3, 2)),
        ValueError,
        ["one D", "z (5, 1)", "mu (3, 2)"],
    ),
    "mixture z a number": (
        call("mixture_log_prob", t(), t(3, 2), t(3, 2)),
        ValueError,
        ["z ()", "[..., D]"],
    ),
    "mixture components of other shapes": (
        call("mixture_log_prob", t(5, 2), t(3, 2), t(4, 2)),
        ValueError,
        ["broadcast", "mu (3, 2)", "logvar (4, 2)"],
    ),
    "mixture components in three dimensions": (
        call("mixture_log_prob", t(5, 2), t(1, 3, 2), t(3, 2)),
        ValueError,
        ["[K, D]", "mu (1, 3, 2)"],
    ),
    "mixture one component without its dimension": (
        call("mixture_log_prob", t(5, 2), t(2), t(2)),
        ValueError,
        ["[K, D]", "mu (2,)"],
    ),
    "mixture of no components": (
        call("mixture_log_prob", t(5, 2), t(0, 2), t(0, 2)),
        ValueError,
        ["K >= 1", "mu (0, 2)"],
    ),
    "mixture log_weights": (
        call("mixture_log_prob", t(5, 2), t(3, 2), t(3, 2), t(5)),
        ValueError,
        ["log_weights (5,)", "[K]", "mu (3, 2)"],
    ),
    "mix_logistic numbers": (
        call("discretized_mix_logistic_nll", t(2, 20, 4, 4), t(2, 3, 4, 4), 3),
        ValueError,
        ["params [B, 30, ...]", "num_mixtures=3", "params (2, 20, 4, 4)"],
    ),
    "mix_logistic pixels": (
        call("discretized_mix_logistic_nll", t(2, 20, 4, 4), t(2, 3, 4, 5), 2),
        ValueError,
        ["x [B, 3, ...]", "params (2, 20, 4, 4)", "x (2, 3, 4, 5)"],
    ),
    "mix_logistic grey": (
        call("discretized_mix_logistic_nll", t(2, 20, 4, 4), t(2, 1, 4, 4), 2),
        ValueError,
        ["x [B, 3, ...]", "x (2, 1, 4, 4)"],
    ),
    "mix_logistic without pixels": (
        call("discretized_mix_logistic_nll", t(2, 20), t(2, 3), 2),
        ValueError,
        ["params (2, 20)", "pixels"],
    ),
    "mix_logistic of no mixtures": (
        call("discretized_mix_logistic_nll", t(2, 0, 4), t(2, 3, 4), 0),
        ValueError,
        ["num_mixtures"],
    ),
    "mix_logistic of raw levels": (
        call("discretized_mix_logistic_nll", t(2, 20, 4), torch.ones(2, 3, 4, dtype=I64), 2),
        TypeError,
        ["x", "torch.int64", "[-1, 1]", "2 * x.float() / 255 - 1"],
    ),
    "mix_logistic gradient of the data": (
        call("discretized_mix_logistic_nll", t(2, 20, 4), t(2, 3, 4).requires_grad_(), 2),
        ValueError,
        ["x", "data", "x.detach()"],
    ),
    "mix_logistic bits": (
        call("discretized_mix_logistic_nll", t(2, 20, 4), t(2, 3, 4), 2, bits=9),
        ValueError,
        ["bits", "8", "9"],
    ),
    "mix_logistic right_edge": (
        call("discretized_mix_logistic_nll", t(2, 20, 4), t(2, 3, 4), 2, right_edge=254),
        ValueError,
        ["right_edge", "254"],
    ),
    "mix_logistic reduction": (
        call("discretized_mix_logistic_nll", t(2, 20, 4), t(2, 3, 4), 2, reduction="avg"),
        ValueError,
        ["reduction", "'none'", "'mean'", "'sum'"],
    ),
    "mixture of integers": (
        call("mixture_log_prob", t(5, 2), t(3, 2), torch.ones(3, 2, dtype=I64)),
        TypeError,
        ["logvar", "float32", "torch.int64"],
    ),
    "gaussian_nll shapes": (
        call("gaussian_nll", t(3, 4), t(3, 1)),
        ValueError,
        ["equal shapes", "recon (3, 4)", "x (3, 1)"],
    ),
    "gaussian_nll recon_logvar shapes": (
        call("gaussian_nll", t(3, 4), t(3, 4), t(3)),
        ValueError,
        ["recon_logvar (3,)", "broadcast", "(3, 4)"],
    ),
    "gaussian_nll recon_logvar larger than recon": (
        call("gaussian_nll", t(1, 4), t(1, 4), t(3, 4)),
        ValueError,
        ["recon_logvar (3, 4)", "broadcast", "(1, 4)"],
    ),
    "bernoulli_nll shapes": (
        call("bernoulli_nll", t(3, 4), t(4)),
        ValueError,
        ["equal shapes", "logits (3, 4)", "x (4,)"],
    ),
    "loss shapes": (
        call("elbo_loss", t(3, 4), t(3, 5), kl=t(3)),
        ValueError,
        ["equal shapes", "recon (3, 4)", "x (3, 5)"],
    ),
    "loss kl shape": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(4)),
        ValueError,
        ["kl (4,)", "x (3, 4)"],
    ),
    "loss kl scalar": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t()),
        ValueError,
        ["kl ()", "x (3, 4)"],
    ),
    "loss mu of another batch": (
        call("elbo_loss", t(3, 4), t(3, 4), t(2, 5), t(2, 5)),
        ValueError,
        ["mu (2, 5)", "logvar (2, 5)", "x (3, 4)"],
    ),
    "loss latents": (
        call("elbo_loss", t(3, 4), t(3, 4), t(3, 5), t(3, 6)),
        ValueError,
        ["mu (3, 5)", "logvar (3, 6)"],
    ),
    "loss prior shapes": (
        call("elbo_loss", t(3, 4), t(3, 4), t(3, 5), t(3, 5), prior_mu=t(4)),
        ValueError,
        ["prior_mu (4,)", "mu (3, 5)"],
    ),
    "loss recon_logvar shapes": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), likelihood="gaussian", recon_logvar=t(3)),
        ValueError,
        ["recon_logvar (3,)", "(3, 4)"],
    ),
    # D = 0.
    "log_prob D=0": (
        call("gaussian_log_prob", t(3, 0), t(3, 0), t(3, 0)),
        ValueError,
        ["D >= 1", "x (3, 0)", "mu (3, 0)", "logvar (3, 0)"],
    ),
    "kl D=0": (
        call("gaussian_kl", t(3, 0), t(3, 0)),
        ValueError,
        ["D >= 1", "mu (3, 0)", "logvar (3, 0)"],
    ),
    "rsample D=0": (
        call("gaussian_rsample", t(3, 0), t(3, 0)),
        ValueError,
        ["D >= 1", "mu (3, 0)"],
    ),
    "rsample_kl D=0": (call("rsample_kl", t(3, 0), t(3, 0)), ValueError, ["D >= 1", "mu (3, 0)"]),
    "gaussian_nll D=0": (
        call("gaussian_nll", t(3, 0), t(3, 0)),
        ValueError,
        ["not empty", "recon (3, 0)", "x (3, 0)"],
    ),
    "bernoulli_nll empty event": (
        call("bernoulli_nll", t(3, 2, 0), t(3, 2, 0)),
        ValueError,
        ["not empty", "logits (3, 2, 0)", "x (3, 2, 0)"],
    ),
    "loss D=0": (
        call("elbo_loss", t(3, 4), t(3, 4), t(3, 0), t(3, 0)),
        ValueError,
        ["mu (3, 0)", "logvar (3, 0)"],
    ),
    "loss empty latent event": (
        call("elbo_loss", t(3, 4), t(3, 4), t(3, 0, 2), t(3, 0, 2)),
        ValueError,
        ["mu (3, 0, 2)", "logvar (3, 0, 2)"],
    ),
    # Wrong rank.
    "log_prob of scalars": (
        call("gaussian_log_prob", t(), t(), t()),
        ValueError,
        ["[..., D]", "x ()", "mu ()", "logvar ()"],
    ),
    "kl of scalars": (call("gaussian_kl", t(), t()), ValueError, ["mu ()", "logvar ()"]),
    "gaussian_nll of a vector": (
        call("gaussian_nll", t(3), t(3)),
        ValueError,
        ["[B, ...]", "recon (3,)", "x (3,)"],
    ),
    "bernoulli_nll of a vector": (
        call("bernoulli_nll", t(3), t(3)),
        ValueError,
        ["[B, ...]", "logits (3,)", "x (3,)"],
    ),
    "loss of a vector": (call("elbo_loss", t(3), t(3), kl=t(3)), ValueError, ["recon (3,)"]),
    "loss mu of a vector": (
        call("elbo_loss", t(3, 4), t(3, 4), t(3), t(3)),
        ValueError,
        ["mu (3,)", "logvar (3,)", "x (3, 4)"],
    ),
    # Dtypes: tests/estimators/test_dtypes.py has what may be mixed.
    "integer logits": (
        call("bernoulli_nll", torch.ones(3, 4, dtype=I64), t(3, 4)),
        TypeError,
        ["logits", "float32", "torch.int64"],
    ),
    "integer x of a density": (
        call("gaussian_log_prob", torch.ones(3, 4, dtype=I64), t(3, 4), t(3, 4)),
        TypeError,
        ["x", "float32", "torch.int64"],
    ),
    "integer prior_mu": (
        call("rsample_kl", t(3, 4), t(3, 4), torch.ones(4, dtype=I64)),
        TypeError,
        ["prior_mu", "torch.int64"],
    ),
    "integer log_weights": (
        call("importance_weights", torch.ones(3, 4, dtype=I64)),
        TypeError,
        ["log_weights", "torch.int64"],
    ),
    # Layouts.
    "sparse mu": (
        call("gaussian_kl", t(3, 4).to_sparse(), t(3, 4)),
        TypeError,
        ["mu must be dense", "torch.sparse_coo"],
    ),
    "sparse rows of x": (
        call("bernoulli_nll", t(3, 4), t(3, 4).to_sparse_csr()),
        TypeError,
        ["x must be dense", "torch.sparse_csr"],
    ),
    "sparse log_ratio": (
        call("iwae_loss", t(5, 3, 4), t(3, 4), t(5, 3).to_sparse()),
        TypeError,
        ["log_ratio must be dense", "torch.sparse_coo"],
    ),
    "nested kl": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=torch.nested.nested_tensor([t(3), t(2)])),
        TypeError,
        ["kl must be dense", "nested"],
    ),
    "jagged mu": (
        call(
            "gaussian_rsample",
            torch.nested.nested_tensor([t(3, 4), t(2, 4)], layout=torch.jagged),
            t(4),
        ),
        TypeError,
        ["mu must be dense", "nested"],
    ),
    "bool x": (
        call("elbo_loss", t(3, 4), torch.ones(3, 4, dtype=BOOL), kl=t(3), likelihood="gaussian"),
        TypeError,
        ["x", "'gaussian'", "bool", "x.float()"],
    ),
    "bool classes": (
        call("categorical_nll", t(3, 4), torch.ones(3, dtype=BOOL)),
        TypeError,
        ["target", "'categorical'", "bool", "target.long()"],
    ),
    "grey values of a Bernoulli": (
        call("bernoulli_nll", t(3, 4), torch.ones(3, 4, dtype=torch.uint8)),
        TypeError,
        ["x of a Bernoulli", "torch.uint8", "x.float() / 255", "x.bool()"],
    ),
    "grey values in the loss": (
        call("elbo_loss", t(3, 4), torch.ones(3, 4, dtype=I64), kl=t(3)),
        TypeError,
        ["x of a Bernoulli", "torch.int64", "x.float() / 255", "x.bool()"],
    ),
    "grey values in IWAE's loss": (
        call("iwae_loss", t(5, 3, 4), torch.ones(3, 4, dtype=torch.uint8), t(5, 3)),
        TypeError,
        ["x of a Bernoulli", "torch.uint8", "x.float() / 255", "x.bool()"],
    ),
    "complex mu": (
        call("gaussian_kl", t(3, 4, dtype=C64), t(3, 4)),
        TypeError,
        ["mu", "float32", "torch.complex64"],
    ),
    "integer logvar": (
        call("gaussian_rsample", t(3, 4), torch.ones(3, 4, dtype=I64)),
        TypeError,
        ["logvar", "torch.int64"],
    ),
    "integer kl": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=torch.ones(3, dtype=I64)),
        TypeError,
        ["kl", "torch.int64"],
    ),
    "integer recon_logvar": (
        call("gaussian_nll", t(3, 4), t(3, 4), torch.tensor(0)),
        TypeError,
        ["recon_logvar", "torch.int64"],
    ),
    # Things that are not tensors.
    "mu is a list": (call("gaussian_kl", [1.0], t(1)), TypeError, ["mu", "torch.Tensor", "list"]),
    "x is an array": (
        call("bernoulli_nll", t(3, 4), np.zeros((3, 4), np.float32)),
        TypeError,
        ["x", "torch.Tensor", "ndarray"],
    ),
    "prior_mu is a float": (
        call("gaussian_kl", t(3, 4), t(3, 4), 0.5),
        TypeError,
        ["prior_mu", "torch.Tensor", "float"],
    ),
    "kl is a float": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=0.5),
        TypeError,
        ["kl", "torch.Tensor", "float"],
    ),
    "recon_logvar is a string": (
        call("gaussian_nll", t(3, 4), t(3, 4), "0"),
        TypeError,
        ["recon_logvar", "number", "str"],
    ),
    "recon_logvar is None": (
        call("gaussian_nll", t(3, 4), t(3, 4), None),
        TypeError,
        ["recon_logvar", "number", "NoneType"],
    ),
    "loss recon_logvar is a string": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), likelihood="gaussian", recon_logvar="0"),
        TypeError,
        ["recon_logvar", "number", "str"],
    ),
    "beta is a string": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), beta="1"),
        TypeError,
        ["beta", "number", "str"],
    ),
    "beta is a bool": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), beta=True),
        TypeError,
        ["beta", "number", "bool"],
    ),
    # Devices.
    "log_prob devices": (
        call("gaussian_log_prob", t(3, 4), t(3, 4).to(META), t(3, 4)),
        ValueError,
        ["x and mu", "device", "meta"],
    ),
    "kl devices": (
        call("gaussian_kl", t(3, 4), t(3, 4), t(4).to(META)),
        ValueError,
        ["mu and prior_mu", "device", "meta"],
    ),
    "rsample devices": (
        call("gaussian_rsample", t(3, 4), t(3, 4).to(META)),
        ValueError,
        ["mu and logvar", "device", "meta"],
    ),
    "gaussian_nll devices": (
        call("gaussian_nll", t(3, 4), t(3, 4), t().to(META)),
        ValueError,
        ["recon and recon_logvar", "device", "meta"],
    ),
    "loss devices": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3).to(META)),
        ValueError,
        ["x and kl", "device", "meta"],
    ),
    "loss latents on another device": (
        call("elbo_loss", t(3, 4), t(3, 4), t(3, 2).to(META), t(3, 2).to(META)),
        ValueError,
        ["x and mu", "device", "meta"],
    ),
    # Options.
    "likelihood": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), likelihood="cauchy"),
        ValueError,
        ["likelihood", "'bernoulli'", "'gaussian'", "'cauchy'"],
    ),
    "reduction": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), reduction="batchmean"),
        ValueError,
        ["reduction", "'none'", "'mean'", "'sum'", "'batchmean'"],
    ),
    "num_samples zero": (
        call("gaussian_rsample", t(3, 4), t(3, 4), 0),
        ValueError,
        ["num_samples", "at least 1", "0"],
    ),
    "num_samples negative": (
        call("gaussian_rsample", t(3, 4), t(3, 4), num_samples=-2),
        ValueError,
        ["num_samples", "at least 1", "-2"],
    ),
    "num_samples a float": (
        call("gaussian_rsample", t(3, 4), t(3, 4), 2.0),
        TypeError,
        ["num_samples", "int", "float"],
    ),
    "num_samples a bool": (
        call("gaussian_rsample", t(3, 4), t(3, 4), True),
        TypeError,
        ["num_samples", "int", "bool"],
    ),
    # K samples.
    "log_ratio shapes": (
        call("rsample_log_ratio", t(3, 4), t(3, 5), 2),
        ValueError,
        ["broadcast", "mu (3, 4)", "logvar (3, 5)"],
    ),
    "log_ratio prior larger than q": (
        call("rsample_log_ratio", t(3, 4), t(3, 4), 2, t(2, 3, 4)),
        ValueError,
        ["prior_mu (2, 3, 4)", "broadcast", "(3, 4)"],
    ),
    "log_ratio num_samples": (
        call("rsample_log_ratio", t(3, 4), t(3, 4), 0),
        ValueError,
        ["num_samples", "at least 1", "0"],
    ),
    "log_ratio num_samples a float": (
        call("rsample_log_ratio", t(3, 4), t(3, 4), 2.0),
        TypeError,
        ["num_samples", "int", "float"],
    ),
    "log_ratio gradient": (
        call("rsample_log_ratio", t(3, 4), t(3, 4), 2, gradient="stl"),
        ValueError,
        ["gradient", "'total'", "'path'", "'dreg'", "'stl'"],
    ),
    "log_ratio odd pairs": (
        call("rsample_log_ratio", t(3, 4), t(3, 4), 3, antithetic=True),
        ValueError,
        ["antithetic", "even num_samples", "3"],
    ),
    "log_ratio antithetic dreg": (
        call("rsample_log_ratio", t(3, 4), t(3, 4), 4, antithetic=True, gradient="dreg"),
        ValueError,
        ["gradient='dreg'", "independent samples", "antithetic=True"],
    ),
    "log_ratio integers": (
        call("rsample_log_ratio", t(3, 4), torch.zeros(3, 4, dtype=torch.long), 2),
        TypeError,
        ["logvar", "torch.int64"],
    ),
    "likelihood of samples of another x": (
        call("bernoulli_nll", t(5, 3, 4), t(2, 4)),
        ValueError,
        ["equal shapes", "logits [K, *x.shape]", "logits (5, 3, 4)", "x (2, 4)"],
    ),
    "likelihood with fewer dimensions than x": (
        call("gaussian_nll", t(3, 4), t(5, 3, 4)),
        ValueError,
        ["equal shapes", "recon (3, 4)", "x (5, 3, 4)"],
    ),
    "likelihood of no samples": (
        call("gaussian_nll", t(0, 3, 4), t(3, 4)),
        ValueError,
        ["at least one sample", "recon (0, 3, 4)"],
    ),
    "weights without samples": (
        call("importance_weights", t(0, 4)),
        ValueError,
        ["log_weights [K, ...]", "(0, 4)"],
    ),
    "weights a scalar": (
        call("importance_weights", t()),
        ValueError,
        ["log_weights [K, ...]", "()"],
    ),
    "weights alpha": (
        call("importance_weights", t(3, 4), float("inf")),
        ValueError,
        ["alpha", "inf"],
    ),
    "weights alpha a tensor": (
        call("importance_weights", t(3, 4), t()),
        TypeError,
        ["alpha", "number", "Tensor"],
    ),
    "iwae log_ratio shape": (
        call("iwae_loss", t(5, 3, 4), t(3, 4), t(3, 5)),
        ValueError,
        ["recon (5, 3, 4)", "log_ratio (3, 5)", "[K, B]"],
    ),
    "iwae without samples' dimension": (
        call("iwae_loss", t(3, 4), t(3, 4), t(3)),
        ValueError,
        ["recon [K, B, ...]", "recon (3, 4)", "log_ratio (3,)"],
    ),
    "iwae log_ratio device": (
        call("iwae_loss", t(5, 3, 4), t(3, 4), t(5, 3).to(META)),
        ValueError,
        ["recon and log_ratio", "device", "meta"],
    ),
    "iwae likelihood": (
        call("iwae_loss", t(5, 3, 4), t(3, 4), t(5, 3), likelihood="cauchy"),
        ValueError,
        ["likelihood", "'bernoulli'", "'gaussian'", "'cauchy'"],
    ),
    "iwae reduction": (
        call("iwae_loss", t(5, 3, 4), t(3, 4), t(5, 3), reduction="batchmean"),
        ValueError,
        ["reduction", "'none'", "'mean'", "'sum'", "'batchmean'"],
    ),
    "iwae alpha": (
        call("iwae_loss", t(5, 3, 4), t(3, 4), t(5, 3), alpha="0"),
        TypeError,
        ["alpha", "number", "str"],
    ),
    "iwae recon_logvar with bernoulli": (
        call("iwae_loss", t(5, 3, 4), t(3, 4), t(5, 3), recon_logvar=0.5),
        ValueError,
        ["recon_logvar", "gaussian"],
    ),
    "chunked chunk_size": (
        call("chunked_iwae_loss", DECODER, t(3, 4), t(3, 2), t(3, 2), 4, chunk_size=0),
        ValueError,
        ["chunk_size", "at least 1", "0"],
    ),
    "chunked odd pairs": (
        call(
            "chunked_iwae_loss",
            DECODER,
            t(3, 4),
            t(3, 2),
            t(3, 2),
            4,
            chunk_size=3,
            antithetic=True,
        ),
        ValueError,
        ["antithetic", "even chunk_size", "3"],
    ),
    "chunked dreg with another bound": (
        call(
            "chunked_iwae_loss",
            DECODER,
            t(3, 4),
            t(3, 2),
            t(3, 2),
            4,
            chunk_size=2,
            gradient="dreg",
            alpha=0.5,
        ),
        ValueError,
        ["gradient='dreg'", "alpha=0", "0.5"],
    ),
    "chunked decoder of another shape": (
        call("chunked_iwae_loss", DECODER, t(3, 5), t(3, 2), t(3, 2), 4, chunk_size=2),
        ValueError,
        ["decoder(z) [K, B, ...]", "decoder(z) (2, 3, 4)", "x (3, 5)"],
    ),
    "chunked decoder no function": (
        call("chunked_iwae_loss", None, t(3, 5), t(3, 2), t(3, 2), 4, chunk_size=2),
        TypeError,
        ["decoder", "callable", "NoneType"],
    ),
    # Combinations.
    "neither kl nor latents": (
        call("elbo_loss", t(3, 4), t(3, 4)),
        ValueError,
        ["exactly one", "kl", "mu, logvar"],
    ),
    "both kl and latents": (
        call("elbo_loss", t(3, 4), t(3, 4), t(3, 2), t(3, 2), kl=t(3)),
        ValueError,
        ["exactly one", "kl", "mu, logvar"],
    ),
    "mu without logvar": (
        call("elbo_loss", t(3, 4), t(3, 4), t(3, 2)),
        ValueError,
        ["exactly one", "mu, logvar"],
    ),
    "logvar and kl": (
        call("elbo_loss", t(3, 4), t(3, 4), logvar=t(3, 2), kl=t(3)),
        ValueError,
        ["exactly one", "kl", "mu, logvar"],
    ),
    "prior with kl": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), prior_mu=t(2)),
        ValueError,
        ["prior_mu", "kl"],
    ),
    "recon_logvar with bernoulli": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), recon_logvar=0.5),
        ValueError,
        ["recon_logvar", "gaussian"],
    ),
    "log_scale with gaussian": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), likelihood="gaussian", log_scale=0.5),
        ValueError,
        ["log_scale", "laplace"],
    ),
    "recon_logvar with laplace": (
        call("iwae_loss", t(5, 3, 4), t(3, 4), t(5, 3), likelihood="laplace", recon_logvar=t()),
        ValueError,
        ["recon_logvar", "gaussian"],
    ),
    "laplace_nll log_scale shapes": (
        call("laplace_nll", t(3, 4), t(3, 4), t(3)),
        ValueError,
        ["log_scale (3,)", "broadcast", "(3, 4)"],
    ),
    "laplace_nll log_scale a string": (
        call("laplace_nll", t(3, 4), t(3, 4), "1"),
        TypeError,
        ["log_scale", "number"],
    ),
    "poisson_nll shapes": (
        call("poisson_nll", t(3, 4), t(3, 1)),
        ValueError,
        ["log_rate (3, 4)", "x (3, 1)"],
    ),
    "poisson_nll counts that learn": (
        call("poisson_nll", t(3, 4), t(3, 4).clone().requires_grad_()),
        ValueError,
        ["x", "gradient", "x.detach()"],
    ),
    "negative_binomial_nll shapes": (
        call("negative_binomial_nll", t(3, 4), t(4), 0.0),
        ValueError,
        ["log_mean (3, 4)", "x (4,)"],
    ),
    "negative_binomial_nll counts that learn": (
        call("negative_binomial_nll", t(3, 4), t(3, 4).clone().requires_grad_(), 0.0),
        ValueError,
        ["x", "gradient", "x.detach()"],
    ),
    "negative_binomial_nll bool counts": (
        call("negative_binomial_nll", t(3, 4), t(3, 4) > 0, 0.0),
        TypeError,
        ["x", "bool", "x.float()"],
    ),
    "negative_binomial_nll log_theta of rows": (
        call("negative_binomial_nll", t(3, 4), t(3, 4), t(3)),
        ValueError,
        ["log_theta (3,)", "broadcast", "(3, 4)"],
    ),
    "negative_binomial_nll log_theta of None": (
        call("negative_binomial_nll", t(3, 4), t(3, 4), None),
        TypeError,
        ["log_theta", "number"],
    ),
    "negative_binomial_nll counts for log_theta": (
        call("negative_binomial_nll", t(3, 4), t(3, 4), torch.ones(4, dtype=I64)),
        TypeError,
        ["log_theta", "torch.int64"],
    ),
    "negative_binomial_nll zero_logits shapes": (
        call("negative_binomial_nll", t(3, 4), t(3, 4), 0.0, zero_logits=t(3, 1, 4)),
        ValueError,
        ["zero_logits (3, 1, 4)", "broadcast", "(3, 4)"],
    ),
    "negative_binomial_nll zero_logits a number": (
        call("negative_binomial_nll", t(3, 4), t(3, 4), 0.0, zero_logits=0.5),
        TypeError,
        ["zero_logits", "float"],
    ),
    "negative_binomial_nll counts where logits are expected": (
        call("negative_binomial_nll", torch.ones(3, 4, dtype=I64), t(3, 4), 0.0),
        TypeError,
        ["log_mean", "torch.int64"],
    ),
    "multinomial_nll counts where logits are expected": (
        call("multinomial_nll", torch.ones(3, 4, dtype=I64), t(3, 4)),
        TypeError,
        ["logits", "torch.int64"],
    ),
    "multinomial_nll shapes": (
        call("multinomial_nll", t(3, 4), t(3, 5)),
        ValueError,
        ["logits (3, 4)", "counts (3, 5)"],
    ),
    "log_theta with poisson": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), likelihood="poisson", log_theta=t(4)),
        ValueError,
        ["log_theta", "negative_binomial"],
    ),
    "zero_logits with poisson": (
        call("iwae_loss", t(5, 3, 4), t(3, 4), t(5, 3), likelihood="poisson", zero_logits=t(4)),
        ValueError,
        ["zero_logits", "negative_binomial"],
    ),
    "categorical_nll floating classes": (
        call("categorical_nll", t(3, 4), t(3)),
        TypeError,
        ["target", "int64", "torch.float32"],
    ),
    "categorical_nll classes second": (
        call("categorical_nll", t(3, 5, 4), torch.zeros(3, 4, dtype=I64)),
        ValueError,
        ["logits (3, 5, 4)", "[B, ..., C]", "target (3, 4)"],
    ),
    "categorical_nll without an example": (
        call("categorical_nll", t(5), torch.zeros((), dtype=I64)),
        ValueError,
        ["logits (5,)", "target ()"],
    ),
    "categorical_nll without classes": (
        call("categorical_nll", t(3, 0), torch.zeros(3, dtype=I64)),
        ValueError,
        ["classes", "logits (3, 0)"],
    ),
    "categorical samples of another shape": (
        call("iwae_loss", t(5, 3, 4), torch.zeros(2, dtype=I64), t(5, 3), likelihood="categorical"),
        ValueError,
        ["recon (5, 3, 4)", "[K, B, ..., C]", "x (2,)"],
    ),
    "learned recon_logvar with bernoulli": (
        call("elbo_loss", t(3, 4), t(3, 4), kl=t(3), recon_logvar=t()),
        ValueError,
        ["recon_logvar", "gaussian"],
    ),
}


@IMPLS
@pytest.mark.parametrize("case", TABLE)
def test_raises_and_names_the_argument(case, impl, device):
    (name, args, kwargs), error, words = TABLE[case]

    def move(value):
        on_cpu = isinstance(value, torch.Tensor) and value.device.type == "cpu"
        return value.to(device) if on_cpu else value

    args = [move(a) for a in args]
    kwargs = {n: move(a) for n, a in kwargs.items()}
    with pytest.raises(error) as raised:
        getattr(fused_elbo, name)(*args, **kwargs, impl=impl)
    assert type(raised.value) is error
    message = str(raised.value)
    for word in words:
        assert re.search(rf"(?<![\w.]){re.escape(word)}", message), f"no {word!r} in: {message}"
    if name == "chunked_iwae_loss":
        # Torch 2.11 takes the hooks of a failed checkpoint away with its traceback, not before.
        del raised
        gc.collect()


FUNCTIONS = {
    "gaussian_log_prob": (t(3, 4), t(3, 4), t(3, 4)),
    "gaussian_kl": (t(3, 4), t(3, 4)),
    "gaussian_rsample": (t(3, 4), t(3, 4)),
    "rsample_kl": (t(3, 4), t(3, 4)),
    "gaussian_nll": (t(3, 4), t(3, 4)),
    "bernoulli_nll": (t(3, 4), t(3, 4)),
    "laplace_nll": (t(3, 4), t(3, 4)),
    "poisson_nll": (t(3, 4), t(3, 4)),
    "negative_binomial_nll": (t(3, 4), t(3, 4), t(4)),
    "multinomial_nll": (t(3, 4), t(3, 4)),
    "categorical_nll": (t(3, 4), torch.zeros(3, dtype=I64)),
    "elbo_loss": (t(3, 4), t(3, 4), t(3, 2), t(3, 2)),
    "rsample_log_ratio": (t(3, 4), t(3, 4), 2),
    "importance_weights": (t(3, 4),),
    "iwae_loss": (t(5, 3, 4), t(3, 4), t(5, 3)),
    "mixture_log_prob": (t(3, 4), t(5, 4), t(5, 4)),
    "discretized_mix_logistic_nll": (t(3, 20, 2, 2), -t(3, 3, 2, 2), 2),
    "rsample_kl_log_std": (t(3, 4), t(3, 4)),
    "balanced_kl": (t(3, 4), t(3, 4), t(3, 4), t(3, 4)),
    "kl_decomposition": (t(3, 4), t(3, 4), t(3, 4), 10),
    "elbo_tc_loss": (t(3, 4), t(3, 4), t(3, 2), t(3, 2), t(3, 2), 10),
}
OTHERS = "elbo_loss", "importance_weights", "iwae_loss"
OTHERS = *OTHERS, "mixture_log_prob", "kl_decomposition", "elbo_tc_loss"
# Whose data have no gradient.
OTHERS = *OTHERS, "discretized_mix_logistic_nll", "poisson_nll", "categorical_nll"
OTHERS = *OTHERS, "negative_binomial_nll", "multinomial_nll"
# The functions whose examples are the first dimension, so that [:0] leaves none.
OF_EXAMPLES = [n for n in FUNCTIONS if n not in OTHERS]


@pytest.mark.parametrize("name", FUNCTIONS)
class TestImpl:
    def test_unknown(self, name):
        with pytest.raises(ValueError, match="impl") as raised:
            getattr(fused_elbo, name)(*FUNCTIONS[name], impl="cuda")
        for allowed in ("'auto'", "'triton'", "'reference'", "'cuda'"):
            assert allowed in str(raised.value)

    def test_is_keyword_only(self, name):
        with pytest.raises(TypeError, match="positional"):
            getattr(fused_elbo, name)(*FUNCTIONS[name], *[None] * 4, "reference")

    def test_triton_on_the_cpu_outside_the_interpreter(self, name, monkeypatch):
        monkeypatch.setattr(backends, "INTERPRETED", False)
        with pytest.raises(RuntimeError, match="impl='triton' needs CUDA") as raised:
            getattr(fused_elbo, name)(*FUNCTIONS[name], impl="triton")
        for word in ("cpu", "GPU", "TRITON_INTERPRET=1"):
            assert word in str(raised.value)

    def test_numba_beside_the_interpreter(self, name, monkeypatch):
        """One process cannot have both."""
        monkeypatch.setattr(backends, "INTERPRETED", True)
        with pytest.raises(RuntimeError, match=r"impl='numba' needs CPU tensors.*TRITON_INTERPRET"):
            getattr(fused_elbo, name)(*FUNCTIONS[name], impl="numba")

    @pytest.mark.parametrize("impl", ["numba", "triton"])
    def test_without_the_package(self, name, impl, monkeypatch):
        lacking = dataclasses.replace(backends.BACKENDS[impl], installed=False)
        monkeypatch.setitem(backends.BACKENDS, impl, lacking)
        with pytest.raises(RuntimeError, match=f"not installed: pip install {impl}"):
            getattr(fused_elbo, name)(*FUNCTIONS[name], impl=impl)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"likelihood": "cauchy"}, ValueError, ["likelihood", "'bernoulli'", "'gaussian'"]),
        ({"reduction": "avg"}, ValueError, ["reduction", "'none'", "'mean'", "'sum'"]),
        ({"impl": "cuda"}, ValueError, ["impl", "'auto'", "'triton'", "'reference'"]),
        ({"beta": None}, TypeError, ["beta", "number"]),
    ],
    ids=["likelihood", "reduction", "impl", "beta"],
)
def test_the_module_refuses_at_construction(options, error, words):
    with pytest.raises(error) as raised:
        ELBOLoss(**options)
    assert all(word in str(raised.value) for word in words)


@IMPLS
class TestEmptyBatch:
    """An empty result, and gradients of the right shape."""

    @pytest.mark.parametrize("name", OF_EXAMPLES)
    def test_empty(self, name, impl, device):
        arguments = [
            a[:0].to(device).requires_grad_() if isinstance(a, torch.Tensor) else a
            for a in FUNCTIONS[name]
        ]
        leaves = [a for a in arguments if isinstance(a, torch.Tensor)]
        outputs = getattr(fused_elbo, name)(*arguments, impl=impl)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for output in outputs:
            assert output.shape in ((0,), (0, 4), (2, 0), (2, 0, 4))
        for leaf, g in zip(
            leaves, torch.autograd.grad([o.sum() for o in outputs], leaves), strict=True
        ):
            assert g.shape == leaf.shape

    @pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
    def test_samples_of_nothing(self, reduction, impl, device):
        """As of torch's losses: a sum of 0, a mean of NaN."""
        recon, x = torch.zeros(5, 0, 4, device=device, requires_grad=True), torch.zeros(0, 4)
        x, log_ratio = x.to(device), torch.zeros(5, 0, device=device)
        options = {"reduction": reduction, "impl": impl}
        for loss in (
            fused_elbo.iwae_loss(recon, x, log_ratio, **options),
            elbo_loss(recon, x, kl=x.sum(1), **options),
        ):
            assert loss.shape == ((0,) if reduction == "none" else ())
            if reduction != "none":
                assert loss.item() == 0 or loss.isnan() == (reduction == "mean")
            assert torch.autograd.grad(loss.sum(), recon)[0].shape == recon.shape

    def test_an_empty_inner_dimension(self, impl, device):
        """[B, 0, D] has no rows, and D is not 0."""
        mu = torch.zeros(2, 0, 3, device=device, requires_grad=True)
        kl = fused_elbo.gaussian_kl(mu, mu.detach(), impl=impl)
        assert kl.shape == (2, 0)
        assert torch.autograd.grad(kl.sum(), mu)[0].shape == mu.shape
        assert fused_elbo.gaussian_rsample(mu, mu, 2, impl=impl).shape == (2, 2, 0, 3)

    def test_broadcast_gradients_of_nothing(self, impl, device):
        x, prior = torch.zeros(0, 4, device=device), torch.zeros(4, device=device).requires_grad_()
        kl = fused_elbo.gaussian_kl(x, x, prior, impl=impl)
        assert torch.equal(torch.autograd.grad(kl.sum(), prior)[0], torch.zeros_like(prior))
        sigma = torch.zeros((), device=device, requires_grad=True)
        loss = elbo_loss(
            x,
            x,
            kl=x.sum(1),
            likelihood="gaussian",
            recon_logvar=sigma,
            reduction="sum",
            impl=impl,
        )
        assert torch.autograd.grad(loss, sigma)[0].item() == 0


def test_checks_run_on_meta_and_do_not_need_triton():
    """Errors of arguments come before anything of Triton is looked at."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, fused_elbo\n"
        "try: fused_elbo.gaussian_kl(torch.zeros(3, 0), torch.zeros(3, 0), impl='triton')\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mu (3, 0)" in done.stdout
