"""Bad input of the likelihoods."""

import numpy as np
import pytest
import torch

from helpers.bad_input import BOOL, I64, IMPLS, META, bad, check, t

TABLE = {
    "mix_logistic numbers": bad(
        "discretized_mix_logistic_nll",
        t(2, 20, 4, 4),
        t(2, 3, 4, 4),
        3,
        says=["params [B, 30, ...]", "num_mixtures=3", "params (2, 20, 4, 4)"],
    ),
    "mix_logistic pixels": bad(
        "discretized_mix_logistic_nll",
        t(2, 20, 4, 4),
        t(2, 3, 4, 5),
        2,
        says=["x [B, 3, ...]", "params (2, 20, 4, 4)", "x (2, 3, 4, 5)"],
    ),
    "mix_logistic grey, with the numbers of RGB": bad(
        "discretized_mix_logistic_nll",
        t(2, 20, 4, 4),
        t(2, 1, 4, 4),
        2,
        says=["params [B, 6, ...]", "grey", "params (2, 20, 4, 4)", "x (2, 1, 4, 4)"],
    ),
    "mix_logistic grey pixels": bad(
        "discretized_mix_logistic_nll",
        t(2, 6, 4, 4),
        t(2, 1, 4, 5),
        2,
        says=["[B, 1, ...]", "params (2, 6, 4, 4)", "x (2, 1, 4, 5)"],
    ),
    "mix_logistic of two colors": bad(
        "discretized_mix_logistic_nll",
        t(2, 20, 4, 4),
        t(2, 2, 4, 4),
        2,
        says=["x [B, 3, ...] or [B, 1, ...]", "x (2, 2, 4, 4)"],
    ),
    "mix_logistic without pixels": bad(
        "discretized_mix_logistic_nll", t(2, 20), t(2, 3), 2, says=["params (2, 20)", "pixels"]
    ),
    "mix_logistic of no mixtures": bad(
        "discretized_mix_logistic_nll", t(2, 0, 4), t(2, 3, 4), 0, says=["num_mixtures"]
    ),
    "mix_logistic of raw levels": bad(
        "discretized_mix_logistic_nll",
        t(2, 20, 4),
        torch.ones(2, 3, 4, dtype=I64),
        2,
        error=TypeError,
        says=["x", "torch.int64", "[-1, 1]", "2 * x.float() / 255 - 1"],
    ),
    "mix_logistic gradient of the data": bad(
        "discretized_mix_logistic_nll",
        t(2, 20, 4),
        t(2, 3, 4).requires_grad_(),
        2,
        says=["x", "data", "x.detach()"],
    ),
    "mix_logistic bits": bad(
        "discretized_mix_logistic_nll", t(2, 20, 4), t(2, 3, 4), 2, bits=9, says=["bits", "8", "9"]
    ),
    "mix_logistic right_edge": bad(
        "discretized_mix_logistic_nll",
        t(2, 20, 4),
        t(2, 3, 4),
        2,
        right_edge=254,
        says=["right_edge", "254"],
    ),
    "mix_logistic reduction": bad(
        "discretized_mix_logistic_nll",
        t(2, 20, 4),
        t(2, 3, 4),
        2,
        reduction="avg",
        says=["reduction", "'none'", "'mean'", "'sum'"],
    ),
    "gaussian_nll shapes": bad(
        "gaussian_nll", t(3, 4), t(3, 1), says=["equal shapes", "recon (3, 4)", "x (3, 1)"]
    ),
    "gaussian_nll recon_logvar shapes": bad(
        "gaussian_nll", t(3, 4), t(3, 4), t(3), says=["recon_logvar (3,)", "broadcast", "(3, 4)"]
    ),
    "gaussian_nll recon_logvar larger than recon": bad(
        "gaussian_nll",
        t(1, 4),
        t(1, 4),
        t(3, 4),
        says=["recon_logvar (3, 4)", "broadcast", "(1, 4)"],
    ),
    "bernoulli_nll shapes": bad(
        "bernoulli_nll", t(3, 4), t(4), says=["equal shapes", "logits (3, 4)", "x (4,)"]
    ),
    "gaussian_nll D=0": bad(
        "gaussian_nll", t(3, 0), t(3, 0), says=["not empty", "recon (3, 0)", "x (3, 0)"]
    ),
    "bernoulli_nll empty event": bad(
        "bernoulli_nll",
        t(3, 2, 0),
        t(3, 2, 0),
        says=["not empty", "logits (3, 2, 0)", "x (3, 2, 0)"],
    ),
    "gaussian_nll of a vector": bad(
        "gaussian_nll", t(3), t(3), says=["[B, ...]", "recon (3,)", "x (3,)"]
    ),
    "bernoulli_nll of a vector": bad(
        "bernoulli_nll", t(3), t(3), says=["[B, ...]", "logits (3,)", "x (3,)"]
    ),
    # Dtypes: tests/estimators/test_dtypes.py has what may be mixed.
    "integer logits": bad(
        "bernoulli_nll",
        torch.ones(3, 4, dtype=I64),
        t(3, 4),
        error=TypeError,
        says=["logits", "float32", "torch.int64"],
    ),
    "sparse rows of x": bad(
        "bernoulli_nll",
        t(3, 4),
        t(3, 4).to_sparse_csr(),
        error=TypeError,
        says=["x must be dense", "torch.sparse_csr"],
    ),
    "bool classes": bad(
        "categorical_nll",
        t(3, 4),
        torch.ones(3, dtype=BOOL),
        error=TypeError,
        says=["target", "'categorical'", "bool", "target.long()"],
    ),
    "grey values of a Bernoulli": bad(
        "bernoulli_nll",
        t(3, 4),
        torch.ones(3, 4, dtype=torch.uint8),
        error=TypeError,
        says=["x of a Bernoulli", "torch.uint8", "x.float() / 255", "x.bool()"],
    ),
    "integer recon_logvar": bad(
        "gaussian_nll",
        t(3, 4),
        t(3, 4),
        torch.tensor(0),
        error=TypeError,
        says=["recon_logvar", "torch.int64"],
    ),
    "x is an array": bad(
        "bernoulli_nll",
        t(3, 4),
        np.zeros((3, 4), np.float32),
        error=TypeError,
        says=["x", "torch.Tensor", "ndarray"],
    ),
    "recon_logvar is a string": bad(
        "gaussian_nll",
        t(3, 4),
        t(3, 4),
        "0",
        error=TypeError,
        says=["recon_logvar", "number", "str"],
    ),
    "recon_logvar is None": bad(
        "gaussian_nll",
        t(3, 4),
        t(3, 4),
        None,
        error=TypeError,
        says=["recon_logvar", "number", "NoneType"],
    ),
    "gaussian_nll devices": bad(
        "gaussian_nll",
        t(3, 4),
        t(3, 4),
        t().to(META),
        says=["recon and recon_logvar", "device", "meta"],
    ),
    "likelihood of samples of another x": bad(
        "bernoulli_nll",
        t(5, 3, 4),
        t(2, 4),
        says=["equal shapes", "logits [K, *x.shape]", "logits (5, 3, 4)", "x (2, 4)"],
    ),
    "likelihood with fewer dimensions than x": bad(
        "gaussian_nll", t(3, 4), t(5, 3, 4), says=["equal shapes", "recon (3, 4)", "x (5, 3, 4)"]
    ),
    "likelihood of no samples": bad(
        "gaussian_nll", t(0, 3, 4), t(3, 4), says=["at least one sample", "recon (0, 3, 4)"]
    ),
    "laplace_nll log_scale shapes": bad(
        "laplace_nll", t(3, 4), t(3, 4), t(3), says=["log_scale (3,)", "broadcast", "(3, 4)"]
    ),
    "laplace_nll log_scale a string": bad(
        "laplace_nll", t(3, 4), t(3, 4), "1", error=TypeError, says=["log_scale", "number"]
    ),
    "poisson_nll shapes": bad(
        "poisson_nll", t(3, 4), t(3, 1), says=["log_rate (3, 4)", "x (3, 1)"]
    ),
    "poisson_nll counts that learn": bad(
        "poisson_nll",
        t(3, 4),
        t(3, 4).clone().requires_grad_(),
        says=["x", "gradient", "x.detach()"],
    ),
    "negative_binomial_nll shapes": bad(
        "negative_binomial_nll", t(3, 4), t(4), 0.0, says=["log_mean (3, 4)", "x (4,)"]
    ),
    "negative_binomial_nll counts that learn": bad(
        "negative_binomial_nll",
        t(3, 4),
        t(3, 4).clone().requires_grad_(),
        0.0,
        says=["x", "gradient", "x.detach()"],
    ),
    "negative_binomial_nll bool counts": bad(
        "negative_binomial_nll",
        t(3, 4),
        t(3, 4) > 0,
        0.0,
        error=TypeError,
        says=["x", "bool", "x.float()"],
    ),
    "negative_binomial_nll log_theta of rows": bad(
        "negative_binomial_nll",
        t(3, 4),
        t(3, 4),
        t(3),
        says=["log_theta (3,)", "broadcast", "(3, 4)"],
    ),
    "negative_binomial_nll log_theta of None": bad(
        "negative_binomial_nll",
        t(3, 4),
        t(3, 4),
        None,
        error=TypeError,
        says=["log_theta", "number"],
    ),
    "negative_binomial_nll counts for log_theta": bad(
        "negative_binomial_nll",
        t(3, 4),
        t(3, 4),
        torch.ones(4, dtype=I64),
        error=TypeError,
        says=["log_theta", "torch.int64"],
    ),
    "negative_binomial_nll zero_logits shapes": bad(
        "negative_binomial_nll",
        t(3, 4),
        t(3, 4),
        0.0,
        zero_logits=t(3, 1, 4),
        says=["zero_logits (3, 1, 4)", "broadcast", "(3, 4)"],
    ),
    "negative_binomial_nll zero_logits a number": bad(
        "negative_binomial_nll",
        t(3, 4),
        t(3, 4),
        0.0,
        zero_logits=0.5,
        error=TypeError,
        says=["zero_logits", "float"],
    ),
    "negative_binomial_nll counts where logits are expected": bad(
        "negative_binomial_nll",
        torch.ones(3, 4, dtype=I64),
        t(3, 4),
        0.0,
        error=TypeError,
        says=["log_mean", "torch.int64"],
    ),
    "multinomial_nll counts where logits are expected": bad(
        "multinomial_nll",
        torch.ones(3, 4, dtype=I64),
        t(3, 4),
        error=TypeError,
        says=["logits", "torch.int64"],
    ),
    "multinomial_nll shapes": bad(
        "multinomial_nll", t(3, 4), t(3, 5), says=["logits (3, 4)", "counts (3, 5)"]
    ),
    "categorical_nll floating classes": bad(
        "categorical_nll", t(3, 4), t(3), error=TypeError, says=["target", "int64", "torch.float32"]
    ),
    "categorical_nll classes second": bad(
        "categorical_nll",
        t(3, 5, 4),
        torch.zeros(3, 4, dtype=I64),
        says=["logits (3, 5, 4)", "[B, ..., C]", "target (3, 4)"],
    ),
    "categorical_nll without an example": bad(
        "categorical_nll", t(5), torch.zeros((), dtype=I64), says=["logits (5,)", "target ()"]
    ),
    "categorical_nll without classes": bad(
        "categorical_nll", t(3, 0), torch.zeros(3, dtype=I64), says=["classes", "logits (3, 0)"]
    ),
}


@IMPLS
@pytest.mark.parametrize("case", TABLE)
def test_raises_and_names_the_argument(case, impl, device):
    check(TABLE[case], impl, device)
